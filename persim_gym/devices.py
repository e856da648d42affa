"""Which device and how many threads to compute with, and how arrays get there."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from persim_gym.errors import InvalidArgumentError, OutOfMemoryError

T = TypeVar("T")
SMALL_NETWORK_WIDTH = 256
_NO_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory|Storage size calculation overflowed")


def resolve_device(device: str) -> torch.device:
    """Return the torch device of that name; "auto" is the GPU if there is one.

    Raises:
        InvalidArgumentError: no such device on this machine.

    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise InvalidArgumentError(f"device={device!r} is not available here ({error}); use 'auto' or 'cpu'") from error
    return found


def on_device(arrays: Mapping[str, np.ndarray], device: torch.device) -> dict[str, torch.Tensor]:
    """Return copies of named arrays, parameters as a rule, as tensors on a device."""
    return {name: torch.tensor(np.ascontiguousarray(array), device=device) for name, array in arrays.items()}


@contextlib.contextmanager
def single_thread() -> Iterator[None]:
    """Use one torch thread; networks of a few hundred units are two to nine times slower on two."""
    before = torch.get_num_threads()
    if before == 1:  # setting it costs more than a small step
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def threads_worth(hidden_layers: tuple[int, ...]) -> int:
    """Return how many threads to compute with: torch's number, but one for a small network."""
    small = len(hidden_layers) <= 1 and max(hidden_layers) <= SMALL_NETWORK_WIDTH
    return 1 if small else torch.get_num_threads()


def in_threads(work: Callable[[T], object], pieces: Sequence[T], threads: int) -> None:
    """Do independent pieces of work, so many at once, each by a torch of one thread.

    Threads that each do a piece need not wait for each other after every matrix product, as torch's own do.
    """
    with single_thread():
        if threads == 1 or len(pieces) == 1:
            for piece in pieces:
                work(piece)
            return
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(work, pieces):
                pass


@contextlib.contextmanager
def threads_for(hidden_layers: tuple[int, ...]) -> Iterator[None]:
    """Use one thread while computing with a small network, where handing out work costs more than the work."""
    with contextlib.nullcontext() if threads_worth(hidden_layers) > 1 else single_thread():
        yield


@contextlib.contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Let torch multiply float32 matrices "highest", "high" or "medium" precisely; the setting is the process's."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def numpy_in_one_thread() -> Iterator[None]:
    """Let NumPy's matrix products use one thread while torch works in turn with them.

    The threads of the two wait for their next work by spinning, in each other's way: alternating between a NumPy
    policy and a large simulator was nine times slower on two cores than with this.
    """
    with threadpool_limits(1, user_api="blas"):
        yield


@contextlib.contextmanager
def memory_for(advice: str) -> Iterator[None]:
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
