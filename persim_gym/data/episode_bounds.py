"""Where the episodes of a user's arrays begin and end, and what each row's next observation is."""

from __future__ import annotations

from typing import Any

import numpy as np

from persim_gym.errors import InvalidDataError
from persim_gym.types import BoolArray, IntArray
from persim_gym.user_warnings import warn_user


def first_rows(
    starts: Any, agents: IntArray, terminated: BoolArray, truncated: BoolArray, *, with_last: bool = False
) -> IntArray:
    """Return the rows (E,) at which episodes begin; ``with_last`` as in `begins_of`.

    Raises:
        InvalidDataError: starts that cannot be; none given, and an agent goes on with an episode after rows of others.

    """
    if starts is not None:
        given = np.asarray(starts)
        if given.dtype.kind not in "iu" or given.ndim != 1:
            raise InvalidDataError(f"episode_starts must be whole numbers of shape (episodes,), got {starts!r}")
        check_starts(given, len(agents))
        return given.astype(np.int64)
    change = np.ones(len(agents), bool)
    change[1:] = agents[1:] != agents[:-1]
    _check_together(agents, change, terminated | truncated, with_last=with_last)
    return begins_of(change, terminated, truncated, with_last=with_last)


def _check_together(agents: IntArray, change: BoolArray, ended: BoolArray, *, with_last: bool) -> None:
    """Raise `InvalidDataError` where an agent comes back after rows of others, but its episode before was not over."""
    first = np.flatnonzero(change)
    last = np.append(first[1:], len(agents)) - 1
    over = ended[last] | (with_last & (last > first) & ended[last - 1])
    order = np.argsort(agents[first], kind="stable")  # agent by agent, each one's blocks of rows in their order
    goes_on = (agents[first][order][1:] == agents[first][order][:-1]) & ~over[order][:-1]
    if goes_on.any():
        row = int(first[order][1:][goes_on].min())
        raise InvalidDataError(
            f"row {row} goes on with an agent after rows of others, and its episode was not over: the rows of an "
            "episode must stand together; sort them first, numpy.argsort(agents, kind='stable'), or give "
            "episode_starts if each block of rows is an episode"
        )


def begins_of(change: BoolArray, terminated: BoolArray, truncated: BoolArray, *, with_last: bool) -> IntArray:
    """Return the rows (E,) at which episodes begin: those where whose they are changes (T,), and those after an end.

    Args:
        change: (T,) whether the row is of another agent, or of another of its episodes, than the one before.
        terminated: (T,) whether the row reached a terminal state.
        truncated: (T,) whether the episode was cut after the row.
        with_last: whether each row's next observation is the next row's. A single row after an ended one, and before a
            change, is then no episode, which has two rows at least, but holds the state in which the one before ended.

    Raises:
        InvalidDataError: ``with_last``, and more rows than that one after a terminated row: whether the next holds its
            terminal state or begins an episode, nothing tells. Episodes of a single row are refused elsewhere.

    """
    begins = change.copy()
    begins[1:] |= (terminated | truncated)[:-1]
    if not with_last:
        return np.flatnonzero(begins)
    starts = np.flatnonzero(begins & (change | ~np.append(change[1:], True)))
    several = np.diff(np.append(starts, len(begins))) > 1
    later = starts[1:][several[1:] & several[:-1]]
    unclear = later[terminated[later - 1] & ~change[later]]
    if len(unclear):
        raise InvalidDataError(
            f"row {unclear[0] - 1} is terminated, but its agent or episode goes on ({len(unclear)} such rows): without "
            "next_observations the row after a terminated one holds its terminal state and is the last of its episode; "
            "say where episodes begin (in a table episode=, in arrays episode_starts=), or give next_observations"
        )
    return starts


def check_starts(starts: IntArray, count: int) -> None:
    """Raise `InvalidDataError` unless episodes (E,) can begin at these rows of a log."""
    if len(starts) == 0 or starts[0] != 0 or np.any(np.diff(starts) <= 0) or starts[-1] >= count:
        raise InvalidDataError("episode_starts must begin with 0, ascend, and stay below the number of rows")


def cut_ends(terminated: BoolArray, starts: IntArray) -> BoolArray:
    """Return which rows (T,) end their episode without a terminal state."""
    truncated = np.zeros(len(terminated), bool)
    truncated[np.append(starts[1:], len(terminated)) - 1] = True
    return truncated & ~terminated


def with_successors(columns: dict[str, Any], starts: IntArray) -> tuple[dict[str, Any], IntArray]:
    """Take each row's successor as its next observation; the last row of each episode has none and goes."""
    count = len(columns["agents"])
    last = np.append(starts[1:], count) - 1
    alone = starts[last == starts]
    if len(alone):
        raise InvalidDataError(
            f"the episode at row {alone[0]} has a single row and no next observation ({len(alone)} such episodes); "
            "give next_observations, or leave these rows out"
        )
    lost = int(columns["terminated"][last].sum())
    if lost:
        warn_user(
            f"terminated is true in {lost} row{'s' * (lost > 1)} dropped at the end of an episode, for want of a "
            "next observation, so that these episodes end without a terminal transition: give next_observations "
            "or, if the marked row's own state is the terminal one, mark the row before it instead",
        )
    kept = np.ones(count, bool)
    kept[last] = False
    successors = columns["observations"][np.flatnonzero(kept) + 1]
    columns["truncated"] = columns["truncated"].copy()
    columns["truncated"][last - 1] |= ~columns["terminated"][
        last - 1
    ]  # how the dropped row ended is not how the row before it did
    shortened = {name: column[kept] for name, column in columns.items()}
    shortened["next_observations"] = successors
    return shortened, starts - np.arange(len(starts))
