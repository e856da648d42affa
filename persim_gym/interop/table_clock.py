"""The column of a table that tells when its rows were, and how far apart they are."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np

from persim_gym.errors import InvalidArgumentError, InvalidDataError
from persim_gym.interop.table_columns import column_of
from persim_gym.interop.table_files import import_pandas
from persim_gym.types import BoolArray


class Clock:
    """A column of numbers or times, and how far it goes on from each row to the next."""

    def __init__(self, frame: Any, column: str, time_step: Any) -> None:
        """Measure a column.

        Args:
            frame: the table.
            column: of numbers, times, or times as text in the form of ISO 8601.
            time_step: difference from row to row: a number, or a length of time, which may be text such as "1h".

        Raises:
            InvalidDataError: values that are neither numbers nor times.
            InvalidArgumentError: a step that is not above 0, or does not fit the column.

        """
        self.column, self.time_step = column, time_step
        step = _length_of_time(time_step) if isinstance(time_step, str) else time_step
        try:
            forward = bool(step > type(step)(0))
        except (TypeError, ValueError):  # no length of time, such as None or a month, which may be of any
            forward = False
        if not forward:
            raise InvalidArgumentError(
                f"time_step={time_step!r} must be above 0: a number or, for times, '1h' or the like"
            )
        times = _times(frame, column, as_numbers=isinstance(step, Real))
        self._differences, self._as_times = times.diff(), times.dtype.kind in "Mm"
        try:
            self.steps = (self._differences / step).to_numpy(np.float64)
        except TypeError as error:
            raise InvalidArgumentError(
                f"time_step={time_step!r} does not fit column {column!r}, which holds "
                f"{'times: give' if self._as_times else 'numbers: give a number, not'} a length of time"
            ) from error
        """(T,): how many steps a row is after the one before; NaN for the first."""
        self.rounding = 1e-6
        if times.dtype.kind == "f":  # seconds since 1970 tell no more than some ten millionths
            self.rounding = max(self.rounding, 4 * float(np.spacing(np.abs(times.to_numpy()).max())) / float(step))

    @property
    def gaps(self) -> BoolArray:
        """(T,): whether more than one step lies before a row."""
        return self.steps > 1 + self.rounding

    def commonest(self, rows: BoolArray) -> str:
        """Return the commonest difference before some of the rows (T,), as it can be given for ``time_step``."""
        if not rows.any():
            return repr(self.time_step)
        difference = self._differences[rows].mode().iloc[0]
        return repr(str(difference)) if self._as_times else f"{difference:.12g}"


def _length_of_time(text: str) -> Any:
    try:
        return import_pandas().Timedelta(text)
    except ValueError:
        return None


def _times(frame: Any, name: str, *, as_numbers: bool) -> Any:
    """Return a column whose differences a step, a number or a length of time, can measure."""
    column = column_of(frame, name)
    if column.dtype.kind in "Mm" and as_numbers:
        raise InvalidArgumentError(f"column {name!r} holds times: give time_step='1h' or the like")
    if column.dtype.kind == "u":  # differences of numbers without a sign wrap around
        return column.astype(np.float64)
    if column.dtype.kind in "ifMm":
        return column
    if as_numbers or column.dtype.kind == "b":
        raise InvalidDataError(
            f"column {name!r} holds {column.iloc[0]!r}; give numbers or, with time_step='1h' or the like, times"
        )
    times = import_pandas().to_datetime(column, format="ISO8601", utc=True, errors="coerce")
    wrong = np.flatnonzero(times.isna().to_numpy())
    if len(wrong):
        raise InvalidDataError(
            f"column {name!r} holds {column.iloc[int(wrong[0])]!r} in row {wrong[0]}, which is no time such as "
            f"2026-01-31 08:00 ({len(wrong)} such rows): read the table and convert them, "
            f"table[{name!r}] = pandas.to_datetime(table[{name!r}], format=…)"
        )
    return times
