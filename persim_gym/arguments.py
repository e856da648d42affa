"""A user's numbers, checked."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

from persim_gym.errors import InvalidArgumentError


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """Return ``value`` as an int if it is a whole number of at least ``least``; else raise `InvalidArgumentError`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise InvalidArgumentError(f"{name}={value!r} must be a whole number of at least {least}")
    return int(value)


def checked_seed(seed: Any) -> int:
    """Return a seed as an int below 2⁶³, which NumPy and torch take, or raise `InvalidArgumentError`.

    It is itself unless it is larger, as NumPy's own are.
    """
    given = whole_number("seed", seed, least=0)
    if given < 2**63:
        return given
    return int(np.random.SeedSequence(given).generate_state(1, np.uint64)[0]) >> 1


def generator_of(seed: Any) -> np.random.Generator:
    """Return the generator that NumPy makes of a seed, a generator itself too, or raise `InvalidArgumentError`."""
    if not isinstance(seed, (bool, str)):
        try:
            return np.random.default_rng(seed)
        except (TypeError, ValueError):
            pass
    raise InvalidArgumentError(f"seed={seed!r} must be a whole number of at least 0, or a numpy.random.Generator")


def finite_number(name: str, value: Any, least: float = -math.inf, *, above: bool = False) -> float:
    """Return ``value`` as a float if it is finite and at least, or ``above``, ``least``; else raise the error."""
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not math.isfinite(number) or number < least or (above and number == least):
        relation = "" if math.isinf(least) else f" {'above' if above else 'of at least'} {least:g}"
        raise InvalidArgumentError(f"{name}={value!r} must be a finite number{relation}")
    return number


def at_least_zero(name: str, value: Any) -> float:
    """Return ``value`` as a float if it is a number of at least 0, infinity too; else raise `InvalidArgumentError`."""
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not number >= 0:
        raise InvalidArgumentError(f"{name}={value!r} must be at least 0")
    return number


def below_one(name: str, value: Any) -> float:
    """Return ``value`` as a float if it is at least 0 and below 1; else raise `InvalidArgumentError`."""
    number = float(value) if isinstance(value, Real) else math.nan
    if not 0 <= number < 1:
        raise InvalidArgumentError(f"{name}={value!r} must be at least 0 and below 1")
    return number


def zero_to_one(name: str, value: Any) -> float:
    """Return ``value`` as a float if it is from 0 to 1; else raise `InvalidArgumentError`."""
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not 0 <= number <= 1:
        raise InvalidArgumentError(f"{name}={value!r} must be from 0 to 1")
    return number


def by_coordinate(name: str, value: Any, size: int, *, above: bool = False) -> np.ndarray:
    """Return one number for all coordinates, or one for each, as floats (size,), or raise `InvalidArgumentError`.

    Args:
        name: of the argument.
        value: what was given.
        size: the number of coordinates.
        above: whether the numbers must be above 0, infinity too; else they must be finite and at least 0.

    """
    try:
        array = np.asarray(value)
    except ValueError:  # lists within a list that are not of one length
        array = np.empty(0, object)
    within = array.dtype.kind in "iuf" and ((array > 0) if above else (array >= 0) & np.isfinite(array)).all()
    if array.shape not in ((), (size,)) or not within:
        bound = "above 0" if above else "finite and at least 0"
        raise InvalidArgumentError(f"{name}={value!r} must be {bound}: one number, or {size} of them")
    return np.broadcast_to(array.astype(np.float64), (size,))


def as_array(values: Any, dtype: Any = None) -> np.ndarray:
    """Return what a user gave as an array, or raise `ValueError` with the reason.

    NumPy itself takes what lies under a mask for a value, and says no to a tensor in a way of its own.
    """
    if np.ma.is_masked(values):
        raise ValueError("some entries are masked: fill them in, or leave them out")
    try:
        return np.asarray(values, dtype)
    except (TypeError, RuntimeError) as error:  # a tensor that requires a gradient
        raise ValueError(str(error)) from error


def array_or_object(value: Any) -> np.ndarray:
    """Return what a user gave as an array; or, where it makes none, one object (), which is no number."""
    try:
        return as_array(value)
    except ValueError:
        array = np.empty((), object)
        array[()] = value
        return array


def batch_of(observation: Any) -> tuple[np.ndarray, bool]:
    """Return observations, still to be checked, as a batch, and whether a user gave a single one (D,)."""
    array = array_or_object(observation)
    return np.atleast_2d(array), array.ndim == 1


def yes_or_no(name: str, value: Any) -> bool:
    """Return a truth value, a Python or a NumPy one, or raise `InvalidArgumentError`."""
    if not isinstance(value, (bool, np.bool_)):
        raise InvalidArgumentError(f"{name}={value!r} must be True or False")
    return bool(value)


def truth_values(name: str, value: Any, count: int) -> np.ndarray:
    """Return truth values (count,), given for each or one for all, or raise `InvalidArgumentError`."""
    given = array_or_object(value)
    if given.dtype.kind not in "biuf" or not np.isin(given, (0, 1)).all():
        raise InvalidArgumentError(f"{name}={value!r} must be truth values, one for all or {count}, one for each")
    array = given.astype(bool)
    if array.shape not in ((), (1,), (count,)):
        raise InvalidArgumentError(f"{name} of shape {array.shape} must be one truth value, or {count}, one for each")
    return np.broadcast_to(array, count)


def layer_widths(name: str, value: Any, *, empty: bool = True) -> tuple[int, ...]:
    """Return the widths of layers, each a whole number of at least 1, or raise `InvalidArgumentError`.

    Args:
        name: of the argument.
        value: to check.
        empty: whether there may be no layer.

    """
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise InvalidArgumentError(f"{name}={value!r} must be a tuple of widths, one a layer, such as (256, 256)")
    if not value and not empty:
        raise InvalidArgumentError(f"{name}={value!r} needs at least one layer")
    return tuple(whole_number(f"{name}[{index}]", width) for index, width in enumerate(value))


def as_list(name: str, value: Any, of: str) -> list[Any]:
    """Return several values as a list, or raise `InvalidArgumentError` for a single one.

    Args:
        name: name of the argument.
        value: to check.
        of: what the list is of, for the message.

    """
    if isinstance(value, str) or not isinstance(value, Iterable) or getattr(value, "shape", None) == ():
        raise InvalidArgumentError(f"{name}={value!r} must be a list of {of}, such as [{value!r}]")
    return list(value)


def first_repeated(names: Iterable[Any]) -> Any:
    """Return the first of some names, or other hashable values, that comes up again; None if all are different."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


def one_of(name: str, value: Any, choices: Sequence[str]) -> str:
    """Return ``value`` if it is one of some words, or raise `InvalidArgumentError`."""
    if value not in choices:
        raise InvalidArgumentError(f"{name}={value!r} must be one of {', '.join(choices)}")
    return value
