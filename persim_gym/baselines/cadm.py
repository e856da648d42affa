"""CaDM: dynamics with a context computed from the last transitions (Lee et al., ICML 2020), vanilla and PE-TS.

One network encodes the last K transitions into a context; a forward model predicts the next state from state, action
and context; a backward model, used in training only, predicts the state from the next one. What it says of an agent
thus depends on what the agent did last, not on who it is. PE-TS is the probabilistic ensemble with trajectory sampling.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from persim_gym.arguments import (
    Settings,
    below_one,
    checked,
    choice,
    finite,
    generator_of,
    truth,
    truth_values,
    whole,
    whole_number,
    widths,
)
from persim_gym.baselines.context import ContextModel
from persim_gym.baselines.context_network import ContextDynamics, Features, Scaling, layer_shapes, mlp
from persim_gym.baselines.context_simulator import ContextSimulator
from persim_gym.baselines.history import History, check_history
from persim_gym.config import PRECISIONS, named_settings
from persim_gym.devices import on_device, resolve_device
from persim_gym.errors import InvalidArgumentError
from persim_gym.planning import MPCAgent
from persim_gym.tasks import PlanningObjective, Task
from persim_gym.types import FloatArray, IntArray

_ENCODER_DECAY = (2.5e-5, 5e-5, 7.5e-5, 7.5e-5)
_MODEL_DECAY = (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4)


def _coordinates(name: str, value: Any) -> tuple[int, ...]:
    """Return indices of coordinates, or raise `InvalidArgumentError`."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise InvalidArgumentError(f"{name}={value!r} must be a tuple of coordinates, such as (0, 2)")
    return tuple(whole_number(name, one, least=0) for one in value)


@dataclass(frozen=True)
class CaDMConfig(Settings):
    """Settings of CaDM and of its training; the defaults are Vanilla CaDM's, as in its authors' code."""

    probabilistic: bool = truth(False)
    """Whether the forward model predicts a variance, members learn from bootstrap samples and rollouts are sampled."""
    num_members: int = whole(1)
    """M: each with an encoder, a forward and a backward model of its own."""
    num_particles: int = whole(1)
    """P: trajectories of a rollout, as many for each member."""
    history_length: int = whole(10)
    """K: transitions that the context is computed from."""
    future_steps: int = whole(10)
    """How many transitions a context is trained to explain: the one after it and those that follow."""
    futures_per_context: int = whole(10)
    """Of these transitions, as many, drawn anew, enter a gradient step; fewer cost less and mean the same."""
    context_size: int = whole(10)
    encoder_hidden: tuple[int, ...] = widths((256, 128, 64))
    """Widths of the encoder's ReLU layers."""
    hidden: tuple[int, ...] = widths((200, 200, 200, 200), empty=False)
    """Widths of the swish layers of the forward and the backward model."""
    backward_weight: float = finite(0.5)
    """β: weight of the backward model's loss."""
    variance_weight: float = finite(0.01)
    """Weight of the distance between the learned bounds of the log variance."""
    batch_size: int = whole(256)
    """Contexts in a gradient step."""
    learning_rate: float = finite(1e-3, above=0)
    """Of Adam."""
    matmul_precision: str = choice("highest", choices=PRECISIONS)
    """Of training's matrix products, as `persim_gym.PerSimConfig` has it."""
    iterations: int = whole(20)
    """The log is replayed in so many parts; each iteration adds the next agents' trajectories."""
    max_epochs: int = whole(200)
    """Of each iteration."""
    max_gradient_steps: int = whole(150_000)
    """Of all iterations, each of which gets the same number of epochs."""
    validation_fraction: float = checked(below_one, 0.1)
    max_validation: int = whole(5000, least=0)
    """Contexts held out for early stopping."""
    absolute: tuple[int, ...] = checked(_coordinates, ())
    """Coordinates of the observation whose next value is predicted itself and that are no input."""
    angles: tuple[int, ...] = checked(_coordinates, ())
    """Coordinates that enter by sine and cosine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        both = set(self.absolute) & set(self.angles)
        if both:
            raise InvalidArgumentError(f"coordinate {min(both)} is in absolute and in angles; it can be in one of them")
        if self.num_particles % self.num_members:
            raise InvalidArgumentError(
                f"num_particles={self.num_particles} must be a multiple of num_members={self.num_members}"
            )
        if self.futures_per_context > self.future_steps:
            raise InvalidArgumentError(
                f"futures_per_context={self.futures_per_context} must be at most future_steps={self.future_steps}"
            )

    @property
    def features(self) -> Features:
        """What the networks see of a state."""
        return Features(self.absolute, self.angles)


VANILLA_CADM = CaDMConfig()
PE_TS_CADM = CaDMConfig(probabilistic=True, num_members=5, num_particles=20)
CONFIGS = {"Vanilla CaDM": VANILLA_CADM, "PE-TS CaDM": PE_TS_CADM}
_TASK_FEATURES: dict[str, dict[str, Any]] = {"HalfCheetah": {"absolute": (0,), "angles": (2,)}}
"""As in the authors' code: the forward speed is predicted itself, the pitch seen by sine and cosine."""


