"""Running out of memory, said in words that help."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from persim_gym.errors import OutOfMemoryError

_NO_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory|Storage size calculation overflowed")


@contextlib.contextmanager
def explain_out_of_memory(advice: str) -> Iterator[None]:
    """Turn NumPy's and torch's ways of running out of memory into one error, which says what to lower.

    Raises:
        OutOfMemoryError: instead of `MemoryError` and of torch's `RuntimeError`s for the CPU and the GPU.

    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _NO_MEMORY.search(str(error)):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        raise OutOfMemoryError(f"out of memory ({reason}); {advice}") from error
