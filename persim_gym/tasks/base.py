"""`Task`: everything that is known about a problem without learning."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
from gymnasium import spaces

from persim_gym.arguments import as_array, whole_number
from persim_gym.errors import (
    InvalidActionError,
    InvalidArgumentError,
    InvalidStateError,
    PerSimError,
    UnknownNameError,
)
from persim_gym.tasks.covariate import Covariate
from persim_gym.tasks.declared import check_declared
from persim_gym.tasks.names import telling, usual_names
from persim_gym.tasks.objective import TO_LEARN, PlanningObjective, RewardFn, TerminationFn, ToLearn
from persim_gym.tasks.spaces import as_float32, check_spaces, outside, space_from_json, space_to_json
from persim_gym.tasks.system import Renderer, System
from persim_gym.types import FloatArray


@dataclass(frozen=True, eq=False)
class Task:
    """A problem that many heterogeneous agents share: spaces, reward, termination, time limit, initial states.

    For your own problem, give the spaces, a time limit and, if you know them, the reward and termination functions;
    `persim_gym.fit` learns whichever is left out. The built-in tasks also have the true system.
    """

    name: str
    """Ids are made of it, ``PerSim-<name>-agent0-v0``, if it has only letters, digits, "_", "-" and "."."""
    observation_space: spaces.Box
    """With one axis (D,); made float32."""
    action_space: spaces.Discrete | spaces.Box
    """Discrete from 0 on, or a Box with one axis (A,), made float32."""
    max_episode_steps: int
    """Steps after which an episode is truncated."""
    reward: RewardFn = TO_LEARN
    """(observations (…, D), actions (…) or (…, A), next_observations (…, D)) -> (…), of NumPy arrays and of tensors.
    Wherever the package asks for it, the actions are those that were carried out (`executed`)."""
    terminated: TerminationFn = TO_LEARN
    """next_observations (…, D) -> (…) booleans, of NumPy arrays and of tensors."""
    observation_names: tuple[str, ...] = ()
    """(D,); those of the log that it is learned from or, if that has none, "observation 0", … if not given."""
    action_names: tuple[str, ...] = ()
    """(A,), or the one name of discrete actions; as the log has them or "action 0", …, or "action", if not given."""
    planning_objective: PlanningObjective | None = None
    """What planners maximize instead of the return. Read `objective`, which is the return if this is None."""
    initial_observations: Callable[[np.random.Generator, int], FloatArray] | None = None
    """(rng, B) -> (B, D). Without it a simulator starts in the first states of its log."""
    grid_bounds: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    """(low (D,), high (D,)) of the states that value iteration covers; those of the observation space if not given."""
    covariates: tuple[Covariate, ...] = ()
    """What agents differ in, in the order of every array of covariates."""
    test_agents: tuple[tuple[float, ...], ...] = ()
    """Covariates of the agents every collected log begins with, agents 0, 1, …"""
    policy_training_agents: tuple[tuple[float, ...], ...] = ()
    """Covariates of the agents that the shipped logging policies were trained on."""
    make_system: Callable[[FloatArray], System] | None = None
    """Covariates (B, K) -> the true system of B copies."""
    make_renderer: Callable[[FloatArray, str], Renderer] | None = None
    """(covariates (K,), render mode) -> renderer."""
    render_fps: int = 50
    """Pictures a second."""
    reference: str | None = None
    """Where a process that does not know the task imports it from: "module:attribute". Kept in the files of ensembles,
    so that they can be loaded there although functions are in no file."""

    def __post_init__(self) -> None:
        check_spaces(self.observation_space, self.action_space)
        for name in ("observation_space", "action_space"):
            object.__setattr__(self, name, as_float32(getattr(self, name)))
        for what, usual in usual_names(self.observation_size, None if self.discrete else self.action_size).items():
            object.__setattr__(self, what, telling(what, getattr(self, what)) or usual)
        check_declared(self)
        self.limit_of(self.max_episode_steps)

    def __repr__(self) -> str:
        sizes = (
            f"{self.observation_size} observations, {self.action_size} {'' if self.discrete else 'continuous '}actions"
        )
        learned = f", {' and '.join(self.learned)} to be learned" if self.learned else ""
        return f"Task({self.name}: {sizes}, {self.max_episode_steps} steps{learned})"

    @property
    def given_names(self) -> dict[str, tuple[str, ...]]:
        """The "observation_names" and "action_names", () where they say no more than a number."""
        return {what: telling(what, getattr(self, what)) for what in ("observation_names", "action_names")}

    def named_as(self, names: Mapping[str, Sequence[str]]) -> Task:
        """Return the task with the ``given_names`` of something else where it has none; itself if that has none.

        Names of more or fewer coordinates than it has are not taken.
        """
        told = {what: telling(what, names.get(what, ())) for what, own in self.given_names.items() if not own}
        new = {what: found for what, found in told.items() if len(found) == len(getattr(self, what))}
        return replace(self, **new) if new else self

    @property
    def objective(self) -> PlanningObjective:
        """What planners maximize: the planning objective, or the return, the rewards up to the terminal state."""
        return self.planning_objective or PlanningObjective(self.reward, self.terminated)

    @property
    def has_own_functions(self) -> bool:
        """Whether the task has Python functions, which cannot be stored in a file."""
        return bool(self.functions)

    @property
    def functions(self) -> tuple[str, ...]:
        """Which of its fields no file holds: functions of its own, and what is made of them."""
        given = ("planning_objective", "initial_observations", "make_system", "make_renderer")
        own = [name for name in ("reward", "terminated") if name not in self.learned]
        return (*own, *(name for name in given if getattr(self, name) is not None))

    @property
    def learned(self) -> tuple[str, ...]:
        """Which of "reward" and "terminated" are to be learned from the log."""
        return tuple(name for name in ("reward", "terminated") if isinstance(getattr(self, name), ToLearn))

    def limit_of(self, max_episode_steps: int | None) -> int:
        """Return the time limit of an episode: the task's if None.

        Raises:
            InvalidArgumentError: it is not a whole number of at least 1.

        """
        limit = self.max_episode_steps if max_episode_steps is None else max_episode_steps
        return whole_number("max_episode_steps", limit)

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

    @property
    def action_shape(self) -> tuple[int, ...]:
        """(), or (A,) if actions are continuous."""
        return () if self.discrete else (self.action_size,)

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
        fixed = np.array(self.test_agents, dtype=np.float64).reshape(len(self.test_agents), len(self.covariates))
        fixed = fixed[:num_agents]
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
            vector[index] = covariate.checked(values.get(covariate.name, covariate.default), self.name)
        return vector

    def check_covariates(self, covariates: Any) -> FloatArray:
        """Return covariates given by a user as float64 (N, K), or raise `InvalidArgumentError`."""
        try:
            rows = [list(np.atleast_1d(row)) for row in np.atleast_2d(covariates)]
        except ValueError:  # rows of different lengths
            rows = [[]]
        if any(len(row) != len(self.covariates) for row in rows):
            raise InvalidArgumentError(
                f"covariates of task {self.name} must have shape (agents, {len(self.covariates)}): "
                f"{', '.join(self.covariate_names)}"
            )
        checked = [
            [covariate.checked(value, self.name) for covariate, value in zip(self.covariates, row, strict=True)]
            for row in rows
        ]
        return np.array(checked, dtype=np.float64).reshape(len(rows), len(self.covariates))

    def system(self, covariates: FloatArray) -> System:
        """Return the true system of B copies with covariates (B, K)."""
        if self.make_system is None:
            raise PerSimError(
                f"task {self.name} comes without a true system, so nothing can be collected or measured in it; "
                "give Task(make_system=...) if you have one"
            )
        return self.make_system(np.atleast_2d(np.asarray(covariates, dtype=np.float64)))

    def check_observations(
        self,
        observations: Any,
        *leading: int | str,
        dtype: Any = np.float32,
        least: int = 0,
        finite: bool = False,
        name: str = "observations",
    ) -> FloatArray:
        """Return observations given by a user as an array (*leading, D).

        Args:
            observations: numbers.
            *leading: the leading axes: a number for a fixed length, a name such as "B" for any length.
            dtype: of the array.
            least: length that every axis has at least.
            finite: whether infinity and NaN are refused.
            name: of what is given, for the messages.

        Raises:
            InvalidStateError: no numbers, or not of this shape, or not finite.

        """
        shape = (*leading, self.observation_size)
        try:
            array = as_array(observations, dtype)
        except ValueError as error:
            raise InvalidStateError(
                f"{name} of task {self.name} must be numbers of shape {_shown(shape)}; "
                f"{reprlib.repr(observations)} is not an array of numbers: {error}"
            ) from error
        if not _has_shape(array, shape) or min(array.shape) < least:
            names = "" if leading else f": {', '.join(self.observation_names)}"
            enough = f" with every axis at least {least}" if least else ""
            raise InvalidStateError(
                f"{name} of task {self.name} must have shape {_shown(shape)}{names}{enough}; got shape {array.shape}"
            )
        if finite and not np.isfinite(array).all():
            place = tuple(np.argwhere(~np.isfinite(array))[0])
            raise InvalidStateError(
                f"{name} of task {self.name} must be finite, got {array[place]} as {self.observation_names[place[-1]]}"
            )
        return array

    def check_states(self, states: Any, *leading: int | str) -> FloatArray:
        """Return states to begin in, given by a user, as an array of their own, float64 (*leading, D).

        Raises:
            InvalidStateError: no finite numbers of this shape, or outside the observation space by more than rounding.

        """
        given = self.check_observations(states, *leading, dtype=np.float64, finite=True, name="state").copy()
        low, high = self.observation_space.low, self.observation_space.high
        beyond = outside(given, self.observation_space)
        if beyond.any():
            place = tuple(np.argwhere(beyond)[0])
            raise InvalidStateError(
                f"{self.observation_names[place[-1]]} = {given[place]:.6g} is outside its range from "
                f"{low[place[-1]]:.6g} to {high[place[-1]]:.6g} in task {self.name}'s observation_space: correct the "
                "state, or widen the space"
            )
        return given

    def draw_initial_observations(self, rng: np.random.Generator, count: int) -> FloatArray:
        """Draw states to begin in, float64 (B, D), from the task's own distribution.

        Raises:
            InvalidArgumentError: the task has none.
            InvalidStateError: its `initial_observations` returns no such states.

        """
        if self.initial_observations is None:
            raise InvalidArgumentError(f"task {self.name} has no initial states of its own; use starts='log'")
        drawn = self.initial_observations(rng, count)
        try:
            return self.check_states(drawn, count)
        except InvalidStateError as error:
            raise InvalidStateError(
                f"initial_observations of task {self.name} must return start states, {count} at this call: {error}"
            ) from error

    def check_actions(self, actions: Any, *leading: int | str) -> np.ndarray:
        """Return actions given by a user or chosen by a policy as an array (*leading,) or (*leading, A).

        Args:
            actions: whole numbers, which become int64, or finite ones where actions are continuous, which keep their
                type.
            *leading: the axes before an action's own, as in `check_observations`.

        Raises:
            InvalidActionError: no such numbers, or not of this shape, or outside a discrete space.

        """
        shape = (*leading, *self.action_shape)
        try:
            array = as_array(actions)
        except ValueError as error:
            raise self._no_actions(shape, f"{reprlib.repr(actions)}: {error}") from error
        discrete = self._num_actions > 0
        if array.dtype.kind not in ("iu" if discrete else "fiu") or not _has_shape(array, shape):
            raise self._no_actions(shape, f"{reprlib.repr(actions)}, {array.dtype} of shape {array.shape}")
        if discrete and array.size and not 0 <= array.min() <= array.max() < self._num_actions:
            raise self._no_actions(shape, f"{array.min()} to {array.max()}")
        if not discrete and not np.isfinite(array).all():
            raise self._no_actions(shape, f"{array[~np.isfinite(array)][0]} among them")
        # What a system or a reward computes with an unsigned action, such as action - 1, would wrap around.
        return array.astype(np.int64, copy=False) if discrete else array

    def executed(self, actions: Any, *leading: int | str) -> np.ndarray:
        """Return actions as they are carried out: checked, and continuous ones brought within their bounds.

        Whoever acts, in a true system or a simulated one, gives an action, and it is the one carried out that moves
        the system, is recorded and is rewarded.

        Args:
            actions: as for `check_actions`; those within the bounds stay as they are.
            *leading: the axes before an action's own, as in `check_observations`.

        Raises:
            InvalidActionError: as by `check_actions`.

        """
        array = self.check_actions(actions, *leading)
        if isinstance(self.action_space, spaces.Discrete):
            return array
        return np.clip(array, self.action_space.low, self.action_space.high)

    def _no_actions(self, shape: tuple[int | str, ...], got: str) -> InvalidActionError:
        wanted = f"whole numbers from 0 to {self.action_size - 1}" if self.discrete else "finite numbers"
        return InvalidActionError(f"actions of task {self.name} must be {wanted} of shape {_shown(shape)}, got {got}")

    def executed_action(self, action: Any) -> Any:
        """Return a single action as it is carried out, an int or a float64 array (A,) within the bounds.

        A leading axis of length one is dropped.

        Raises:
            InvalidActionError: no such action.

        """
        if type(action) is int and 0 <= action < self._num_actions:  # nearly every step of a discrete environment
            return action
        if isinstance(action, (np.integer, np.ndarray)) and action.shape == () and action.dtype.kind in "iu":
            return self.executed_action(int(action))
        try:
            array = self.executed(as_array(action).reshape(self.action_shape))
        except ValueError as error:  # of another size, or as `executed` says
            wanted = f"one integer from 0 to {self.action_size - 1}"
            if not self.discrete:
                wanted = f"{self.action_size} finite numbers, shape {self.action_shape}"
            raise InvalidActionError(f"action {action!r} of task {self.name} must be {wanted}") from error
        return int(array) if self.discrete else array.astype(np.float64)

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold of the task: all but its functions, of which it has the names."""
        return {
            "name": self.name,
            "observation_space": space_to_json(self.observation_space),
            "action_space": space_to_json(self.action_space),
            "max_episode_steps": int(self.max_episode_steps),
            "observation_names": list(self.observation_names),
            "action_names": list(self.action_names),
            "grid_bounds": self.grid_bounds,
            "covariates": [asdict(covariate) for covariate in self.covariates],
            "test_agents": self.test_agents,
            "policy_training_agents": self.policy_training_agents,
            "render_fps": self.render_fps,
            "learned": list(self.learned),
            "functions": list(self.functions),
            "reference": self.reference,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Task:
        """Return the task that `to_json` wrote, with a reward and a termination that are learned."""
        return cls(
            name=document["name"],
            observation_space=cast(spaces.Box, space_from_json(document["observation_space"])),
            action_space=space_from_json(document["action_space"]),
            max_episode_steps=document["max_episode_steps"],
            observation_names=tuple(document["observation_names"]),
            action_names=tuple(document.get("action_names", ())),
            covariates=tuple(Covariate(**covariate) for covariate in document["covariates"]),
            reference=document["reference"],
            grid_bounds=None if document["grid_bounds"] is None else _rows(document["grid_bounds"]),
            test_agents=_rows(document["test_agents"]),
            policy_training_agents=_rows(document["policy_training_agents"]),
            render_fps=document["render_fps"],
        )


def _rows(lists: Sequence[Sequence[float]]) -> Any:
    return tuple(tuple(row) for row in lists)


def _has_shape(array: np.ndarray, shape: tuple[int | str, ...]) -> bool:
    """Whether an array has the axes of a shape, in which one named by a string may have any length."""
    return array.shape == shape or (
        array.ndim == len(shape)
        and all(isinstance(wanted, str) or wanted == length for wanted, length in zip(shape, array.shape, strict=True))
    )


def _shown(shape: tuple[int | str, ...]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