def get_cadm_config(config: str | CaDMConfig | None, task_name: str) -> CaDMConfig:
    """Return a configuration by name, with the task's own features; None means "Vanilla CaDM".

    Raises:
        UnknownNameError: there is no configuration of that name.
        InvalidArgumentError: neither a name nor a configuration.

    """
    found = named_settings(config, CaDMConfig, CONFIGS, usual=("Vanilla CaDM",))
    return found if found is config else found.with_changes(**_TASK_FEATURES.get(task_name, {}))


def check_coordinates(config: CaDMConfig, task: Task) -> None:
    """Raise `InvalidArgumentError` if a configuration speaks of coordinates that a task does not have."""
    for name in ("absolute", "angles"):
        beyond = [one for one in getattr(config, name) if one >= task.observation_size]
        if beyond:
            raise InvalidArgumentError(
                f"{name} has coordinate {beyond[0]}; those of task {task.name} are 0 … {task.observation_size - 1}"
            )


def parameter_shapes(config: CaDMConfig, task: Task) -> dict[str, tuple[int, int, int]]:
    """Return the shape of every parameter: weights (M, outputs, inputs), biases (M, outputs, 1)."""
    size, members = task.observation_size, config.num_members
    history = config.history_length * (size + task.action_size)
    inputs = config.features.size(size) + task.action_size + config.context_size
    shapes = layer_shapes("encoder", members, (history, *config.encoder_hidden, config.context_size))
    shapes |= layer_shapes("forward", members, (inputs, *config.hidden, size * (2 if config.probabilistic else 1)))
    shapes |= layer_shapes("backward", members, (inputs, *config.hidden, size))
    if config.probabilistic:
        shapes |= {"min_log_variance": (1, size, 1), "max_log_variance": (1, size, 1)}
    return shapes


def weight_decay(name: str) -> float:
    """Return the coefficient of ½‖W‖² of a layer's weight; zero for what is not penalized."""
    network, _, rest = name.partition(".")
    if not rest.endswith("weight"):
        return 0.0
    decays = _ENCODER_DECAY if network == "encoder" else _MODEL_DECAY
    return decays[min(int(rest.partition(".")[0]), len(decays) - 1)]


def encode(parameters: Mapping[str, Tensor], histories: Tensor) -> Tensor:
    """Return the contexts (M, context, B) of histories (M, K·(D + A), B): member m's come from member m's encoder."""
    return mlp(parameters, "encoder", histories, torch.relu)


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
        return History.empty(self.task, self.config.history_length, count, scaling)

    @classmethod
    def shapes(cls, config: CaDMConfig, task: Task, num_agents: int) -> dict[str, tuple[int, ...]]:
        inputs, size, actions = config.features.size(task.observation_size), task.observation_size, task.action_size
        columns = {"input": inputs, "target": size} | ({} if task.discrete else {"action": actions})
        scalings = {f"{name}_{part}": (rows, 1) for name, rows in columns.items() for part in ("mean", "scale")}
        return {**parameter_shapes(config, task), **scalings}

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
            history.values, aggregate=self.aggregate, device=self.device, seed=self._generator.initial_seed()
        )


