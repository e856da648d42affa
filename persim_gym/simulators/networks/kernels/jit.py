"""Compiling kernels by numba, which is imported on use, where it is installed (extra "fast")."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import persim_gym.config

_SETTINGS: dict[str, Any] = {"fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy"}
"""Sums may be taken in any order; unlike full fast math this keeps infinities and what is not a number."""


def digest_of(files: Iterable[Path]) -> int:
    """Return a number that is another one if any of these files has other contents."""
    contents = b"".join(path.read_bytes() for path in sorted(files))
    return int.from_bytes(hashlib.blake2b(contents, digest_size=7).digest(), "big")


SOURCES = digest_of([*Path(__file__).parent.glob("*.py"), Path(persim_gym.config.__file__)])
"""Of what is compiled into kernels. Numba finds one that it kept by the date of the file that defines it, and by the
values that its function takes from the function around it, not by what it calls: each takes this number, too."""


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
