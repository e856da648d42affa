"""A user's numbers, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from persim_gym.errors import InvalidArgumentError


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """Return a whole number, a Python or a NumPy one, of at least so much, or raise `InvalidArgumentError`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise InvalidArgumentError(f"{name}={value!r} must be a whole number of at least {least}")
    return int(value)


def finite_number(name: str, value: Any, least: float, *, above: bool = False) -> float:
    """Return a finite number of at least so much (or ``above`` it), or raise `InvalidArgumentError`."""
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not math.isfinite(number) or number < least or (above and number == least):
        relation = "above" if above else "of at least"
        raise InvalidArgumentError(f"{name}={value!r} must be a finite number {relation} {least:g}")
    return number


def layer_widths(name: str, value: Any) -> tuple[int, ...]:
    """Return the widths of layers, each a whole number of at least 1, or raise `InvalidArgumentError`."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise InvalidArgumentError(f"{name}={value!r} must be a tuple of widths, one a layer, such as (256, 256)")
    return tuple(whole_number(f"{name}[{index}]", width) for index, width in enumerate(value))
