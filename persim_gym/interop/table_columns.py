"""The columns of a table as numbers and flags, or an error that says what to do about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from persim_gym.arguments import first_repeated
from persim_gym.errors import InvalidArgumentError, InvalidDataError
from persim_gym.interop.table_files import import_pandas


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
    columns = [_finite_numbers(frame, name, spare, hint) for name in names]
    if (twice := first_repeated(names)) is not None:  # all are names of columns here, and so hashable
        raise InvalidArgumentError(f"column {twice!r} is given twice in {list(names)}")
    return np.stack(columns, axis=1) if columns else np.zeros((len(frame), 0), np.float32)


def _finite_numbers(frame: Any, name: str, spare: np.ndarray | None, hint: str | None) -> np.ndarray:
    """Return one column (T,) of `numbers`, within float32's range."""
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
    return values


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
