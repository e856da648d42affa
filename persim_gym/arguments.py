"""A user's numbers, checked."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import MISSING, field, fields, replace
from numbers import Integral, Real
from typing import Any, Self, cast

import numpy as np

from persim_gym.errors import InvalidArgumentError, UnknownNameError


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """Return ``value`` as an int if it is a whole number of at least ``least``; else raise `InvalidArgumentError`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise InvalidArgumentError(f"{name}={value!r} must be a whole number of at least {least}")
    return int(value)


def checked_seed(seed: Any) -> int:
    """Return a seed as an int if it is a whole number of at least 0; else raise `InvalidArgumentError`."""
    return whole_number("seed", seed, least=0)


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
    array = np.asarray(value, bool)
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


def one_of(name: str, value: Any, choices: Sequence[str]) -> str:
    """Return ``value`` if it is one of some words, or raise `InvalidArgumentError`."""
    if value not in choices:
        raise InvalidArgumentError(f"{name}={value!r} must be one of {', '.join(choices)}")
    return value


_CHECK = "check"
"""In the metadata of a field."""


class Settings:
    """A frozen dataclass of settings, checked when it is made, of which copies can be made.

    A field that `checked`, or one of the functions after it, returned has what its check makes of the value given: an
    int, say, of a NumPy integer. A subclass checks in its own ``__post_init__`` what concerns several fields.
    """

    def __post_init__(self) -> None:
        for one in fields(cast(Any, self)):
            if _CHECK in one.metadata:
                # The dataclass is frozen, for everybody else.
                object.__setattr__(self, one.name, one.metadata[_CHECK](one.name, getattr(self, one.name)))

    def with_changes(self, **changes: Any) -> Self:
        """Return a copy with some settings changed.

        Raises:
            UnknownNameError: there is no such setting.
            InvalidArgumentError: its value is out of its range.

        """
        known = {one.name for one in fields(cast(Any, self))}
        check_settings_known(changes, known, of=type(self).__name__)
        return replace(cast(Any, self), **changes)


def check_settings_known(given: Collection[str], known: Collection[str], *, of: str) -> None:
    """Raise `UnknownNameError`, which names all settings ``of`` something and those most alike, if one is not known."""
    for name in sorted(set(given) - set(known)):
        alike = " or ".join(difflib.get_close_matches(name, sorted(known)))
        meant = f"; did you mean {alike}?" if alike else ""
        raise UnknownNameError(f"no setting {name!r} of {of}; settings are {', '.join(sorted(known))}{meant}")


def checked(check: Callable[[str, Any], Any], default: Any = MISSING, *, optional: bool = False) -> Any:
    """Return a field of `Settings` that holds ``check(name, value)``, or None where that is allowed.

    Args:
        check: raises `InvalidArgumentError` for a value out of its range.
        default: of the field; it has to be given if left out.
        optional: whether the value may be None.

    """

    def unless_none(name: str, value: Any) -> Any:
        return None if value is None else check(name, value)

    return field(default=default, metadata={_CHECK: unless_none if optional else check})


def whole(default: Any = MISSING, *, least: int = 1, optional: bool = False) -> Any:
    """Return a field that holds a whole number of at least ``least``."""
    return checked(lambda name, value: whole_number(name, value, least), default, optional=optional)


def finite(default: Any = MISSING, *, above: float | None = None, optional: bool = False) -> Any:
    """Return a field that holds a finite number of at least 0, or ``above`` a bound."""
    least = 0.0 if above is None else above
    return checked(
        lambda name, value: finite_number(name, value, least, above=above is not None), default, optional=optional
    )


def truth(default: Any = MISSING) -> Any:
    """Return a field that holds True or False."""
    return checked(yes_or_no, default)


def widths(default: Any = MISSING, *, empty: bool = True) -> Any:
    """Return a field that holds the widths of layers, ``empty`` or not."""
    return checked(lambda name, value: layer_widths(name, value, empty=empty), default)


def choice(default: Any = MISSING, *, choices: Sequence[str]) -> Any:
    """Return a field that holds one of some words."""
    return checked(lambda name, value: one_of(name, value, choices), default)
