"""The labels of agents, and agents given by index or by label."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, overload

import numpy as np

from persim_gym.arguments import as_list
from persim_gym.errors import InvalidArgumentError, UnknownNameError
from persim_gym.types import IntArray
from persim_gym.user_warnings import warn_user


def label_text(agent: Any) -> str:
    """Return an agent's label as text: of a whole number that is a float, as pandas has them at times, without ".0"."""
    whole = isinstance(agent, (float, np.floating)) and float(agent).is_integer()
    return str(int(agent)) if whole else str(agent)


class NumberedLabels(Sequence[str]):
    """The labels "0", "1", … of N agents without names, as a sequence that costs nothing however many there are."""

    def __init__(self, count: int) -> None:
        self._numbers = range(count)

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        chosen = self._numbers[index]
        return str(chosen) if isinstance(chosen, int) else tuple(map(str, chosen))

    def __contains__(self, label: object) -> bool:
        return isinstance(label, str) and label.isdecimal() and str(int(label)) == label and int(label) in self._numbers

    def index(self, value: str, start: int = 0, stop: int | None = None) -> int:
        if value not in self:
            raise ValueError(f"{value!r} is not in the labels")
        return int(value)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, NumberedLabels):
            return self._numbers == other._numbers
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"NumberedLabels({len(self)})"


class AgentIndex(int):
    """An index that was found, not typed by a user, who could have meant the label of the same digits."""


def find_agent(agent: int | str, labels: Sequence[str]) -> AgentIndex:
    """Return the index of an agent given by index (int) or by label (str).

    Warns of an index whose digits are the label of another agent.

    Raises:
        UnknownNameError: no such agent.

    """
    index = _find(agent, labels)
    _warn_of_labels([agent], labels)
    return index


def _find(agent: int | str, labels: Sequence[str], places: Mapping[str, int] | None = None) -> AgentIndex:
    """Return the index of an agent without a warning; ``places``, if given, are those of all labels."""
    if isinstance(agent, str):
        if places is not None and agent in places:
            return AgentIndex(places[agent])
        if places is None and agent in labels:
            return AgentIndex(labels.index(agent))
        few = ", ".join(repr(label) for label in labels[:5])
        raise UnknownNameError(f"no agent is labelled {agent!r}; labels are {few}{', …' if len(labels) > 5 else ''}")
    if isinstance(agent, bool) or not isinstance(agent, (int, np.integer)) or not 0 <= agent < len(labels):
        raise UnknownNameError(
            f"no agent {agent!r}: agents are indices 0 … {len(labels) - 1} (int) or labels (str) such as {labels[0]!r}"
        )
    return AgentIndex(agent)


def _warn_of_labels(agents: Iterable[int | str], labels: Sequence[str]) -> None:
    """Warn of the first index that a user gave and that is the number in the label of another agent, "007" too."""
    typed = [one for one in agents if not isinstance(one, (str, AgentIndex))]
    doubtful = [one for one in typed if not (labels[one].isdecimal() and int(labels[one]) == one)]
    numbers = {int(label): label for label in labels if label.isdecimal()} if doubtful else {}
    taken = next((one for one in doubtful if one in numbers), None)
    if taken is not None:
        warn_user(
            f"agent {taken} is the one of index {taken}, labelled {labels[taken]!r}, and not the one labelled "
            f"{numbers[taken]!r}: if you mean that one, give its label, the text {numbers[taken]!r}",
            UserWarning,
        )


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
    return find_listed(agents, labels, distinct=False)


def find_listed(agents: Any, labels: Sequence[str], *, name: str = "agents", distinct: bool = True) -> IntArray:
    """Return the indices (n,) of agents given by a list of indices or labels; warns as `find_agent` does, but once.

    Args:
        agents: what a user gave.
        labels: the labels of all agents.
        name: name of the argument.
        distinct: whether there must be at least one agent, and none twice.

    Raises:
        InvalidArgumentError: no list, or, where they must be distinct, an empty one or one with an agent twice.
        UnknownNameError: no such agent.

    """
    given = as_list(name, agents, "indices or labels")
    several = sum(isinstance(one, str) for one in given) > 1 and not isinstance(labels, NumberedLabels)
    places = {label: place for place, label in enumerate(labels)} if several else None
    indices = np.array([_find(one, labels, places) for one in given], np.int64)
    _warn_of_labels(given, labels)
    if distinct and (len(given) == 0 or len(np.unique(indices)) < len(given)):
        _, first = np.unique(indices, return_index=True)
        twice = "" if len(given) == 0 else f": {given[np.setdiff1d(np.arange(len(given)), first)[0]]!r} is"
        raise InvalidArgumentError(f"{name}={reprlib.repr(given)} must name at least one agent, and none twice{twice}")
    return indices
