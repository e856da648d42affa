"""Parts of a log: the rows of some agents, and those that are held out to measure what others taught."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from persim_gym.arguments import checked_seed, finite_number, one_of
from persim_gym.data.columns import COLUMNS
from persim_gym.errors import InvalidArgumentError, InvalidDataError
from persim_gym.types import BoolArray, IntArray

if TYPE_CHECKING:
    from persim_gym.data.trajectories import Trajectories

PARTS = ("time", "episode", "agent")
"""By what a log can be split."""


def rows_of_agents(log: Trajectories, agents: IntArray) -> IntArray:
    """Return the rows (t,) of some agents (n,), the first one's first."""
    place = np.full(log.num_agents, len(agents))
    place[agents] = np.arange(len(agents))
    episodes = np.argsort(place[log.episode_agents], kind="stable")
    episodes = episodes[: np.isin(log.episode_agents, agents).sum()]
    lengths = log.episode_lengths[episodes]
    starts = np.cumsum(lengths) - lengths
    return np.repeat(log.episode_starts[episodes] - starts, lengths) + np.arange(lengths.sum())


def part_fields(log: Trajectories, rows: IntArray, agents: IntArray) -> dict[str, Any]:
    """Return what a part of a log has in other fields than the log.

    Args:
        log: the whole.
        rows: (t,) of the part; those of an episode stand together and in order.
        agents: (n,) indices of all agents who act in them, in the part's order.

    """
    place = np.empty(log.num_agents, np.int32)
    place[agents] = np.arange(len(agents))
    fields = {name: np.asarray(getattr(log, name)[rows]) for name in COLUMNS}
    episodes = np.searchsorted(log.episode_starts, rows, side="right")
    return {
        **fields,
        "agents": place[fields["agents"]],
        "episode_starts": np.flatnonzero(np.diff(episodes, prepend=0)),
        "agent_labels": tuple(log.agent_labels[agent] for agent in agents),
        "covariates": None if log.covariates is None else log.covariates[agents],
    }


def held_out_rows(log: Trajectories, fraction: Any, by: Any, seed: Any) -> BoolArray:
    """Return which rows (T,) `Trajectories.split` holds out; the arguments are its own, and are checked here."""
    seed = checked_seed(seed)
    if finite_number("fraction", fraction, 0, above=True) >= 1:
        raise InvalidArgumentError(f"fraction={fraction!r} must be above 0 and below 1")
    if one_of("by", by, PARTS) == "time":
        held, needed = _last_of_each(log.agents, fraction), "agent with several transitions"
    elif by == "episode":
        ends, needed = _last_of_each(log.episode_agents, fraction), "agent with several episodes"
        held = np.repeat(ends, log.episode_lengths)
    else:
        drawn, needed = np.random.default_rng(seed).permutation(log.num_agents), "second agent"
        held = _last_of_each(np.zeros(log.num_agents, int), fraction)[drawn][log.agents]
    if not held.any():
        raise InvalidDataError(f"nothing can be held out by={by!r}: the log has no {needed}; split it by another")
    return held


def cut_before(log: Trajectories, held: BoolArray) -> BoolArray:
    """Return which rows (T,) stand before the first row held out of their episode."""
    cut = np.zeros(len(held), bool)
    cut[:-1] = held[1:] & ~held[:-1]
    cut[log.episode_ends - 1] = False
    return cut


def _last_of_each(owners: IntArray, fraction: float) -> BoolArray:
    """Return which of some things (n,) are the last ``fraction`` of their owner's.

    It is rounded, but no owner of several has all or none among them, and the owner of one has none.
    """
    counts = np.bincount(owners)
    held = np.clip(np.rint(fraction * counts), 1, counts - 1)  # 0 of 1: the upper bound is the one that counts
    return turns(owners) >= (counts - held)[owners]


def turns(owners: IntArray) -> IntArray:
    """Return how many of some things (n,) with the same owner, an index, come before each."""
    order = np.argsort(owners, kind="stable")
    counts = np.bincount(owners)
    before = np.empty(len(owners), np.int64)
    before[order] = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
    return before
