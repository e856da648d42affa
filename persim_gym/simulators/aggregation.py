"""How the predictions of several members become one."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from persim_gym.types import FloatArray

AGGREGATES = ("mean", "median")


def aggregated(members: Any, aggregate: str) -> Any:
    """Return the mean or median (…) over the first axis of members (M, …), an array or a tensor.

    The median survives members that diverge: what is not a number is left out, as long as one member is left.
    """
    if aggregate == "mean":
        return members.mean(0)
    return _median_of_tensors(members) if isinstance(members, Tensor) else _median_of_arrays(members)


def _median_of_arrays(members: FloatArray) -> FloatArray:
    middle = np.median(members, axis=0)
    undefined = np.isnan(middle) & ~np.isnan(members).all(axis=0)
    if undefined.any():
        middle[undefined] = np.nanmedian(members[:, undefined], axis=0)
    return middle


def _median_of_tensors(members: Tensor) -> Tensor:
    """`torch.nanmedian` does not average the middle two, and `torch.nanquantile` is limited to 16 million numbers."""
    ordered = members.sort(0).values  # what is not a number comes last
    last = (~members.isnan()).sum(0, keepdim=True).clamp(min=1) - 1
    return (ordered.gather(0, last // 2) + ordered.gather(0, (last + 1) // 2))[0] / 2
