"""Random shooting: score uniformly drawn action sequences, follow the best (paper, appendix D)."""

from __future__ import annotations

import numpy as np

from persim_gym.planning.search import DiscreteSearch, Plan, check_found, finite_scores, shifted
from persim_gym.planning.settings import checks_settings

_FIRST_LOOK = 32


@checks_settings
def random_shooting(search: DiscreteSearch, *, num_candidates: int = 1000) -> Plan:
    """Return the best of uniformly drawn sequences of discrete actions.

    Where there is a previous plan, that plan, shifted by one step and its last action drawn, is the first candidate.
    With a largest return known, the search of an environment stops at the first candidate that reaches it: by order,
    the one an exhaustive search would return.

    Args:
        search: what to plan for.
        num_candidates: C.

    Raises:
        InvalidArgumentError: ``num_candidates`` is no whole number of at least 1.
        NonFiniteReturnError: all candidates of an environment diverge.

    """
    count, horizon = search.previous.shape
    candidates = search.rng.integers(search.num_actions, size=(count, num_candidates, horizon))
    candidates[search.warm, 0] = shifted(search.previous, candidates[:, 0, -1])[search.warm]
    best, best_return = candidates[:, 0].copy(), np.full(count, -np.inf)
    searched = looking = search.searched
    seen = 0
    while seen < num_candidates and len(looking):
        batch = num_candidates if search.max_return is None else max(_FIRST_LOOK, 8 * seen)
        part = candidates[looking, seen : seen + batch]
        scores = finite_scores(search.returns, looking, part)
        winner = scores.argmax(axis=1)
        winning = scores[np.arange(len(looking)), winner]
        better = winning > best_return[looking]
        best[looking[better]] = part[np.arange(len(looking)), winner][better]
        best_return[looking[better]] = winning[better]
        seen += batch
        if search.max_return is not None:
            looking = looking[best_return[looking] < search.max_return]
    check_found(best_return[searched], searched, num_candidates)
    return Plan(actions=best, returns=best_return, best=best, warm_start=best)
