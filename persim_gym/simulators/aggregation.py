"""How the predictions of several members become one."""

from __future__ import annotations

import numpy as np

from persim_gym.errors import InvalidArgumentError
from persim_gym.types import FloatArray

AGGREGATES = ("mean", "median")


def check_aggregate(aggregate: str) -> None:
    """Raise `InvalidArgumentError` if there is no such aggregate."""
    if aggregate not in AGGREGATES:
        raise InvalidArgumentError(f"aggregate={aggregate!r} must be one of {', '.join(AGGREGATES)}")


def aggregated(members: FloatArray, aggregate: str) -> FloatArray:
    """Return the mean or median (…) over the first axis of members (M, …).

    The median survives members that diverge: what is not a number is left out, as long as one member is left.
    """
    if aggregate == "mean":
        return members.mean(axis=0)
    middle = np.median(members, axis=0)
    undefined = np.isnan(middle) & ~np.isnan(members).all(axis=0)
    if undefined.any():
        middle[undefined] = np.nanmedian(members[:, undefined], axis=0)
    return middle
