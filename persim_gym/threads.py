"""How many threads to compute with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

T = TypeVar("T")
SMALL_NETWORK_WIDTH = 256


def useful_threads(hidden_layers: tuple[int, ...]) -> int:
    """Return how many threads to compute with: torch's number, but one for a small network."""
    small = len(hidden_layers) <= 1 and max(hidden_layers, default=0) <= SMALL_NETWORK_WIDTH
    return 1 if small else torch.get_num_threads()


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


@contextlib.contextmanager
def limited_threads(hidden_layers: tuple[int, ...]) -> Iterator[None]:
    """Use one thread while computing with a small network, where handing out work costs more than the work."""
    with contextlib.nullcontext() if useful_threads(hidden_layers) > 1 else single_thread():
        yield


def run_in_threads(work: Callable[[T], object], pieces: Sequence[T], threads: int) -> None:
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
def numpy_in_one_thread() -> Iterator[None]:
    """Let NumPy's matrix products use one thread while torch works in turn with them.

    The threads of the two wait for their next work by spinning, in each other's way: alternating between a NumPy
    policy and a large simulator was nine times slower on two cores than with this.
    """
    with threadpool_limits(1, user_api="blas"):
        yield
