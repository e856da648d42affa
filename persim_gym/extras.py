"""Optional libraries, imported where they are used."""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from functools import cache
from typing import Any

from persim_gym.errors import MissingExtraError


def optional(module: str, extra: str, *, library: str | None = None) -> Any:
    """Import a module of an optional library.

    Args:
        module: its name.
        extra: of ours that installs the library.
        library: its name in the package index, where that is not the module's first part.

    Raises:
        MissingExtraError: it is not installed.

    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(library or module.partition(".")[0], extra) from error


@cache
def d3rlpy() -> Any:
    """Import d3rlpy without the notices it prints.

    Raises:
        MissingExtraError: it is not installed.

    """
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        optional("d3rlpy.dataset", "d3rlpy")
        return optional("d3rlpy", "d3rlpy")
