"""A user's numbers, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

from persim_gym.errors import InvalidArgumentError


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
