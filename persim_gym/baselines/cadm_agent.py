"""MPC in a CaDM, whose context follows the running episode."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from persim_gym.arguments import batch_of, generator_of, truth_values
from persim_gym.baselines.cadm import CaDM
from persim_gym.baselines.history import History
from persim_gym.devices import resolve_device
from persim_gym.errors import InvalidArgumentError
from persim_gym.planning import MPCAgent
from persim_gym.tasks import PlanningObjective
from persim_gym.types import FloatArray


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
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise InvalidArgumentError(f"dtype={dtype!r} must be one of torch's floats, such as torch.bfloat16")
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
        given, single = batch_of(observation)
        observations = self.model.task.check_observations(given, "E")
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
        memory = _Memory(plans, history, observations, actions.copy(), step + 1)  # the caller may change its own
        return (actions[0] if single else actions), memory

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
