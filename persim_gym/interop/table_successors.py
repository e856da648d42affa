"""Whether the state after an action is the one that the next row of the episode begins with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from persim_gym.errors import InvalidDataError
from persim_gym.user_warnings import warn_user

_ROUNDING = 1e-3
"""States that differ by less than this part of a coordinate's range are the same, however they were rounded."""


def check_successors(
    states: np.ndarray, following: np.ndarray, starts: np.ndarray, names: Sequence[str], next_names: Sequence[str]
) -> None:
    """Raise `InvalidDataError` if the columns after the action (T, D) are those before it, or in another order.

    Within an episode a coordinate after the action is what the same coordinate is before the next one. Warns if nothing
    ever changes, and where the state after the action is not the one that the next row begins with.
    """
    if list(names) == list(next_names):
        raise InvalidDataError(
            f"next_observations={list(next_names)} are the observations themselves: name the columns of the state "
            "after the action, or leave next_observations out"
        )
    if states.shape != following.shape:
        return
    if np.array_equal(states, following):
        warn_user(
            f"the columns {list(next_names)} after the action are in every row what {list(names)} are before it: a "
            "simulator learns from this that nothing ever changes",
        )
        return
    inner = np.setdiff1d(np.arange(1, len(states)), starts)
    later, told = states[inner], following[inner - 1]
    if len(inner) == 0:
        return
    for place in np.flatnonzero((later != told).any(axis=0) & (np.ptp(told, axis=0) > 0)).tolist():
        other = np.flatnonzero((later == told[:, [place]]).all(axis=0))
        if len(other):
            raise InvalidDataError(
                f"column {next_names[place]!r}, given as {names[place]!r} after the action, is what "
                f"{names[int(other[0])]!r} is in the next row: give next_observations in the order of observations"
            )
    _warn_of_breaks(states, following, inner, next_names)


def _warn_of_breaks(states: np.ndarray, following: np.ndarray, inner: np.ndarray, next_names: Sequence[str]) -> None:
    """Warn where rows ``inner``, which go on with an episode, begin in another state than the row before led to."""
    later, told, tolerance = states[inner], following[inner - 1], _ROUNDING * np.ptp(states, axis=0)
    broken = inner[(np.abs(later - told) > tolerance).any(axis=1)]
    if len(broken) == 0:
        return
    what = (
        f"the columns {list(next_names)} after the action are not what the next row of the episode has before it, in "
        f"row {broken[0] - 1} ({len(broken)} of {len(inner)} such rows)"
    )
    if (np.abs(following[inner] - states[inner - 1]) <= tolerance).all():
        warn_user(f"{what}, but what the row before has: shift them the other way, shift(-1)")
    else:
        warn_user(
            f"{what}: if an episode ends there, name its column (episode=); else look whether these rows belong "
            "together"
        )
