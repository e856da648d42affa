"""What all planners share: the search they are given, the plan they return, scoring and elites."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from persim_gym.errors import NonFiniteReturnError
from persim_gym.types import BoolArray, FloatArray, IntArray, ReturnFn


@dataclass(frozen=True)
class Search:
    """What a planner is given: E environments to find a sequence of H actions for, each from where it is now."""

    returns: ReturnFn
    """Scores candidate sequences."""
    rng: np.random.Generator
    """Source of the candidates."""
    previous: np.ndarray
    """(E, H) or (E, H, A): what the last plan left as its ``warm_start``; the improved cross-entropy method also takes
    (E, 1 + n, H, A), the mean and the elites it remembers."""
    warm: BoolArray
    """(E,): whether ``previous`` means anything. Where it does, the search starts from it, shifted by one step."""
    running: BoolArray | None = field(default=None, kw_only=True)
    """(E,): which environments to search for; all if not given. The others get a sequence nobody scored."""

    @property
    def searched(self) -> IntArray:
        """(n,): the numbers of the environments to search for, in order."""
        return np.arange(len(self.warm)) if self.running is None else np.flatnonzero(self.running)


@dataclass(frozen=True)
class DiscreteSearch(Search):
    """A search for actions that are indices."""

    num_actions: int
    """A."""
    max_return: float | None = None
    """The largest return any sequence can have, if known: the search of an environment stops where it is reached."""


@dataclass(frozen=True)
class ContinuousSearch(Search):
    """A search for actions within bounds."""

    low: FloatArray
    """(A,): lower bounds of the actions."""
    high: FloatArray
    """(A,): upper bounds."""

    @property
    def middle(self) -> FloatArray:
        """(A,): between the bounds."""
        return 0.5 * (self.low + self.high)

    @property
    def span(self) -> FloatArray:
        """(A,): half widths of the bounds."""
        return 0.5 * (self.high - self.low)

    @property
    def start(self) -> FloatArray:
        """(E, H, A): the previous plans, one step on, with the middle at their end; where there is none, all middle."""
        last = np.broadcast_to(self.middle, (len(self.warm), len(self.low)))
        return np.where(self.warm[:, None, None], shifted(self.previous, last), self.middle)


@dataclass(frozen=True)
class Plan:
    """The result of a search for E environments."""

    actions: np.ndarray
    """(E, H) or (E, H, A): the sequence whose first action is to be executed."""
    returns: FloatArray
    """(E,): the return of ``best``; without meaning for an environment that was not searched for."""
    best: np.ndarray
    """(E, H) or (E, H, A): the sequence of the highest return, of all that random shooting and path integral control
    scored, and of the last round of the two cross-entropy methods, where an earlier round may have had a better one.
    A mean, which most of them execute, is no candidate, and its return is not known."""
    warm_start: np.ndarray
    """(E, H) or (E, H, A): what the next search starts from, once shifted by one step; the improved cross-entropy
    method has (E, 1 + n, H, A), the mean and the elites it remembers."""


def score(search: Search, candidates: np.ndarray) -> FloatArray:
    """Return the returns (E, C) of candidates of every environment; one that is no number counts as minus infinity.

    Those of environments that are not searched for are not asked for, and 0.

    Raises:
        NonFiniteReturnError: an environment that is searched for has no candidate with a finite return.

    """
    (environments, count), searched = candidates.shape[:2], search.searched
    scores = np.zeros((environments, count))
    if len(searched):
        scores[searched] = finite_scores(search.returns, searched, candidates[searched])
        check_found(scores[searched].max(axis=1), searched, count)
    return scores


def finite_scores(returns: ReturnFn, environments: IntArray, candidates: np.ndarray) -> FloatArray:
    """Return the candidates' returns (n, C), minus infinity where one is not a finite number."""
    scores = np.asarray(returns(environments, candidates), np.float64)
    return np.where(np.isfinite(scores), scores, -np.inf)


def check_found(best_returns: FloatArray, environments: IntArray, num_candidates: int) -> None:
    """Raise `NonFiniteReturnError` if an environment's best return (n,) is minus infinity."""
    lost = np.flatnonzero(np.isneginf(best_returns))
    if len(lost):
        raise NonFiniteReturnError(
            f"all {num_candidates} candidate plans of environment {environments[lost[0]]} have a return that is not "
            "a finite number"
        )


def shifted(plan: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Drop the first action of plans (E, H, …) and append ``last`` (E, …)."""
    return np.concatenate([plan[:, 1:], last[:, None]], axis=1)


def elites_of(candidates: FloatArray, scores: FloatArray, count: int) -> tuple[FloatArray, FloatArray]:
    """Return the best of candidates (E, C, H, A), best first, as (E, n, H, A), and their scores (E, n)."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    elites = np.take_along_axis(candidates, order[:, :, None, None], axis=1)
    return elites, np.take_along_axis(scores, order, axis=1)


def gaussian_moments(elites: FloatArray, finite: BoolArray) -> tuple[FloatArray, FloatArray]:
    """Return mean and unbiased deviation (E, H, A) of elites (E, n, H, A), of those only whose return is a number."""
    weight = finite[:, :, None, None].astype(np.float64)
    count = weight.sum(axis=1)
    mean = (weight * elites).sum(axis=1) / count
    squared = (weight * (elites - mean[:, None]) ** 2).sum(axis=1)
    return mean, np.sqrt(squared / np.maximum(count - 1, 1))
