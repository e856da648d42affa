"""A user's arrays made into the columns of a log, or an error that says what is wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from persim_gym.arguments import as_array, as_list, first_repeated
from persim_gym.data.labels import label_text
from persim_gym.errors import InvalidDataError
from persim_gym.types import BoolArray, FloatArray, IntArray

if TYPE_CHECKING:
    pass

CHUNK = 1_000_000
"""Rows of a column that are looked at together: a memory-mapped one may be larger than memory."""
_LEAST_RESOLUTION = 4
"""Steps of float32 that a coordinate's usual change must span."""
_LARGEST_BLUR = 0.1
"""Of their deviation from the mean that the rounding of numbers to float32 may have."""
_SAME = 1e-11
"""Of the largest number: those that differ by less are the same, however they were computed."""
_LEAST_CHANGE = 1e-6
"""Of a coordinate's largest change: less is the drift of a system at rest, which nobody needs to tell apart."""


def numbers(name: str, values: Any, axes: int, count: int | None = None) -> FloatArray:
    """Return numbers as float32 with so many axes, finite."""
    if values is None:
        raise InvalidDataError(f"{name} is not given")
    array = _array(name, values, "numbers")
    if array.dtype.kind in "cMm":
        raise InvalidDataError(f"{name} must be real numbers, got {array.dtype}")
    try:
        with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, which is refused below
            array = array.astype(np.float32)  # a copy: the caller may use its own array again
    except (TypeError, ValueError) as error:
        raise InvalidDataError(f"{name} must be numbers; {error}") from error
    if array.ndim != axes:
        raise InvalidDataError(f"{name} must have {axes} axes, got shape {array.shape}")
    if count is not None and len(array) != count:
        raise InvalidDataError(f"{name} has {len(array)} rows, observations has {count}")
    check_finite(name, array, values)
    return array


def told_apart(name: str, values: Any, axes: int, count: int) -> FloatArray:
    """Return numbers as `numbers` does, or raise `InvalidDataError` where float32 blurs how they differ."""
    kept, given = numbers(name, values, axes, count), np.asarray(values)
    if given.dtype == np.float32:
        return kept
    exact = given.astype(np.float64)
    deviation, error = exact.std(axis=0), np.abs(kept - exact).max(axis=0)
    differ = np.ptp(exact, axis=0) > _SAME * np.abs(exact).max(axis=0)
    blurred = np.flatnonzero(np.atleast_1d(differ & (error > _LARGEST_BLUR * deviation)))
    if len(blurred):
        column = int(blurred[0])
        where, steps = f" coordinate {column}" if axes > 1 else "", np.atleast_1d(error)[column]
        raise InvalidDataError(
            f"{name}{where} of up to {np.abs(exact).max():.6g} deviate from their mean by "
            f"{np.atleast_1d(deviation)[column]:.3g}, but float32, which logs are kept in, errs by {steps:.3g} there: "
            "subtract an offset from them, or give them in another unit"
        )
    return kept


def column_names(what: str, names: Any, values: Any) -> tuple[str, ...]:
    """Return the names of columns, or those that a data frame has where none are given; () if there are none.

    Raises:
        InvalidArgumentError: a single name.
        InvalidDataError: they are those of the data frame's columns in another order.

    """
    given = tuple(as_list(what, names, "names"))
    columns = tuple(getattr(values, "columns", ()))
    if not given:
        texts = all(isinstance(one, str) for one in columns)
        return columns if texts and first_repeated(columns) is None else ()
    if columns != given and set(columns) == set(given):
        raise InvalidDataError(
            f"a table with the columns {list(columns)} was given, but {what} are {list(given)}: give its columns in "
            f"that order, table[{list(given)}]"
        )
    return given


def _array(name: str, values: Any, wanted: str = "an array") -> np.ndarray:
    """Return values given by a user as an array, of any type; if not, the message says what was wanted."""
    try:
        return as_array(values)
    except ValueError as error:
        raise InvalidDataError(f"{name} must be {wanted}; {error}") from error


def check_finite(name: str, array: FloatArray, given: Any = None) -> None:
    """Raise `InvalidDataError` if a column holds NaN or infinity, or so as float32 what a user has ``given``."""
    for start in range(0, len(array), CHUNK):
        finite = np.isfinite(array[start : start + CHUNK])
        if not finite.all():
            row = start + int(np.argwhere(~finite)[0][0])
            values = np.asarray(array if given is None else given)[row].astype(np.float64)
            reason = "too large for float32" if np.isfinite(values).all() else "NaN and infinity are not allowed"
            raise InvalidDataError(f"{name} holds {values.tolist()} in row {row}: {reason}")


def flags(name: str, values: Any, count: int) -> BoolArray:
    """Return a boolean column (T,); all False if not given."""
    if values is None:
        return np.zeros(count, bool)
    array = _array(name, values)
    if array.shape != (count,):
        raise InvalidDataError(f"{name} has shape {array.shape}, expected ({count},)")
    if array.dtype != bool:
        wrong = [row for row, value in enumerate(array.tolist()) if not _is_flag(value)]
        if wrong:
            raise InvalidDataError(
                f"{name} holds {array.tolist()[wrong[0]]!r} in row {wrong[0]}; it must be True or False, or 1 or 0"
            )
    return array.astype(bool)


def _is_flag(value: Any) -> bool:
    try:
        return value in (0, 1)
    except TypeError:  # of pandas' NA it is not known
        return False


