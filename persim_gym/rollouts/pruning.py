"""The best of many candidates, without asking every member about those that cannot be it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from persim_gym.rollouts.loops import STACKED_COLUMNS
from persim_gym.types import FloatArray, IntArray

MembersFn = Callable[[IntArray, slice], FloatArray]
"""(candidates (n,), members) -> these members' returns (m, n)."""

_SCOUTS = 16


def worth_pruning(members: int, candidates: int, at_once: int) -> bool:
    """Whether candidates that are left out save products: not if all members are asked together in one."""
    return members > at_once and members * candidates > at_once * STACKED_COLUMNS


def best_of_members(evaluate: MembersFn, members: int, candidates: int, limit: float, at_once: int = 1) -> FloatArray:
    """Return the members' mean return (C,), but minus infinity for candidates that another one is sure to beat.

    The first ``at_once`` members score all. The few they like best are scored by the others too. Whoever could not
    reach the best of these even with the return ``limit`` from every member left is out; the rest are scored by some
    more members, and so on.
    """
    first = _summed(evaluate(np.arange(candidates), slice(0, at_once)))
    scouts = np.argsort(-first, kind="stable")[:_SCOUTS]
    total = np.full(candidates, -np.inf)
    total[scouts] = first[scouts] + _summed(evaluate(scouts, slice(at_once, members)))
    best, asked = total[scouts].max(), at_once
    rest = np.setdiff1d(np.arange(candidates), scouts)
    known = first[rest]
    while asked < members:
        contending = known + (members - asked) * limit >= best
        rest, known = rest[contending], known[contending]
        if len(rest) == 0:
            break
        more = at_once * max(1, STACKED_COLUMNS // len(rest))
        group = slice(asked, min(members, asked + more))
        known = known + _summed(evaluate(rest, group))
        asked = group.stop
    total[rest] = known
    return total / members


def _summed(returns: FloatArray) -> FloatArray:
    """Return the sum (n,) of members' returns (m, n), minus infinity where one is not a number."""
    total = returns.sum(axis=0)
    return np.where(np.isnan(total), -np.inf, total)
