"""The rows of a table: whose they are, where their episodes begin, and their columns as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np

from persim_gym.data.episode_bounds import begins_of
from persim_gym.errors import InvalidArgumentError, InvalidDataError
from persim_gym.interop.table_files import import_pandas
from persim_gym.user_warnings import warn_user

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
        elif agent not in frame.columns:
            raise InvalidDataError(
                f"the table has no column {agent!r} of agents; name it with agent=, or give single_agent='its label' "
                f"if all rows are of one agent. It has {', '.join(map(repr, frame.columns))}"
            )
        else:
            named = [str(label) for label in _column(frame, agent).tolist()]
        found = tuple(dict.fromkeys(named))
        self.labels = found if labels is None else tuple(map(str, labels))
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
            self._episodes = import_pandas().factorize(_column(frame, episode))[0]
        order = [name for name in (agent, episode, time) if name in frame.columns]
        self._hint = f"sort them first, table.sort_values({order}, kind='stable')"  # else equal keys lose their order

    def episode_starts(self, terminated: str | None, truncated: str | None, *, with_last: bool) -> np.ndarray:
        """Return the rows (E,) at which episodes begin; ``with_last`` as in `begins_of`."""
        keys = np.stack([self.agents, self._episodes], axis=1)
        change = np.ones(len(keys), bool)
        change[1:] = (keys[1:] != keys[:-1]).any(axis=1)
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
        spare = np.ones(len(change), bool) if with_last else None  # which rows are the last ones is not known yet
        ends = [
            np.zeros(len(change), bool) if name is None else flags(self._frame, name, spare)
            for name in (terminated, truncated)
        ]
        return begins_of(change, *ends, with_last=with_last)

    def checked_order(
        self, starts: np.ndarray, time: str, time_step: Any, *, split: bool, with_last: bool
    ) -> np.ndarray:
        """Return the episodes' first rows, after a check that ``time`` goes on step by step within each.

        With ``split`` episodes begin after gaps, too; ``with_last``, as in `begins_of`, needs two rows without one.
        """
        column = _clock(self._frame, time, time_step)
        inner = np.ones(len(column), bool)
        inner[starts] = False
        difference = column.diff()
        try:
            steps = (difference / time_step).to_numpy(np.float64)
        except TypeError as error:
            raise InvalidArgumentError(
                f"time_step={time_step!r} does not fit column {time!r}; for times give a pandas.Timedelta"
            ) from error
        steps = np.where(inner, steps, 1.0)
        rounding = 1e-6
        if column.dtype.kind == "f":  # seconds since 1970 tell no more than some ten millionths
            rounding = max(rounding, 4 * float(np.spacing(np.abs(column.to_numpy()).max())) / float(time_step))
        for wrong, message in (
            (steps == 0, "two rows have the same time; drop one of them or take their mean"),
            (steps < 0, f"rows are out of order; {self._hint}"),
        ):
            self._refuse(wrong, time, message)
        commonest = difference[inner].mode().iloc[0] if inner.any() else time_step
        commonest = f"pandas.Timedelta('{commonest}')" if column.dtype.kind in "Mm" else f"{commonest:.12g}"
        if inner.any() and not (np.abs(steps[inner] - 1) <= rounding).any() and (with_last or not split):
            raise InvalidDataError(
                f"no two rows are time_step={time_step!r} of {time!r} apart; the commonest difference is "
                f"time_step={commonest}: give that, or round the times first if they vary around a step"
            )
        self._refuse(
            steps < 1 - rounding,
            time,
            f"the step is less than time_step={time_step!r}; the commonest is {commonest}: round the times first, or "
            "leave the row out",
        )
        gaps = np.flatnonzero(steps > 1 + rounding)
        if not split:
            self._refuse(
                steps > 1 + rounding,
                time,
                f"steps are missing ({len(gaps)} such places); fill them in, or give gaps='split' to begin a new "
                "episode after each",
            )
        return np.union1d(starts, gaps)

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


def _clock(frame: Any, time: str, time_step: Any) -> Any:
    """Return a column of numbers or times whose differences ``time_step`` can measure."""
    column = _column(frame, time)
    if column.dtype.kind not in "iufMm":
        raise InvalidDataError(f"column {time!r} holds {column.iloc[0]!r}; give numbers or times (pandas.to_datetime)")
    if column.dtype.kind in "Mm" and isinstance(time_step, Real):
        raise InvalidArgumentError(f"column {time!r} holds times: give time_step=pandas.Timedelta('1h') or the like")
    try:
        forward = bool(time_step > type(time_step)(0))
    except (TypeError, ValueError):  # no length of time, such as None or a month, which may be of any
        forward = False
    if not forward:
        raise InvalidArgumentError(f"time_step={time_step!r} must be above 0: a number, or a pandas.Timedelta")
    if column.dtype.kind == "u":  # differences of numbers without a sign wrap around
        column = column.astype(np.float64)
    return column


def _column(frame: Any, name: str, spare: np.ndarray | None = None, hint: str | None = None) -> Any:
    """Return a column without missing values; in ``spare`` rows (T,), if given, any other value stands in for them.

    The error of one with missing values says what to do: ``hint``, if given.
    """
    if name not in frame.columns:
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
    """Return columns (T, …) of numbers; ``spare`` rows (T,) and ``hint`` are those of `_column`."""
    if isinstance(names, str):
        raise InvalidArgumentError(f"give a list of columns, [{names!r}]")
    columns = []
    for place, name in enumerate(names):
        if name in names[:place]:
            raise InvalidArgumentError(f"column {name!r} is given twice in {list(names)}")
        column = _column(frame, name, spare, hint)
        if column.dtype.kind not in "fiub":
            raise InvalidDataError(_no_number(name, column))
        columns.append(column.to_numpy(np.float32 if column.dtype == np.float32 else np.float64))
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
    given = _column(frame, name, spare)
    there = frame[name].notna().to_numpy()
    if given.dtype.kind not in "fiub":
        if not all(isinstance(value, (bool, np.bool_)) for value in given.tolist()):
            raise InvalidDataError(
                f"column {name!r} holds {given.iloc[0]!r}; it must hold true or false, or 1 or 0: "
                f"table[{name!r}].map({{'no': False, 'yes': True}}), with the column's own words"
            )
        return given.to_numpy(bool) & there
    column = numbers(frame, [name], spare)[:, 0]
    wrong = np.flatnonzero(~np.isin(column, (0, 1)))
    if len(wrong):
        raise InvalidDataError(
            f"column {name!r} holds {column[wrong[0]]:g} in row {wrong[0]}; it must hold true or false, or 1 or 0"
        )
    return column.astype(bool) & there


def one_column(role: str, name: Any) -> None:
    """Raise `InvalidArgumentError` if a list is given where a role has one column."""
    if isinstance(name, (list, tuple)):
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
