"""Random shooting: score uniformly drawn action sequences, follow the best (paper, appendix D)."""

from __future__ import annotations

import numpy as np

from persim_gym.planning.search import Plan, check_found, finite_scores, shifted
from persim_gym.rollouts import ReturnFn
from persim_gym.types import BoolArray

_FIRST_LOOK = 32


def random_shooting(
    returns: ReturnFn,
    *,
    num_actions: int,
    rng: np.random.Generator,
    previous: np.ndarray,
    warm: BoolArray,
    horizon: int = 50,
    num_candidates: int = 1000,
    max_return: float | None = None,
    running: BoolArray | None = None,
) -> Plan:
    """Return the best of uniformly drawn sequences of discrete actions.

    Args:
        returns: scores candidate sequences.
        num_actions: A.
        rng: source of the candidates.
        previous: (E, H) the plans followed so far; where ``warm``, the first candidate is that plan shifted by one
            step, its last action drawn.
        warm: (E,) whether ``previous`` means anything.
        horizon: H.
        num_candidates: C.
        max_return: the largest return any sequence can have, if known. The search of an environment stops at the
            first candidate that reaches it: by order, the one an exhaustive search would return.
        running: (E,) which environments to search for; all if not given. The others get a sequence nobody scored.

    """
    count = len(previous)
    candidates = rng.integers(num_actions, size=(count, num_candidates, horizon))
    candidates[warm, 0] = shifted(previous, candidates[:, 0, -1])[warm]
    best, best_return = candidates[:, 0].copy(), np.full(count, -np.inf)
    searched = np.arange(count) if running is None else np.flatnonzero(running)
    looking, seen = searched, 0
    while seen < num_candidates and len(looking):
        batch = num_candidates if max_return is None else max(_FIRST_LOOK, 8 * seen)
        part = candidates[looking, seen : seen + batch]
        scores = finite_scores(returns, looking, part)
        winner = scores.argmax(axis=1)
        winning = scores[np.arange(len(looking)), winner]
        better = winning > best_return[looking]
        best[looking[better]] = part[np.arange(len(looking)), winner][better]
        best_return[looking[better]] = winning[better]
        seen += batch
        if max_return is not None:
            looking = looking[best_return[looking] < max_return]
    check_found(best_return[searched], searched, num_candidates)
    return Plan(actions=best, returns=best_return, best=best, warm_start=best)
