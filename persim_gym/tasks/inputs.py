"""`ChecksInputs`: which observations and actions a task has, and the check of those that users and policies give."""

from __future__ import annotations

import reprlib
from functools import cached_property
from typing import Any

import numpy as np
from gymnasium import spaces

from persim_gym.arguments import as_array
from persim_gym.errors import InvalidActionError, InvalidArgumentError, InvalidStateError
from persim_gym.tasks.spaces import outside
from persim_gym.types import FloatArray


class ChecksInputs:
    """What `Task` knows of observations and actions by its spaces alone."""

    name: str
    observation_space: spaces.Box
    action_space: spaces.Discrete | spaces.Box
    observation_names: tuple[str, ...]

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

        What is outside the observation space by rounding alone is brought back to its bound.

        Raises:
            InvalidStateError: no numbers of this shape that float32 holds, or outside the observation space.

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
        with np.errstate(over="ignore"):
            self.check_observations(given.astype(np.float32), *leading, finite=True, name="state")
        return np.clip(given, low, high)

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


def _has_shape(array: np.ndarray, shape: tuple[int | str, ...]) -> bool:
    """Whether an array has the axes of a shape, in which one named by a string may have any length."""
    return array.shape == shape or (
        array.ndim == len(shape)
        and all(isinstance(wanted, str) or wanted == length for wanted, length in zip(shape, array.shape, strict=True))
    )


def _shown(shape: tuple[int | str, ...]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