def action_column(actions: Any, count: int) -> FloatArray | IntArray:
    """Return discrete actions as (T,) int64, continuous ones as (T, A) float32."""
    array = _array("actions", actions)
    if array.ndim == 1 and array.dtype.kind in "iu":
        if len(array) != count:
            raise InvalidDataError(f"actions has {len(array)} rows, observations has {count}")
        wrong = np.flatnonzero((array < 0) | (array >= 2**31))
        if len(wrong):
            raise InvalidDataError(f"action {array[wrong[0]]} in row {wrong[0]}: number discrete actions from 0 on")
        return array.astype(np.int64)
    if array.ndim == 1:
        raise InvalidDataError(
            f"actions of shape {array.shape} and type {array.dtype}: give integers for discrete actions, "
            "or shape (rows, action coordinates) for continuous ones"
        )
    return told_apart("actions", array, 2, count)


def agent_indices(agents: Any, labels: Sequence[Any] | None, count: int) -> tuple[IntArray, tuple[str, ...]]:
    """Return the index of each row's agent (T,) int32, and the agents' labels."""
    array = _array("agents", agents)
    if array.shape != (count,):
        raise InvalidDataError(f"agents has shape {array.shape}, expected ({count},): one agent for each row")
    if labels is not None:
        if array.dtype.kind not in "iu":
            raise InvalidDataError("with agent_labels given, agents must be integer indices into them")
        check_agent_indices(array, len(labels))
        return array.astype(np.int32), tuple(map(label_text, labels))
    if array.dtype.kind == "O":  # of several types, perhaps, which have no order
        return _numbered(array.tolist())
    missing = np.flatnonzero(array != array)
    if len(missing):
        raise InvalidDataError(f"agents has no value in row {missing[0]}")
    unique, first, inverse = np.unique(array, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(unique), np.int32)
    rank[order] = np.arange(len(unique))
    return rank[inverse], tuple(map(label_text, unique[order]))


def check_agent_indices(indices: IntArray, count: int) -> None:
    """Raise `InvalidDataError` unless the rows' agents (T,) are indices of so many agents."""
    if indices.min() < 0 or indices.max() >= count:
        raise InvalidDataError(
            f"agent indices run from {indices.min()} to {indices.max()}, but there are {count} agents"
        )


def _numbered(agents: list[Any]) -> tuple[IntArray, tuple[str, ...]]:
    """Number agents of any type in the order in which they appear."""
    places: dict[Any, int] = {}
    indices = np.empty(len(agents), np.int32)
    for row, agent in enumerate(agents):
        unequal = agent != agent  # so is NaN to itself; of pandas' NA it is not known
        if agent is None or not isinstance(unequal, (bool, np.bool_)) or unequal:
            raise InvalidDataError(f"agents has no value in row {row}")
        indices[row] = places.setdefault(agent, len(places))
    return indices, tuple(map(label_text, places))


def as_float64(name: str, values: Any) -> FloatArray:
    """Return values given by a user as float64, in an array of their own."""
    try:
        return as_array(values, np.float64).copy()
    except ValueError as error:
        raise InvalidDataError(f"{name} must be numbers; {error}") from error


def covariate_rows(covariates: Any, names: Sequence[str]) -> FloatArray | None:
    """Return covariates (N, K) as float64, None if not given, after a check that they are told apart by ``names``."""
    if (twice := first_repeated(names)) is not None:
        raise InvalidDataError(f"covariate_names has {twice!r} twice: give each covariate a name of its own")
    if covariates is None:
        return None
    columns = getattr(covariates, "columns", None)
    if columns is not None and list(columns) != list(names):
        raise InvalidDataError(
            f"covariates is a table with the columns {list(columns)}, but covariate_names={list(names)}: give its "
            f"columns in that order, table[{list(names)}]"
        )
    return as_float64("covariates", covariates)


def check_resolution(name: str, given: Any, following: Any, starts: IntArray) -> None:
    """Raise `InvalidDataError` where float32, which columns are kept in, is too coarse for what changes.

    Args:
        name: of the column.
        given: (T, D) as the user gave it.
        following: (T, D) the same after the action; the rows after those of ``given`` in their episode if None.
        starts: (E,) rows at which episodes begin.

    """
    states = np.asarray(given)
    if states.dtype == np.float32 or states.ndim != 2:
        return
    before = states.astype(np.float64)
    if following is None:
        inside = np.delete(np.arange(len(before)), starts)
        before, after = before[inside - 1], before[inside]
    else:
        after = np.asarray(following, np.float64)
    if after.shape != before.shape or len(after) == 0:
        return
    for column, (values, changes) in enumerate(zip(before.T, np.abs(after - before).T, strict=True)):
        moving = changes > _LEAST_CHANGE * changes.max()
        if not moving.any() or (values == values.astype(np.float32)).all():
            continue
        with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold is refused elsewhere
            coarse = np.spacing(np.abs(values[moving]).astype(np.float32)).astype(np.float64)
            told = float(np.median(changes[moving] / coarse))
        if told < _LEAST_RESOLUTION:
            raise InvalidDataError(
                f"{name} coordinate {column} reaches {np.abs(values).max():.6g} and changes by "
                f"{np.median(changes[moving]):.3g}, but float32, which logs are kept in, has steps of "
                f"{np.median(coarse):.3g} there: subtract an offset from it"
            )
