"""What every script here does alike: it starts, and ends with an exit status, in one way."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TypeAlias

from cells import commit

from persim_gym.errors import InvalidArgumentError, PerSimError

Main: TypeAlias = Callable[[Sequence[str] | None], int | None]


def script(main: Main) -> Callable[..., int]:
    """Make a main function of the command line's arguments take down the version of the code and report errors.

    A `PerSimError` is one line on standard error, and exit status 2.
    """

    @wraps(main)
    def wrapped(arguments: Sequence[str] | None = None) -> int:
        commit()
        try:
            return main(arguments) or 0
        except PerSimError as error:
            print(f"{Path(inspect.getfile(main)).name}: {' '.join(str(error).split())}", file=sys.stderr)
            raise SystemExit(2) from error

    return wrapped


def check_at_least(least: int, **numbers: int) -> None:
    """Refuse numbers that are too small.

    Raises:
        InvalidArgumentError: one is, by the name of its argument.

    """
    for name, number in numbers.items():
        if number < least:
            raise InvalidArgumentError(f"{name}={number} must be at least {least}")
