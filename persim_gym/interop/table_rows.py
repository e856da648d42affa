"""The rows of a table: whose they are, where their episodes begin, and their columns as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from persim_gym.data.episode_bounds import begins_of
from persim_gym.data.labels import label_text
from persim_gym.errors import InvalidArgumentError, InvalidDataError
from persim_gym.interop.table_files import import_pandas
from persim_gym.user_warnings import warn_user

if TYPE_CHECKING:
    from persim_gym.interop.table_clock import Clock

_ROUNDING = 1e-3
"""States that differ by less than this part of a coordinate's range are the same, however they were rounded."""


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
        if single_agent is not None:
            joined = frame[agent].nunique() if list(frame.columns).count(agent) == 1 else 0
            if joined > 1:
                raise InvalidArgumentError(
                    f"column {agent!r} holds {joined} agents, which single_agent={single_agent!r} would join into one: "
                    f"leave it out or, if these are no agents, drop the column, table.drop(columns={agent!r})"
                )
            named = [single_agent] * len(frame)
        elif agent not in frame.columns.tolist():
            raise InvalidDataError(
                f"the table has no column {agent!r} of agents; name it with agent=, or give single_agent='its label' "
                f"if all rows are of one agent. It has {', '.join(map(repr, frame.columns))}"
            )
        else:
            named = [label_text(label) for label in column_of(frame, agent).tolist()]
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


def column_of(frame: Any, name: str, spare: np.ndarray | None = None, hint: str | None = None) -> Any:
    """Return a column without missing values; in ``spare`` rows (T,), if given, any other value stands in for them.

    The error of one with missing values says what to do: ``hint``, if given.
    """
    if name not in frame.columns.tolist():  # the index itself also has the names of whole levels
        raise InvalidDataError(f"the table has no column {name!r}; it has {', '.join(map(repr, frame.columns))}")
    if list(frame.columns).count(name) > 1:
        raise InvalidDataError(f"the table has several columns {name!r}: rename all but one")
    column = frame[name]
    absent = column.isna().to_numpy()
    missing = np.flatnonzero(absent if spare is None else absent & ~spare)
    if absent.all():
        raise InvalidDataError(f"column {name!r} has no value in any row: leave it out, or name another one")
    if len(missing) and hint is not None:
        raise InvalidDataError(f"column {name!r} has no value in row {missing[0]} ({len(missing)} such rows): {hint}")
    if len(missing):
        allowed = "" if spare is None else "; only the last row of an episode, which is dropped, may lack it"
        raise InvalidDataError(
            f"column {name!r} has no value in row {missing[0]} ({len(missing)} such rows): fill them in, or leave the "
            f"rows out and give time= and gaps='split', so that no transition goes across the gaps{allowed}"
        )
    if absent.any():
        places = np.where(absent, np.argmin(absent), np.arange(len(column)))
        return column.iloc[places].reset_index(drop=True)
    return column


def numbers(
    frame: Any, names: Sequence[str], spare: np.ndarray | None = None, *, hint: str | None = None
) -> np.ndarray:
    """Return columns (T, …) of numbers; ``spare`` rows (T,) and ``hint`` are those of `column_of`."""
    if isinstance(names, str):
        raise InvalidArgumentError(f"give a list of columns, [{names!r}]")
    columns = []
    for place, name in enumerate(names):
        if name in names[:place]:
            raise InvalidArgumentError(f"column {name!r} is given twice in {list(names)}")
        column = column_of(frame, name, spare, hint)
        if column.dtype.kind not in "fiub":
            raise InvalidDataError(_no_number(name, column))
        values = column.to_numpy(np.float32 if column.dtype == np.float32 else np.float64)
        wrong = np.flatnonzero(np.abs(values) > np.finfo(np.float32).max)
        if len(wrong):
            raise InvalidDataError(
                f"column {name!r} holds {values[wrong[0]]:g} in row {wrong[0]} ({len(wrong)} such rows), which is "
                "infinite or too large for float32: correct it, or make it missing"
            )
        columns.append(values)
    return np.stack(columns, axis=1) if columns else np.zeros((len(frame), 0), np.float32)


def _no_number(name: str, column: Any) -> str:
    """Say which value of a column is no number, or that all are, but kept as something else."""
    numbers = import_pandas().to_numeric(column.astype(str), errors="coerce")
    wrong = np.flatnonzero(numbers.isna().to_numpy())
    if len(wrong) == 0:
        return f"column {name!r} holds numbers as {column.dtype}; make it table[{name!r}].astype(float)"
    found = f"column {name!r} holds {column.iloc[int(wrong[0])]!r} in row {wrong[0]}, which is no number"
    if len(wrong) <= len(numbers) / 2:
        return (
            f"{found} ({len(wrong)} such rows): correct them or make them missing, "
            f"pandas.to_numeric(table[{name!r}], errors='coerce')"
        )
    if column.astype(str).str.fullmatch(r"[-+]?\d+,\d+").any():
        return f"{found}: read decimal commas with pandas.read_csv(..., sep=';', decimal=',')"
    return (
        f"{found}; states need one column of numbers for each category, actions their numbers, the same in every "
        f"table: pandas.Categorical(table[{name!r}], categories=[…, in a fixed order]).codes"
    )


def whole_numbers(frame: Any, name: str, spare: np.ndarray | None = None) -> np.ndarray:
    """Return a column (T,) of discrete actions; ``spare`` as in `numbers`."""
    column = numbers(frame, [name], spare)[:, 0]
    wrong = np.flatnonzero((column != np.floor(column)) | (column < 0) | (column >= 2**31))
    if len(wrong):
        raise InvalidDataError(
            f"column {name!r} holds {column[wrong[0]]} in row {wrong[0]}: discrete actions are whole numbers from 0 "
            f"on; for continuous ones give a list, action=[{name!r}]"
        )
    return column.astype(np.int64)


def flags(frame: Any, name: str, spare: np.ndarray | None = None) -> np.ndarray:
    """Return a column (T,) of truth values; in ``spare`` rows (T,), if given, a missing one is false."""
    given = column_of(frame, name, spare)
    there = frame[name].notna().to_numpy()
    if given.dtype.kind not in "fiub":
        truths = [isinstance(value, (bool, np.bool_)) for value in given.tolist()]
        if not all(truths):
            row = truths.index(False)
            raise InvalidDataError(
                f"column {name!r} holds {given.iloc[row]!r} in row {row}; it must hold true or false, or 1 or 0, as "
                f"numbers: table[{name!r}].map({{'no': False, 'yes': True}}), with the column's own words"
            )
        return given.to_numpy(bool) & there
    column = numbers(frame, [name], spare)[:, 0]
    wrong = np.flatnonzero(~np.isin(column, (0, 1)))
    if len(wrong):
        raise InvalidDataError(
            f"column {name!r} holds {column[wrong[0]]:g} in row {wrong[0]}; it must hold true or false, or 1 or 0"
        )
    return column.astype(bool) & there


def one_column(frame: Any, role: str, name: Any) -> None:
    """Raise `InvalidArgumentError` if a list is given where a role has one column, whose name may be a tuple."""
    if isinstance(name, (list, tuple)) and name not in frame.columns.tolist():
        raise InvalidArgumentError(f"{role}={name!r} must be the name of one column, such as {role}={name[0]!r}")


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
