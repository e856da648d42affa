"""The simulator of one agent as a Gymnasium environment, and of many as a vector environment."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium.vector.utils import batch_space

from persim_gym.errors import EpisodeOverError, InvalidActionError, InvalidArgumentError, InvalidStateError
from persim_gym.folding import SingleStepper, fold
from persim_gym.model import AGGREGATES, Ensemble
from persim_gym.outcomes import bound_task
from persim_gym.tasks.environment import TaskEnv
from persim_gym.types import FloatArray, LearnedDynamics

if TYPE_CHECKING:
    from persim_gym.simulator import Simulator

ENSEMBLE_MODES = ("aggregate", "member")
_SEEDS = 2**31


class PersonalizedEnv(TaskEnv):
    """The learned simulator of one agent: ``gym.make("PerSim-CartPole-agent7-v0")``.

    Observation, action, reward, termination, time limit, start states and pictures are the task's, the same as the true
    system's. A task without start states of its own starts in the first states of the log. Simulated states are kept
    within the observation space; if the model diverges to something that is not finite, the episode is truncated there
    and ``info["diverged"]`` says so.

    ``info`` after a step holds ``disagreement`` (D,): the standard deviation of the members' predictions.
    ``reset(options={"state": observation})`` starts from any observed state.
    """

    def __init__(
        self,
        model: str | Path | LearnedDynamics,
        agent: int | str = 0,
        *,
        aggregate: str = "mean",
        ensemble: str = "aggregate",
        render_mode: str | None = None,
    ) -> None:
        """Bind a trained ensemble to an agent.

        Args:
            model: the ensemble or its file, or other learned dynamics (`persim_gym.baselines`).
            agent: index or label.
            aggregate: "mean" or "median" over the members.
            ensemble: "aggregate", or "member": one member, drawn at each reset, makes the whole episode.
            render_mode: None, "rgb_array" or "human".

        """
        if ensemble not in ENSEMBLE_MODES:
            raise InvalidArgumentError(f"ensemble={ensemble!r} must be one of {', '.join(ENSEMBLE_MODES)}")
        if aggregate not in AGGREGATES:
            raise InvalidArgumentError(f"aggregate={aggregate!r} must be one of {', '.join(AGGREGATES)}")
        self.ensemble = _loaded(model)
        self.agent = self.ensemble.agent_index(agent)
        covariates = self.ensemble.covariates
        task = bound_task(self.ensemble, [self.agent])
        super().__init__(task, task.default_covariates if covariates is None else covariates[self.agent], render_mode)
        self.aggregate = aggregate
        self._draw_member = ensemble == "member"
        self._member: int | None = None
        if isinstance(self.ensemble, Ensemble):
            self._stepper = SingleStepper(fold(self.ensemble, self.agent))
        else:
            self._stepper = _SimulatorStepper(self.simulator)
        self._low = task.observation_space.low.astype(np.float64)
        self._high = task.observation_space.high.astype(np.float64)

    @property
    def simulator(self) -> Simulator:
        """The simulator behind the environment, for batches, rollouts and planners."""
        if not hasattr(self, "_simulator"):
            self._simulator = self.ensemble.simulator(self.agent, aggregate=self.aggregate)
        return self._simulator

    def _begin(self, state: FloatArray | None) -> FloatArray:
        if not isinstance(self.ensemble, Ensemble) and self.simulator.stochastic:
            self.simulator.reseed(int(self.np_random.integers(_SEEDS)))
        self._member = int(self.np_random.integers(self.ensemble.num_members)) if self._draw_member else None
        if state is not None:
            return state
        return _initial_observations(self.ensemble, self.np_random, 1)[0]

    def _advance(self, observation: FloatArray, action: Any) -> tuple[FloatArray, bool, dict[str, Any]]:
        changes = self._stepper.changes(observation, action)
        with np.errstate(invalid="ignore", over="ignore"):  # a model that diverges
            mean = changes.sum(axis=0) / len(changes)
            deviation = changes - mean
            info = {"disagreement": np.sqrt((deviation * deviation).sum(axis=0) / len(changes))}
        if self._member is not None:
            mean = changes[self._member]
        elif self.aggregate == "median":
            mean = np.median(changes, axis=0)
        proposed = observation + mean
        if not np.isfinite(proposed).all():
            return observation, True, {**info, "diverged": True}
        return np.minimum(np.maximum(proposed, self._low), self._high), False, info


class PersonalizedVectorEnv(gymnasium.vector.VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """The simulators of many agents, one state each, stepped together.

    ``gym.make_vec("PerSim-CartPole-v0", num_envs=1024, vectorization_mode="vector_entry_point", agent=[…])``

    An environment whose episode ended is reset by the next call of `step`, which ignores its action and returns reward
    0 (Gymnasium's next-step autoreset). Simulated states are kept within the observation space; an environment whose
    model diverges is truncated.
    """

    metadata = {"render_modes": [], "autoreset_mode": getattr(gymnasium.vector, "AutoresetMode", None)}
    if metadata["autoreset_mode"] is None:
        del metadata["autoreset_mode"]  # Gymnasium 1.0 knows next-step autoreset only
    else:
        metadata["autoreset_mode"] = metadata["autoreset_mode"].NEXT_STEP

    def __init__(
        self,
        model: str | Path | LearnedDynamics,
        num_envs: int = 1,
        agent: int | str | Sequence[int | str] = 0,
        *,
        aggregate: str = "mean",
        max_episode_steps: int | None = None,
        device: str = "cpu",
        render_mode: None = None,
    ) -> None:
        """Bind a trained ensemble to agents.

        Args:
            model: the ensemble or its file, or other learned dynamics (`persim_gym.baselines`).
            num_envs: B.
            agent: one agent for all environments, or a sequence of B.
            aggregate: "mean" or "median" over the members.
            max_episode_steps: time limit; the task's if not given.
            device: to simulate on.
            render_mode: must be None.

        """
        if num_envs < 1:
            raise InvalidArgumentError(f"num_envs={num_envs} must be at least 1")
        if render_mode is not None:
            raise InvalidArgumentError("a vector environment draws nothing; render a PerSim-…-agentN-v0 instead")
        ensemble = _loaded(model)
        one = isinstance(agent, (str, int, np.integer))
        if not one and len(agent) != num_envs:
            raise InvalidArgumentError(f"agent names {len(agent)} agents for num_envs={num_envs} environments")
        self.ensemble, self.num_envs = ensemble, num_envs
        self.simulator = ensemble.simulator(
            agent if one else None, agents=None if one else agent, aggregate=aggregate, device=device
        )
        self.task = self.simulator.task
        self.max_episode_steps = self.task.max_episode_steps if max_episode_steps is None else max_episode_steps
        self.single_observation_space = self.task.observation_space
        self.single_action_space = self.task.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._observations: FloatArray | None = None
        self._steps = np.zeros(num_envs, np.int64)
        self._ended = np.zeros(num_envs, bool)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        if self.simulator.stochastic:
            self.simulator.reseed(int(self.np_random.integers(_SEEDS)))
        observations = _initial_observations(self.ensemble, self.np_random, self.num_envs)
        if options and "state" in options:
            try:
                given = np.asarray(options["state"], np.float64)
            except (TypeError, ValueError) as error:
                raise InvalidStateError(f"state {options['state']!r} is not an array of numbers") from error
            if given.shape not in (observations.shape, observations.shape[1:]) or not np.isfinite(given).all():
                raise InvalidStateError(
                    f"state must be finite and of shape {observations.shape} or {observations.shape[1:]}, "
                    f"got {given.shape}"
                )
            observations = np.broadcast_to(given, observations.shape).copy()
        self._observations = observations.astype(np.float32)
        self._steps[:] = 0
        self._ended[:] = False
        return self._observations.copy(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        if self._observations is None:
            raise EpisodeOverError("call reset() before step()")
        actions = np.asarray(actions)
        if actions.shape != self.action_space.shape:
            raise InvalidActionError(f"actions must have shape {self.action_space.shape}, got {actions.shape}")
        before, resetting = self._observations, self._ended
        prediction = self.simulator.step(before, actions)
        space = self.task.observation_space
        diverged = ~np.isfinite(prediction.next_observations).all(axis=1)
        after = np.clip(prediction.next_observations, space.low, space.high)
        after[diverged] = before[diverged]
        rewards = np.asarray(self.task.reward(before, actions, after), np.float64)
        terminated = np.asarray(self.task.terminated(after), bool)
        self._steps += 1
        truncated = diverged | (self._steps >= self.max_episode_steps)
        if resetting.any():
            after[resetting] = _initial_observations(self.ensemble, self.np_random, int(resetting.sum()))
            rewards[resetting], terminated[resetting], truncated[resetting] = 0.0, False, False
            self._steps[resetting] = 0
        self._observations = after
        self._ended = terminated | truncated
        info = {"disagreement": prediction.disagreement, "_disagreement": ~resetting}
        return after.copy(), rewards, terminated, truncated & ~terminated, info


class _SimulatorStepper:
    """Steps one state of any learned dynamics as `SingleStepper` does PerSim's, through its simulator."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator

    def changes(self, state: np.ndarray, action: int | np.ndarray) -> np.ndarray:
        """Return every member's predicted change (M, D) for a state (D,) and a checked action."""
        return self._simulator.step_members(state[None], np.asarray([action]))[:, 0] - state


def _initial_observations(ensemble: LearnedDynamics, rng: np.random.Generator, count: int) -> FloatArray:
    """Draw (B, D) start states: the task's own, or first states of the log."""
    if ensemble.task.initial_observations is not None:
        return ensemble.task.initial_observations(rng, count)
    known = ensemble.initial_observations
    return known[rng.integers(len(known), size=count)].astype(np.float64)


def _loaded(model: str | Path | LearnedDynamics) -> LearnedDynamics:
    if not isinstance(model, (str, Path)):
        return model
    path = Path(model)
    return _load_once(str(path), path.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _load_once(path: str, modified: int) -> Ensemble:
    """Load a file once for all environments of a process, and again when it has been written anew."""
    return Ensemble.load(path)
