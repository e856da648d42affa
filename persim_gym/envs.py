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
from persim_gym.folding import MeanStepper, SingleStepper, fold
from persim_gym.model import AGGREGATES, Ensemble
from persim_gym.tasks.environment import TaskEnv
from persim_gym.types import FloatArray

if TYPE_CHECKING:
    from persim_gym.simulator import Simulator

ENSEMBLE_MODES = ("aggregate", "member")


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
        model: str | Path | Ensemble,
        agent: int | str = 0,
        *,
        aggregate: str = "mean",
        ensemble: str = "aggregate",
        render_mode: str | None = None,
    ) -> None:
        """Bind a trained ensemble to an agent.

        Args:
            model: the ensemble or its file.
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
        task = self.ensemble.task
        super().__init__(task, task.default_covariates if covariates is None else covariates[self.agent], render_mode)
        self.aggregate = aggregate
        self._draw_member = ensemble == "member"
        self._member: int | None = None
        network = fold(self.ensemble, self.agent)
        by_mean = aggregate == "mean" and not self._draw_member and MeanStepper.fits(network)
        self._predict = MeanStepper(network) if by_mean else self._predict_from_members
        self._stepper = None if by_mean else SingleStepper(network)
        bounds = np.stack([task.observation_space.low, task.observation_space.high], axis=1)
        self._bounded = [(index, *bounds[index].tolist()) for index in np.flatnonzero(np.isfinite(bounds).any(axis=1))]

    @property
    def simulator(self) -> Simulator:
        """The simulator behind the environment, for batches, rollouts and planners."""
        if not hasattr(self, "_simulator"):
            self._simulator = self.ensemble.simulator(self.agent, aggregate=self.aggregate)
        return self._simulator

    def _begin(self, state: FloatArray | None) -> FloatArray:
        self._member = int(self.np_random.integers(self.ensemble.num_members)) if self._draw_member else None
        if state is not None:
            return state
        return _initial_observations(self.ensemble, self.np_random, 1)[0]

    def _advance(self, observation: FloatArray, action: Any) -> tuple[FloatArray, bool, dict[str, Any]]:
        proposed, disagreement, finite = self._predict(observation, action)
        if not finite and not np.isfinite(proposed).all():
            return observation, True, {"disagreement": disagreement, "diverged": True}
        values = proposed.tolist()
        for index, low, high in self._bounded:  # two comparisons of numbers cost a sixth of NumPy's clip
            if not low <= values[index] <= high:
                space = self.task.observation_space
                proposed = np.minimum(np.maximum(proposed, space.low), space.high)
                break
        return proposed, False, {"disagreement": disagreement}

    def _predict_from_members(self, observation: FloatArray, action: Any) -> tuple[FloatArray, FloatArray, bool]:
        """Return the next state (D,), the members' deviation (D,), and whether the state is finite."""
        changes = self._stepper.changes(observation, action)
        with np.errstate(invalid="ignore", over="ignore"):  # a model that diverges
            disagreement = changes.std(axis=0)
            if self._member is not None:
                change = changes[self._member]
            else:
                change = changes.mean(axis=0) if self.aggregate == "mean" else np.median(changes, axis=0)
            proposed = observation + change
        return proposed, disagreement, bool(np.isfinite(proposed).all())


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
        model: str | Path | Ensemble,
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
            model: the ensemble or its file.
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
        self.task, self.ensemble, self.num_envs = ensemble.task, ensemble, num_envs
        self.simulator = ensemble.simulator(
            agent if one else None, agents=None if one else agent, aggregate=aggregate, device=device
        )
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


def _initial_observations(ensemble: Ensemble, rng: np.random.Generator, count: int) -> FloatArray:
    """Draw (B, D) start states: the task's own, or first states of the log."""
    if ensemble.task.initial_observations is not None:
        return ensemble.task.initial_observations(rng, count)
    known = ensemble.initial_observations
    return known[rng.integers(len(known), size=count)].astype(np.float64)


def _loaded(model: str | Path | Ensemble) -> Ensemble:
    if isinstance(model, Ensemble):
        return model
    path = Path(model)
    return _load_once(str(path), path.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _load_once(path: str, modified: int) -> Ensemble:
    """Load a file once for all environments of a process, and again when it has been written anew."""
    return Ensemble.load(path)
