"""MOReL's pessimistic MDP: learned dynamics that halt where their members disagree (Kidambi et al., NeurIPS 2020)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector.utils import batch_space

from persim_gym.arguments import at_least_zero, whole_number
from persim_gym.baselines.plain_dynamics import PlainDynamics
from persim_gym.data.trajectories import Trajectories
from persim_gym.envs.vector import autoreset_metadata
from persim_gym.errors import EpisodeOverError
from persim_gym.types import BoolArray, FloatArray


class PessimisticVectorEnv(gymnasium.vector.VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """B copies of the pessimistic MDP, stepped together.

    From a pair of state and action on whose outcome the members disagree by more than ``threshold``, the episode ends
    with reward −``penalty``; else the next state is the members' mean, and reward and termination are the task's. Half
    of the episodes begin in the first state of a logged episode, half in any logged state.

    An episode that ended is followed by the next one at once: `step` returns the first observation of the next, and
    ``info["final_obs"]`` (B, D) the last of the old one, where ``info["_final_obs"]`` (Gymnasium's same-step
    autoreset). ``info["halted"]`` (B,) says where an episode ended for disagreement.
    """

    autoreset_mode = "same_step"
    metadata = {"render_modes": [], "autoreset_mode": autoreset_metadata(autoreset_mode)}

    def __init__(
        self,
        dynamics: PlainDynamics,
        log: Trajectories,
        *,
        threshold: float,
        penalty: float,
        num_envs: int = 64,
        max_episode_steps: int = 500,
    ) -> None:
        """Make the environments.

        Args:
            dynamics: learned from the log.
            log: whose states episodes begin in.
            threshold: discrepancy above which a pair counts as unknown; at 0 all pairs do, at infinity none.
            penalty: κ, what halting costs.
            num_envs: B.
            max_episode_steps: time limit; the task's if that is less.

        """
        num_envs = whole_number("num_envs", num_envs)
        threshold = at_least_zero("threshold", threshold)
        task = dynamics.task
        self.task, self.dynamics, self.num_envs = task, dynamics, num_envs
        self.threshold, self.penalty = threshold, penalty
        self.max_episode_steps = min(task.max_episode_steps, max_episode_steps)
        # Copies: learners seed a space's random state, which is not to be the task's.
        self.single_observation_space, self.single_action_space = copy.deepcopy(
            (task.observation_space, task.action_space)
        )
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._first = log.initial_observations.astype(np.float32)
        self._any = np.asarray(log.observations, np.float32)
        self._observations: FloatArray | None = None
        self._steps = np.zeros(num_envs, np.int64)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._observations = self._begin(self.num_envs)
        self._steps[:] = 0
        return self._observations.copy(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        before = self._observations
        if before is None:
            raise EpisodeOverError("call reset() before step()")
        actions = self.task.executed(actions, self.num_envs)
        after, discrepancies = self.dynamics.predict(before, actions)
        halted = self.unknown(discrepancies) | ~np.isfinite(after).all(axis=1)
        after = np.clip(after, self.task.observation_space.low, self.task.observation_space.high)
        after[halted] = before[halted]
        rewards = np.array(self.task.reward(before, actions, after), np.float64)  # a copy: both are written to below
        rewards[halted] = -self.penalty
        terminated = halted | np.asarray(self.task.terminated(after), bool)
        self._steps += 1
        truncated = ~terminated & (self._steps >= self.max_episode_steps)
        ended = terminated | truncated
        info: dict[str, Any] = {"halted": halted, "discrepancy": discrepancies}
        if ended.any():
            info |= {"final_obs": after.copy(), "_final_obs": ended}
            after[ended] = self._begin(int(ended.sum()))
            self._steps[ended] = 0
        self._observations = after
        return after.copy(), rewards, terminated, truncated, info

    def state(self) -> dict[str, np.ndarray]:
        """Return the observations (B, D) and the steps (B,) of the episodes going on, for `restore`."""
        if self._observations is None:
            raise EpisodeOverError("call reset() before state()")
        return {"observations": self._observations.copy(), "steps": self._steps.copy()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Be where `state` was taken."""
        self._observations, self._steps = np.array(state["observations"]), np.array(state["steps"])

    def unknown(self, discrepancies: FloatArray) -> BoolArray:
        """Return which pairs (B,) count as unknown."""
        if self.threshold == 0:  # even where the members agree to the last bit
            return np.ones(len(discrepancies), bool)
        return discrepancies > self.threshold

    def _begin(self, count: int) -> FloatArray:
        """Draw (B, D) start states."""
        first = self._first[self.np_random.integers(len(self._first), size=count)]
        anywhere = self._any[self.np_random.integers(len(self._any), size=count)]
        return np.where(self.np_random.random(count)[:, None] < 0.5, first, anywhere)