class CaDMAgent:
    """MPC in a CaDM whose context follows the running episode, and is fixed within a plan.

    What `predict` needs of the past travels in ``state``, as `persim_gym.MPCAgent`'s plans do. The planners are those
    of PerSim (paper, appendix D), in the place of the one of CaDM's authors.
    """

    takes_running = MPCAgent.takes_running

    def __init__(
        self,
        model: CaDM,
        *,
        objective: PlanningObjective | None = None,
        device: str = "cpu",
        seed: int | np.random.Generator = 0,
        dtype: torch.dtype = torch.float32,
        **planner: Any,
    ) -> None:
        """Make the agent.

        Args:
            model: to plan in.
            objective: what to maximize; the task's if not given.
            device: to plan on.
            seed: of the candidates and of the sampled next states.
            dtype: of the network's products; `torch.bfloat16` takes half the time or less on a processor that has it.
            **planner: more settings of `persim_gym.MPCAgent`.

        """
        if not isinstance(model, CaDM):
            raise InvalidArgumentError(f"cannot plan in {model!r}: give a CaDM; MPCAgent plans in other simulators")
        self.model = model
        self._device, self._dtype = resolve_device(device), dtype
        self._rng = generator_of(seed)
        self._sampling_seed = int(self._rng.integers(2**31))
        # Every particle follows its own trajectory, for continuous actions too (TS∞).
        self._planner = {"propagation": "per_member", "objective": objective, **planner}
        self._planner_in(model.new_histories(1), 0)  # which says at once if a setting is wrong

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
        running: Any = None,
    ) -> tuple[np.ndarray, Any]:
        """Plan for E observations (E, D) together; return actions (E,) or (E, A), and the next call's ``state``.

        Args:
            observation: current observation of each environment.
            state: what the previous call returned, or None at the start.
            episode_start: (E,) whether an episode begins here; its history and its plan are then forgotten.
            deterministic: not used; plans are drawn from the agent's own generator.
            running: (E,) whether an episode still goes on, as `persim_gym.MPCAgent` takes it.

        Raises:
            InvalidStateError: observations of another shape.
            InvalidArgumentError: ``state`` is not what the previous call for the same environments returned, or
                ``episode_start`` not of them.

        """
        single = np.ndim(observation) == 1
        observations = self.model.task.check_observations(np.atleast_2d(observation), "E")
        observations = observations.copy()  # the caller may use its own again
        plans, history, step = None, self.model.new_histories(len(observations)), 0
        if state is not None:
            if not isinstance(state, _Memory) or len(state.observations) != len(observations):
                raise InvalidArgumentError(
                    f"state is not what predict returned for {len(observations)} environments: pass that, or None"
                )
            plans, step = state.plans, state.step
            history = state.history.after(state.observations, state.actions, observations)
            if episode_start is not None:
                history = history.restarted(truth_values("episode_start", episode_start, len(observations)))
        planner = self._planner_in(history, step)
        actions, plans = planner.predict(observations, plans, episode_start, running=running)
        return (actions[0] if single else actions), _Memory(plans, history, observations, actions, step + 1)

    def _planner_in(self, history: History, step: int) -> MPCAgent:
        """Return the planner in the simulator of environments with these histories."""
        simulator = self.model.simulator_of(
            history.values, device=self._device, seed=self._sampling_seed + step, dtype=self._dtype
        )
        return MPCAgent(simulator, seed=self._rng, **self._planner)


@dataclass(frozen=True)
class _Memory:
    """What `CaDMAgent` needs of the past of E environments."""

    plans: np.ndarray
    history: History
    observations: FloatArray
    """(E, D)."""
    actions: np.ndarray
    """(E,) or (E, A)."""
    step: int
    """Calls of `CaDMAgent.predict` so far."""

    def __getitem__(self, environments: Any) -> _Memory:
        """Return that of some environments, as an array would."""
        history = replace(
            self.history, values=self.history.values[environments], counts=self.history.counts[environments]
        )
        plans, observations, actions = (part[environments] for part in (self.plans, self.observations, self.actions))
        return _Memory(plans, history, observations, actions, self.step)
