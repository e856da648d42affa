"""A user's numbers, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from numbers import Integral, Real
from typing import Any, Self, cast

import numpy as np

from persim_gym.errors import InvalidArgumentError, UnknownNameError


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """Return ``value`` as an int if it is a whole number of at least ``least``; else raise `InvalidArgumentError`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise InvalidArgumentError(f"{name}={value!r} must be a whole number of at least {least}")
    return int(value)


def finite_number(name: str, value: Any, least: float, *, above: bool = False) -> float:
    """Return ``value`` as a float if it is finite and at least, or ``above``, ``least``; else raise the error."""
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not math.isfinite(number) or number < least or (above and number == least):
        relation = "above" if above else "of at least"
        raise InvalidArgumentError(f"{name}={value!r} must be a finite number {relation} {least:g}")
    return number


def yes_or_no(name: str, value: Any) -> bool:
    """Return a truth value, a Python or a NumPy one, or raise `InvalidArgumentError`."""
    if not isinstance(value, (bool, np.bool_)):
        raise InvalidArgumentError(f"{name}={value!r} must be True or False")
    return bool(value)


def layer_widths(name: str, value: Any) -> tuple[int, ...]:
    """Return the widths of layers, each a whole number of at least 1, or raise `InvalidArgumentError`."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise InvalidArgumentError(f"{name}={value!r} must be a tuple of widths, one a layer, such as (256, 256)")
    return tuple(whole_number(f"{name}[{index}]", width) for index, width in enumerate(value))


class Settings:
    """A frozen dataclass of settings, of which copies can be made."""

    def with_changes(self, **changes: Any) -> Self:
        """Return a copy with some settings changed.

        Raises:
            UnknownNameError: there is no such setting.
            InvalidArgumentError: its value is out of its range.

        """
        known = {field.name for field in fields(cast(Any, self))}
        unknown = sorted(set(changes) - known)
        if unknown:
            raise UnknownNameError(
                f"no setting {unknown[0]!r} of {type(self).__name__}; settings are {', '.join(sorted(known))}"
            )
        return replace(cast(Any, self), **changes)
