"""What every script here does alike: it starts, and ends with an exit status, in one way."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TypeAlias

import protocol
from cells import CACHE, commit
from measurement_file import RESULTS

from persim_gym.errors import InvalidArgumentError, PerSimError

Main: TypeAlias = Callable[[Sequence[str] | None], int | None]


def script(main: Main) -> Callable[..., int]:
    """Make a main function of the command line's arguments take down the version of the code and report errors.

    A `PerSimError` is one line on standard error, and exit status 2, an interruption one, and 130.
    """

    @wraps(main)
    def wrapped(arguments: Sequence[str] | None = None) -> int:
        commit()
        try:
            return main(arguments) or 0
        except PerSimError as error:
            print(f"{Path(inspect.getfile(main)).name}: {' '.join(str(error).split())}", file=sys.stderr)
            raise SystemExit(2) from error
        except KeyboardInterrupt:
            print("interrupted; the same command goes on after what is finished", file=sys.stderr)
            raise SystemExit(130) from None

    return wrapped


def ensemble_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of which ensembles are measured, how they are trained, and where that is kept."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", nargs="+", default=["MountainCar", "CartPole"], choices=protocol.PROTOCOL)
    parser.add_argument("--data", default="random", choices=protocol.LOGGING_POLICIES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", default="full", choices=protocol.SCALES)
    parser.add_argument("--device", default="auto", help="a torch device, to train on")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--cache", type=Path, default=CACHE)
    return parser


def check_at_least(least: int, **numbers: int) -> None:
    """Refuse numbers that are too small.

    Raises:
        InvalidArgumentError: one is, by the name of its argument.

    """
    for name, number in numbers.items():
        if number < least:
            raise InvalidArgumentError(f"{name}={number} must be at least {least}")
