"""What a task's rules may be, and whether a user's mean what they are to mean."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

from persim_gym.errors import InvalidArgumentError

if TYPE_CHECKING:
    from persim_gym.tasks.base import Task


class Point(np.ndarray):
    """A single state (D,) that gives ``[..., i]`` as a NumPy scalar, in half the time of an array without axes.

    The rules of most tasks look at one or two coordinates, which then costs less than the rest of a step.
    """

    def __getitem__(self, key: Any) -> Any:
        if type(key) is tuple and len(key) == 2 and key[0] is Ellipsis and type(key[1]) is int:
            key = key[1]
        return _item(self, key)


_item = np.ndarray.__getitem__
_LEADING = (2, 3)
"""Axes before the last: a reward that looks at ``states[0]`` sees another state than one that looks at its own."""


def never_terminated(next_observations: Any) -> Any:
    """Return False (…): of a task whose episodes end by their time limit, or of a log in which none ended otherwise."""
    first = next_observations[..., 0]
    return (first == 0) & (first != 0)  # of NumPy arrays and torch tensors alike


class TerminationRisk:
    """A `TerminationFn` that knows how likely an episode ends in a state, where it may end but need not.

    Called, it says whether this is more likely than not. Simulated episodes draw their end (`ended`), and planners
    weigh what comes later by the probability of getting there.
    """

    @abstractmethod
    def probability(self, next_observations: Any) -> Any:
        """Return the probability (…) that an episode ends in the state (…, D)."""

    def __call__(self, next_observations: Any) -> Any:
        return self.probability(next_observations) > 0.5


def ended(task: Task, next_observations: np.ndarray, rng: np.random.Generator) -> Any:
    """Return whether simulated episodes end in the states (…, D), as (…) booleans; a risk is drawn.

    Of a task that has a rule instead of a risk nothing is drawn.
    """
    rule = task.terminated
    if isinstance(rule, TerminationRisk):
        return rng.random(next_observations.shape[:-1]) < rule.probability(next_observations)
    return rule(next_observations)


def check_rules(task: Task) -> None:
    """Raise `InvalidArgumentError` unless a task's reward and termination give one value for each state of any batch.

    They are tried on made-up states within the observation space: in a batch, one by one, as an environment calls them,
    with a single state and a single action, and as planners do, with tensors. They must not write into what they are
    given.
    """
    rng = np.random.default_rng(0)
    space = task.observation_space
    before, after = (
        np.clip(rng.normal(size=(*_LEADING, task.observation_size)), space.low, space.high) for _ in range(2)
    )
    if isinstance(task.action_space, spaces.Discrete):
        actions = rng.integers(task.action_size, size=_LEADING)
    else:
        actions = rng.uniform(*task.action_bounds, size=(*_LEADING, task.action_size))
    for column in (before, actions, after):
        column.flags.writeable = False
    first = before[0, 0], task.executed_action(actions[0, 0]), after[0, 0].view(Point)
    if "reward" not in task.learned:
        _check(task, "reward", "iuf", task.reward, (before, actions, after), first)
    if "terminated" not in task.learned:
        _check(task, "terminated", "b", task.terminated, (after,), first[2:])


def _check(
    task: Task,
    name: str,
    kinds: str,
    rule: Callable[..., Any],
    columns: tuple[np.ndarray, ...],
    first: tuple[Any, ...],
) -> None:
    """Raise the error if a rule, given columns (2, 3, …), does not return (2, 3) values of these kinds of its rows."""
    advice = (
        f"{name} of task {task.name} must take states of any number of axes, the last one their coordinates, and "
        "return one value for each, as next_observations[..., 0] does"
    )
    if not callable(rule):
        raise InvalidArgumentError(f"{name}={rule!r} of task {task.name} must be a function")
    try:
        together = np.asarray(rule(*columns))
        alone = [np.asarray(rule(*(column[place] for column in columns))) for place in np.ndindex(*_LEADING)]
    except Exception as error:
        raise InvalidArgumentError(f"{advice}; given {_LEADING} of them it fails ({error!r})") from error
    try:
        float(rule(*first))
    except Exception as error:
        raise InvalidArgumentError(
            f"{advice}; given a single state{', and an action,' if len(first) > 1 else ''} as by an environment, it "
            f"fails ({error!r})"
        ) from error
    if together.shape != _LEADING or together.dtype.kind not in kinds:
        raise InvalidArgumentError(
            f"{advice}, {'a truth value' if kinds == 'b' else 'a number'}; given {_LEADING} of them it returns "
            f"{together.dtype} of shape {together.shape}"
        )
    if any(one.shape != () for one in alone) or not np.allclose(
        together.ravel(), np.array(alone, together.dtype), equal_nan=True
    ):
        raise InvalidArgumentError(f"{advice}; given {_LEADING} of them it returns others than for each alone")
    if not np.isfinite(together.astype(np.float64)).any():
        raise InvalidArgumentError(f"{advice}; given {_LEADING} of them it returns no finite number at all")
    _check_tensors(advice, rule, columns, together)


def _check_tensors(
    advice: str, rule: Callable[..., Any], columns: tuple[np.ndarray, ...], expected: np.ndarray
) -> None:
    """Raise the error if a rule does not return of tensors what it returns of arrays."""
    import torch  # which environments do without

    operators = (
        "planners call it with torch tensors, which abs(x), x ** 2, (x > 1) & (x < 2), 1.0 * (x > 1), x.sum(-1) and "
        "x.clip(0, 1) serve as well as arrays, but functions of NumPy do not"
    )
    try:
        found = rule(*(torch.tensor(column) for column in columns))
    except Exception as error:
        raise InvalidArgumentError(f"{advice}; given tensors it fails ({error!r}): {operators}") from error
    if not isinstance(found, torch.Tensor) or (found.dtype == torch.bool) != (expected.dtype == bool):
        kind = found.dtype if isinstance(found, torch.Tensor) else type(found).__name__
        raise InvalidArgumentError(f"{advice}; given tensors it returns {kind}: {operators}")
    if found.shape != expected.shape or not np.allclose(found.numpy(force=True), expected, rtol=1e-3, equal_nan=True):
        raise InvalidArgumentError(f"{advice}; given tensors it returns others than given arrays")
