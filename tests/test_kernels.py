"""Compiled kernels that numba kept are found again only while everything in them is as it was."""

import pytest

pytest.importorskip("numba")

from persim_gym.simulators.networks.kernels import epoch, jit, layers, shallow
from persim_gym.simulators.networks.kernels.tiles import best_tile


def test_every_kernel_takes_the_digest_of_what_it_calls():
    """Numba's key has the values of the function around a kernel."""
    for kernel in (
        layers.layers_kernel(best_tile()), shallow.step_kernel(4), shallow.mean_kernel(4),
        epoch._epoch_kernel(best_tile()),
    ):  # fmt: skip
        taken = dict(zip(kernel.py_func.__code__.co_freevars, kernel.py_func.__closure__, strict=True))
        assert taken["sources"].cell_contents == jit.SOURCES


def test_the_digest_is_of_the_contents(tmp_path):
    """Whatever the date of a file is, and in whatever order the files are named."""
    first, second = tmp_path / "a.py", tmp_path / "b.py"
    first.write_text("one")
    second.write_text("two")
    before = jit.digest_of([first, second])
    second.write_text("two")
    assert jit.digest_of([second, first]) == before
    second.write_text("too")
    assert jit.digest_of([first, second]) != before
