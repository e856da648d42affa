"""Whether a user's reward and termination mean what a task's are to mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

from persim_gym.errors import InvalidArgumentError

if TYPE_CHECKING:
    from persim_gym.tasks.base import Task

_LEADING = (2, 3)
"""Axes before the last: a reward that looks at ``states[0]`` sees another state than one that looks at its own."""


def check_rules(task: Task) -> None:
    """Raise `InvalidArgumentError` unless a task's reward and termination give one value for each state of any batch.

    They are tried on made-up states within the observation space, in a batch and one by one.
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
    if "reward" not in task.learned:
        _check(task, "reward", "iuf", task.reward, before, actions, after)
    if "terminated" not in task.learned:
        _check(task, "terminated", "b", task.terminated, after)


def _check(task: Task, name: str, kinds: str, rule: Callable[..., Any], *columns: np.ndarray) -> None:
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
    if together.shape != _LEADING or together.dtype.kind not in kinds:
        raise InvalidArgumentError(
            f"{advice}, {'a truth value' if kinds == 'b' else 'a number'}; given {_LEADING} of them it returns "
            f"{together.dtype} of shape {together.shape}"
        )
    if any(one.shape != () for one in alone) or not np.allclose(
        together.ravel(), np.array(alone, together.dtype), equal_nan=True
    ):
        raise InvalidArgumentError(f"{advice}; given {_LEADING} of them it returns others than for each alone")
