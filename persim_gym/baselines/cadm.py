"""CaDM: dynamics with a context computed from the last transitions (Lee et al., ICML 2020), vanilla and PE-TS.

One network encodes the last K transitions into a context; a forward model predicts the next state from state, action
and context; a backward model, used in training only, predicts the state from the next one. What it says of an agent
thus depends on what the agent did last, not on who it is. PE-TS is the probabilistic ensemble with trajectory sampling.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from persim_gym.baselines.cadm_config import CaDMConfig
from persim_gym.baselines.context import ContextModel
from persim_gym.baselines.context_network import ContextDynamics
from persim_gym.baselines.context_simulator import ContextSimulator
from persim_gym.baselines.history import History, check_history
from persim_gym.baselines.layers import Scaling, mlp
from persim_gym.devices import on_device
from persim_gym.model.parameters import layer_shapes
from persim_gym.tasks import Task
from persim_gym.types import FloatArray, IntArray


def parameter_shapes(config: CaDMConfig, task: Task) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter: weights (M, outputs, inputs), biases (M, outputs, 1)."""
    size, members = task.observation_size, config.num_members
    history = config.history_length * (size + task.action_size)
    inputs = config.features.size(size) + task.action_size + config.context_size
    networks = {
        "encoder": (history, *config.encoder_hidden, config.context_size),
        "forward": (inputs, *config.hidden, size * (2 if config.probabilistic else 1)),
        "backward": (inputs, *config.hidden, size),
    }
    shapes = {
        key: shape for name, sizes in networks.items() for key, (shape, _) in layer_shapes(name, members, sizes).items()
    }
    if config.probabilistic:
        shapes |= {"min_log_variance": (1, size, 1), "max_log_variance": (1, size, 1)}
    return shapes


def encode(parameters: Mapping[str, Tensor], histories: Tensor, hidden_dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the contexts (M, context, B) of histories (M, K·(D + A), B): member m's come from member m's encoder."""
    return mlp(parameters, "encoder", histories, torch.relu, hidden_dtype)


@dataclass(frozen=True, eq=False, repr=False)
class CaDM(ContextModel):
    """Trained CaDM, of one member or an ensemble. Made by `fit_cadm` or `CaDM.load`.

    ``simulator(agent)`` takes the agent's context from its last logged transitions; `ContextSimulator.conditioned_on`
    and `CaDMAgent` take it from the running episode, as the method does at test time.
    """

    kind = "cadm"
    config_type = CaDMConfig

    config: CaDMConfig = field(default_factory=CaDMConfig)
    histories: FloatArray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    """(N, K·(D + A)): each agent's last K logged transitions, as `History` has them."""

    @property
    def simulator_type(self) -> type[CaDMSimulator]:
        return CaDMSimulator

    @property
    def num_members(self) -> int:
        """P: particles, each tied to a member."""
        return self.config.num_particles

    def dynamics(self, device: torch.device) -> ContextDynamics:
        if device not in self._dynamics_on:
            self._dynamics_on[device] = self._make_dynamics(device)
        return self._dynamics_on[device]

    @cached_property
    def _dynamics_on(self) -> dict[torch.device, ContextDynamics]:
        """The network on each device it was needed on: an agent binds it anew at every step."""
        return {}

    def _make_dynamics(self, device: torch.device) -> ContextDynamics:
        config = self.config
        found = on_device(self.parameters, device)
        bounds = (found["min_log_variance"], found["max_log_variance"]) if config.probabilistic else None
        return ContextDynamics(
            parameters=found,
            features=config.features,
            inputs=Scaling(found["input_mean"], found["input_scale"]),
            targets=Scaling(found["target_mean"], found["target_scale"]),
            actions=None if self.task.discrete else Scaling(found["action_mean"], found["action_scale"]),
            action_size=self.task.action_size,
            activation=partial(torch.nn.functional.silu, inplace=True),
            particles_per_member=config.num_particles // config.num_members,
            log_variance_bounds=bounds,
        )

    def agent_contexts(self, agents: IntArray, device: torch.device) -> Tensor:
        return self.contexts(self.histories[agents], device)

    def contexts(self, histories: FloatArray, device: torch.device) -> Tensor:
        """Return the contexts (M, context, B) of histories (B, K·(D + A))."""
        inputs = torch.tensor(np.asarray(histories, np.float32), device=device).T
        with torch.inference_mode():
            return encode(self.dynamics(device).parameters, inputs.expand(self.config.num_members, -1, -1).contiguous())

    def simulator_of(
        self, histories: FloatArray, *, device: torch.device, aggregate: str = "mean", **settings: Any
    ) -> CaDMSimulator:
        """Return the simulator of B environments with histories (B, K·(D + A)), one each."""
        contexts = self.contexts(histories, device)
        return CaDMSimulator(self, np.arange(len(histories)), contexts, aggregate=aggregate, device=device, **settings)

    def new_histories(self, count: int) -> History:
        """Return the empty histories of so many environments."""
        scaling = None
        if not self.task.discrete:
            scaling = self.parameters["action_mean"][:, 0], self.parameters["action_scale"][:, 0]
        changes = self.parameters["history_scale"][:, 0] if self.config.standardized_history else None
        return History.empty(self.task, self.config.history_length, count, scaling, changes)

    @classmethod
    def shapes(cls, config: CaDMConfig, task: Task, num_agents: int) -> dict[str, tuple[int, ...]]:
        inputs, size, actions = config.features.size(task.observation_size), task.observation_size, task.action_size
        columns = {"input": inputs, "target": size} | ({} if task.discrete else {"action": actions})
        scalings = {f"{name}_{part}": (rows, 1) for name, rows in columns.items() for part in ("mean", "scale")}
        history = {"history_scale": (size, 1)} if config.standardized_history else {}
        return {**parameter_shapes(config, task), **scalings, **history}

    @classmethod
    def own_shapes(cls, config: CaDMConfig, task: Task, num_agents: int) -> dict[str, tuple[int, ...]]:
        return {"histories": (num_agents, config.history_length * (task.observation_size + task.action_size))}

    def own_arrays(self) -> dict[str, np.ndarray]:
        return {"histories": self.histories}

    @classmethod
    def own_fields(cls, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return {"histories": np.array(arrays["histories"])}


class CaDMSimulator(ContextSimulator):
    """The simulator of a CaDM; its context stays fixed while it steps."""

    model: CaDM

    def conditioned_on(self, observations: Any, actions: Any) -> CaDMSimulator:
        """Return the simulator of B episodes, with the context of their last transitions.

        Args:
            observations: (B, T + 1, D) of the beginning of each episode, the current one last.
            actions: (B, T) or (B, T, A) taken between them.

        """
        states, moves = check_history(observations, actions, self.task)
        history = self.model.new_histories(len(states))
        for step in range(moves.shape[1]):
            history = history.after(states[:, step], moves[:, step], states[:, step + 1])
        return self.model.simulator_of(
            history.values,
            aggregate=self.aggregate,
            device=self.device,
            seed=self._generator.initial_seed(),
            dtype=self._dtype,
        )
