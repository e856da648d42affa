"""`Task`: everything that is known about a problem without learning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces

from persim_gym.errors import InvalidActionError, InvalidArgumentError, InvalidStateError, PerSimError, UnknownNameError
from persim_gym.types import FloatArray

# Rewards and termination rules use operators only, so that the same definition serves NumPy arrays and torch tensors.
RewardFn = Callable[[Any, Any, Any], Any]
"""(observations (..., D), actions (...) or (..., A), next_observations (..., D)) -> rewards (...)."""
TerminationFn = Callable[[Any], Any]
"""next_observations (..., D) -> terminated (...), boolean."""
ProgressFn = Callable[[Any], Any]
"""observations (..., D) -> (...)."""


@dataclass(frozen=True)
class Covariate:
    """A hidden property in which agents differ, drawn uniformly from [low, high]."""

    name: str
    low: float
    high: float
    default: float
    positive: bool = True
    """Whether only values above zero make physical sense."""


@dataclass(frozen=True)
class PlanningObjective:
    """What a planner maximizes over a rollout s_0, a_0, s_1, …, s_H.

    return = Σ_t alive_t · reward(s_t, a_t, s_{t+1}) + H · max_{0≤t≤H} progress(s_t),

    where alive_t is 0 from the step that ends in a terminal state on.
    """

    reward: RewardFn
    terminated: TerminationFn | None = None
    progress: ProgressFn | None = None
    max_reward: float | None = None
    """The largest reward of one step, if known: a search may stop at a rollout that earns it at every step."""


class System(Protocol):
    """B copies of a true system, each with its own covariates, stepped together. Not a Gymnasium environment."""

    num_copies: int

    def reset(self, rng: np.random.Generator) -> FloatArray:
        """Put every copy into an initial state; observations (B, D) float64."""
        ...

    def set_observations(self, observations: FloatArray) -> None:
        """Put the copies into the states that show the observations (B, D)."""
        ...

    def observe(self) -> FloatArray:
        """Return the current observations (B, D) float64."""
        ...

    def step(self, actions: Any) -> FloatArray:
        """Apply actions (B,) or (B, A); next observations (B, D) float64."""
        ...

    def branch(self, copies: Any) -> System:
        """Return an independent system whose i-th copy is an exact duplicate of copy ``copies[i]`` of this one."""
        ...


class Renderer(Protocol):
    """Draws a state."""

    def draw(self, observation: FloatArray) -> Any:
        """Draw the observation (D,): an image (height, width, 3) uint8, or None when shown on the screen."""
        ...

    def close(self) -> None:
        """Release the window or the graphics context."""
        ...


@dataclass(frozen=True, eq=False)
class Task:
    """A problem that many heterogeneous agents share: spaces, reward, termination, time limit, initial states.

    Made from spaces and two functions for a user's own problem; the built-in tasks also bring the true system.
    """

    name: str
    observation_space: spaces.Box
    action_space: spaces.Discrete | spaces.Box
    reward: RewardFn
    terminated: TerminationFn
    max_episode_steps: int
    observation_names: tuple[str, ...]
    planning_objective: PlanningObjective
    initial_observations: Callable[[np.random.Generator, int], FloatArray] | None = None
    """(rng, B) -> (B, D). Without it a simulator starts in the first states of its log."""
    covariates: tuple[Covariate, ...] = ()
    test_agents: tuple[tuple[float, ...], ...] = ()
    """Covariates of the agents every collected log begins with (SPEC: agents 0–4)."""
    policy_training_agents: tuple[tuple[float, ...], ...] = ()
    make_system: Callable[[FloatArray], System] | None = None
    """Covariates (B, K) -> the true system of B copies."""
    make_renderer: Callable[[FloatArray, str], Renderer] | None = None
    """(covariates (K,), render mode) -> renderer."""
    render_fps: int = 50

    @property
    def observation_size(self) -> int:
        """D."""
        return int(self.observation_space.shape[0])

    @property
    def discrete(self) -> bool:
        """Whether actions are indices."""
        return isinstance(self.action_space, spaces.Discrete)

    @property
    def action_size(self) -> int:
        """A: number of actions (discrete) or of action coordinates (continuous)."""
        if isinstance(self.action_space, spaces.Discrete):
            return int(self.action_space.n)
        return int(self.action_space.shape[0])

    @cached_property
    def _num_actions(self) -> int:
        """A for discrete actions, 0 for continuous ones."""
        return self.action_size if self.discrete else 0

    @property
    def action_bounds(self) -> tuple[FloatArray, FloatArray]:
        """Lower and upper bounds (A,) of continuous actions, float64."""
        if not isinstance(self.action_space, spaces.Box):
            raise InvalidArgumentError(f"the actions of task {self.name} are discrete and have no bounds")
        return self.action_space.low.astype(np.float64), self.action_space.high.astype(np.float64)

    @cached_property
    def covariate_names(self) -> tuple[str, ...]:
        """Names of the K covariates, in the order of every covariate array."""
        return tuple(covariate.name for covariate in self.covariates)

    @property
    def default_covariates(self) -> FloatArray:
        """(K,): the covariates of the textbook system."""
        return np.array([covariate.default for covariate in self.covariates], dtype=np.float64)

    def sample_covariates(self, rng: np.random.Generator, num_agents: int) -> FloatArray:
        """Draw (N, K) covariates: the test agents first, the others uniform and independent."""
        low = np.array([covariate.low for covariate in self.covariates])
        high = np.array([covariate.high for covariate in self.covariates])
        drawn = rng.uniform(low, high, size=(num_agents, len(self.covariates)))
        fixed = np.array(self.test_agents, dtype=np.float64).reshape(-1, len(self.covariates))[:num_agents]
        drawn[: len(fixed)] = fixed
        return drawn

    def covariate_vector(self, values: Mapping[str, float]) -> FloatArray:
        """Return (K,) covariates from named values; what is not named keeps its default."""
        unknown = sorted(set(values) - set(self.covariate_names))
        if unknown:
            raise UnknownNameError(
                f"task {self.name} has no covariate {unknown[0]!r}; it has {', '.join(self.covariate_names) or 'none'}"
            )
        vector = self.default_covariates
        for index, covariate in enumerate(self.covariates):
            vector[index] = self._check_covariate(covariate, values.get(covariate.name, covariate.default))
        return vector

    def check_covariates(self, covariates: Any) -> FloatArray:
        """Return covariates given by a user as float64 (N, K), or raise `InvalidArgumentError`."""
        rows = [list(np.atleast_1d(row)) for row in np.atleast_2d(covariates)]
        if any(len(row) != len(self.covariates) for row in rows):
            raise InvalidArgumentError(
                f"covariates of task {self.name} must have shape (agents, {len(self.covariates)}): "
                f"{', '.join(self.covariate_names)}"
            )
        checked = [[self._check_covariate(*pair) for pair in zip(self.covariates, row, strict=True)] for row in rows]
        return np.array(checked, dtype=np.float64).reshape(len(rows), len(self.covariates))

    def check_actions(self, actions: Any, count: int) -> Any:
        """Return a policy's actions for ``count`` observations as an array, or raise `InvalidActionError`."""
        array = np.asarray(actions)
        shape = (count,) if self.discrete else (count, self.action_size)
        if isinstance(self.action_space, spaces.Discrete):
            inside = (
                array.dtype.kind in "iu" and array.shape == shape and np.all((array >= 0) & (array < self.action_size))
            )
            wanted = f"whole numbers from 0 to {self.action_size - 1}"
        else:
            inside = array.dtype.kind in "fiu" and array.shape == shape and np.isfinite(array).all()
            wanted = "finite numbers"
        if not inside:
            raise InvalidActionError(f"actions of task {self.name} must be {wanted} of shape {shape}, got {actions!r}")
        return array

    def _check_covariate(self, covariate: Covariate, value: Any) -> float:
        wanted = "a finite number above 0" if covariate.positive else "a finite number"
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = float("nan")
        if not np.isfinite(number) or (covariate.positive and number <= 0):
            raise InvalidArgumentError(f"{covariate.name}={value} of task {self.name} must be {wanted}")
        return number

    def system(self, covariates: FloatArray) -> System:
        """Return the true system of B copies with covariates (B, K)."""
        if self.make_system is None:
            raise PerSimError(
                f"task {self.name} comes without a true system, so nothing can be collected or measured in it; "
                "give Task(make_system=...) if you have one"
            )
        return self.make_system(np.atleast_2d(np.asarray(covariates, dtype=np.float64)))

    def check_action(self, action: Any) -> Any:
        """Return a single action as an int or a float64 array (A,); a leading axis of length one is dropped."""
        if type(action) is int and 0 <= action < self._num_actions:  # nearly every step of a discrete environment
            return action
        array = np.asarray(action)
        if isinstance(self.action_space, spaces.Discrete):
            if array.size != 1 or array.dtype.kind not in "iu" or not 0 <= int(array.reshape(())) < self.action_space.n:
                raise InvalidActionError(
                    f"action {action!r} of task {self.name} must be one integer from 0 to {self.action_space.n - 1}"
                )
            return int(array.reshape(()))
        if array.size != self.action_size or array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise InvalidActionError(
                f"action {action!r} of task {self.name} must be {self.action_size} finite numbers, "
                f"shape {self.action_space.shape}"
            )
        return array.reshape(self.action_space.shape).astype(np.float64)

    def check_observation(self, observation: Any) -> FloatArray:
        """Return an observation given by a user as float64 (D,), or raise `InvalidStateError`."""
        try:
            array = np.asarray(observation, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise InvalidStateError(f"state {observation!r} of task {self.name} is not an array of numbers") from error
        if array.shape != (self.observation_size,):
            raise InvalidStateError(
                f"a state of task {self.name} has shape ({self.observation_size},): "
                f"{', '.join(self.observation_names)}; got shape {array.shape}"
            )
        if not np.isfinite(array).all():
            raise InvalidStateError(f"state {array.tolist()} of task {self.name} must be finite")
        return array
