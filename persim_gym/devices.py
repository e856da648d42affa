"""Which device to compute on, how arrays get there, how precisely it multiplies, and torch's own defaults."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import ParamSpec, TypeVar

import numpy as np
import torch

from persim_gym.errors import InvalidArgumentError

P = ParamSpec("P")
R = TypeVar("R")


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
def matmul_precision(precision: str) -> Iterator[None]:
    """Let torch multiply float32 matrices "highest", "high" or "medium" precisely; the setting is the process's."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def products_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return what a network's hidden layers are to be computed in, for the precision of `matmul_precision`.

    Torch computes "medium" products of float32 matrices on a CPU in bfloat16 only if it has tiles for them (AMX);
    processors that have bfloat16 products without tiles multiply twice as fast what is bfloat16 to begin with.
    """
    if precision != "medium" or device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return torch.float32
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


def with_torch_defaults(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function make float32 tensors and take gradients, whatever its caller has set for their own work.

    The caller's default dtype and `torch.no_grad` or `torch.inference_mode` are put back; the dtype is the process's.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            with torch.inference_mode(False):  # which turns gradients on, too
                return function(*args, **kwargs)
        finally:
            torch.set_default_dtype(before)

    return run
