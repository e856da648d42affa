"""The rows of a table: whose they are, and where their episodes begin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from persim_gym.data.episode_bounds import begins_of
from persim_gym.data.labels import label_text
from persim_gym.errors import InvalidArgumentError, InvalidDataError
from persim_gym.interop.table_columns import column_of, flags, numbers
from persim_gym.interop.table_files import import_pandas

if TYPE_CHECKING:
    from persim_gym.interop.table_clock import Clock


class TableRows:
    """Whose the rows are, and where their episodes begin."""

    def __init__(
        self,
        frame: Any,
        agent: str,
        single_agent: str | None,
        labels: Sequence[str] | None,
        episode: str | None,
        time: str | None,
    ) -> None:
        self._frame = frame
        named = _labels_of_rows(frame, agent, single_agent)
        found = tuple(dict.fromkeys(named))
        self.labels = found if labels is None else tuple(map(label_text, labels))
        position = {label: index for index, label in enumerate(self.labels)}
        strangers = [label for label in found if label not in position]
        if strangers:
            raise InvalidDataError(f"the table has agent {strangers[0]!r}, which agent_labels lacks")
        idle = sorted(position.keys() - set(found), key=position.__getitem__)
        if idle:
            raise InvalidDataError(f"agent {idle[0]!r} has no transition: leave it out of agent_labels")
        self.agents = np.array([position[label] for label in named], np.int64)
        self._episodes = np.zeros(len(frame), np.int64)
        if episode is not None:
            self._episodes = import_pandas().factorize(column_of(frame, episode))[0]
        order = [name for name in (agent, episode, time) if name in frame.columns.tolist()]
        self._hint = f"sort them first, table.sort_values({order}, kind='stable')"  # else equal keys lose their order
        several = "if another episode begins there, name a column that tells an agent's episodes apart, episode=; else "
        self._or_episode = "" if episode is not None else several

    def episode_starts(
        self, terminated: str | None, truncated: str | None, clock: Clock | None, *, split: bool, with_last: bool
    ) -> np.ndarray:
        """Return the rows (E,) at which episodes begin, after a check that each goes on step by step.

        Args:
            terminated: column of flags.
            truncated: column of flags.
            clock: which tells the order of the rows, if one does.
            split: whether an episode begins where steps are missing, which is refused otherwise.
            with_last: as in `begins_of`.

        """
        keys = np.stack([self.agents, self._episodes], axis=1)
        change = np.ones(len(keys), bool)
        change[1:] = (keys[1:] != keys[:-1]).any(axis=1)
        self._check_together(keys, change)
        gaps = np.zeros(len(keys), bool) if clock is None or not split else clock.gaps & ~change
        spare = np.ones(len(change), bool) if with_last else None  # which rows are the last ones is not known yet
        ends = [
            np.zeros(len(change), bool) if name is None else flags(self._frame, name, spare)
            for name in (terminated, truncated)
        ]
        starts = begins_of(change | gaps, *ends, with_last=with_last)
        if clock is not None:
            inner = np.ones(len(keys), bool)
            inner[starts] = False
            self._check_order(clock, inner | gaps, split=split, with_last=with_last)
        return starts

    def _check_together(self, keys: np.ndarray, change: np.ndarray) -> None:
        """Raise `InvalidDataError` where rows of others stand between those of one agent's episode, its key (T, 2)."""
        blocks = keys[change]
        if len(np.unique(blocks, axis=0)) < len(blocks):
            seen: set[tuple[int, ...]] = set()
            for row, key in zip(np.flatnonzero(change), map(tuple, blocks), strict=True):
                if key in seen:
                    raise InvalidDataError(
                        f"row {row} goes on with agent {self.labels[key[0]]!r} after rows of others: the rows of an "
                        f"episode must stand together; {self._hint}"
                    )
                seen.add(key)

    def _check_order(self, clock: Clock, inner: np.ndarray, *, split: bool, with_last: bool) -> None:
        """Raise `InvalidDataError` unless each row that goes on with an episode (T,) is a step after the one before.

        With ``split`` it may be later; ``with_last``, as in `begins_of`, needs two rows that are not.
        """
        steps = np.where(inner, clock.steps, 1.0)
        for wrong, message in (
            (steps == 0, f"two rows have the same time; {self._or_episode}drop one of them or take their mean"),
            (steps < 0, f"rows are out of order; {self._or_episode}{self._hint}"),
        ):
            self._refuse(wrong, clock.column, message)
        commonest = clock.commonest(inner)
        exact = np.abs(steps[inner] - 1) <= clock.rounding
        if inner.any() and not exact.any() and (with_last or not split):
            raise InvalidDataError(
                f"no two rows are time_step={clock.time_step!r} of {clock.column!r} apart; the commonest difference is "
                f"time_step={commonest}: give that, or round the times first if they vary around a step"
            )
        self._refuse(
            steps < 1 - clock.rounding,
            clock.column,
            f"the step is less than time_step={clock.time_step!r}; the commonest is {commonest}: round the times "
            "first, or leave the row out",
        )
        missing = inner & clock.gaps
        if not split:
            self._refuse(
                missing,
                clock.column,
                f"steps are missing ({missing.sum()} such places); fill them in, or give gaps='split' to begin a new "
                "episode after each",
            )

    def constants(self, names: Sequence[str]) -> np.ndarray:
        """Return covariates (N, K), which have one value for each agent."""
        hint = "fill it in for this agent in all rows, or leave the covariate, or the agent, out"
        values = numbers(self._frame, names, hint=hint).astype(np.float64)
        first = np.unique(self.agents, return_index=True)[1]
        differs = np.argwhere(values != values[first][self.agents])
        if len(differs):
            row, column = differs[0]
            label = self.labels[self.agents[row]]
            raise InvalidDataError(
                f"covariate {names[column]!r} of agent {label!r} is {values[first][self.agents][row, column]} at first "
                f"and {values[row, column]} in row {row}; a property that changes is an observation"
            )
        return values[first]

    def _refuse(self, wrong: np.ndarray, time: str, message: str) -> None:
        """Raise `InvalidDataError` with the first step of ``time`` that is wrong (T,)."""
        if wrong.any():
            row = int(np.argmax(wrong))
            before, after = self._frame[time].iloc[row - 1], self._frame[time].iloc[row]
            label = self.labels[self.agents[row]]
            raise InvalidDataError(f"{time!r} of agent {label!r} goes from {before} to {after} in row {row}: {message}")


def _labels_of_rows(frame: Any, agent: str, single_agent: str | None) -> list[str]:
    """Return the label of each row's agent, by the column of agents or, without one, the only agent's."""
    if single_agent is not None:
        joined = frame[agent].nunique() if list(frame.columns).count(agent) == 1 else 0
        if joined > 1:
            raise InvalidArgumentError(
                f"column {agent!r} holds {joined} agents, which single_agent={single_agent!r} would join into one: "
                f"leave it out or, if these are no agents, drop the column, table.drop(columns={agent!r})"
            )
        return [single_agent] * len(frame)
    if agent not in frame.columns.tolist():
        raise InvalidDataError(
            f"the table has no column {agent!r} of agents; name it with agent=, or give single_agent='its label' "
            f"if all rows are of one agent. It has {', '.join(map(repr, frame.columns))}"
        )
    return [label_text(label) for label in column_of(frame, agent).tolist()]
