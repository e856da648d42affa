"""Agents given by index or by label."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from persim_gym.errors import InvalidArgumentError, UnknownNameError
from persim_gym.types import IntArray


def find_agent(agent: int | str, labels: Sequence[str]) -> int:
    """Return the index of an agent given by index (int) or by label (str).

    Raises:
        UnknownNameError: no such agent.

    """
    if isinstance(agent, str):
        if agent in labels:
            return labels.index(agent)
        few = ", ".join(repr(label) for label in labels[:5])
        raise UnknownNameError(f"no agent is labelled {agent!r}; labels are {few}{', …' if len(labels) > 5 else ''}")
    if isinstance(agent, bool) or not isinstance(agent, (int, np.integer)) or not 0 <= agent < len(labels):
        raise UnknownNameError(
            f"no agent {agent!r}: agents are indices 0 … {len(labels) - 1} (int) or labels (str) such as {labels[0]!r}"
        )
    return int(agent)


def find_agents(agent: int | str | None, agents: Sequence[int | str] | None, labels: Sequence[str]) -> IntArray:
    """Return the index (1,) of one agent, or those (B,) of several: whichever of the two is given.

    Raises:
        InvalidArgumentError: both are given, or neither, or ``agents`` is no sequence.
        UnknownNameError: no such agent.

    """
    if agent is not None and agents is None:
        return np.array([find_agent(agent, labels)], np.int64)
    if agents is None or agent is not None:
        raise InvalidArgumentError(
            "give agent=, an index or a label, or agents=, a list of them, and only one of the two"
        )
    if isinstance(agents, str) or not isinstance(agents, Iterable):
        raise InvalidArgumentError(f"agents={agents!r} must be a list of indices or labels; one is given as agent=")
    return np.array([find_agent(one, labels) for one in agents], np.int64)


def known_agents(wanted: Sequence[str], labels: Sequence[str]) -> IntArray:
    """Return the indices (n,) in an ensemble's labels of a log's agents.

    Raises:
        UnknownNameError: one is not in the ensemble.

    """
    index = {label: place for place, label in enumerate(labels)}
    strangers = [label for label in wanted if label not in index]
    if strangers:
        raise UnknownNameError(
            f"agent {strangers[0]!r} is not in the ensemble ({len(strangers)} such agents); "
            "persim_gym.personalize adds newcomers"
        )
    return np.array([index[label] for label in wanted], np.int64)
