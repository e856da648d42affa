"""Compiling kernels by numba, which is imported on use, where it is installed (extra "fast")."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

_SETTINGS: dict[str, Any] = {"fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy"}
"""Sums may be taken in any order; unlike full fast math this keeps infinities and what is not a number."""


def available() -> bool:
    """Whether numba is installed."""
    return importlib.util.find_spec("numba") is not None


def compile_for(signature: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function for one signature, or load what was compiled earlier; it runs without Python's lock."""
    import numba

    try:
        return numba.njit(signature, cache=True, nogil=True, **_SETTINGS)(function)
    except RuntimeError:  # nowhere to keep the compiled kernel
        return numba.njit(signature, nogil=True, **_SETTINGS)(function)


def fast(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function that compiled ones call."""
    import numba

    return numba.njit(**_SETTINGS)(function)
