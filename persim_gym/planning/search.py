"""What all planners share: the plan they return, scoring, and sampling within an action space."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from persim_gym.errors import NonFiniteReturnError
from persim_gym.rollouts import ReturnFn
from persim_gym.types import BoolArray, FloatArray, IntArray


@dataclass(frozen=True)
class Plan:
    """The result of a search for E environments."""

    actions: np.ndarray
    """(E, H) or (E, H, A): the sequence whose first action is to be executed."""
    returns: FloatArray
    """(E,): the highest return found."""
    best: np.ndarray
    """(E, H) or (E, H, A): the sequence with that return."""
    warm_start: np.ndarray
    """(E, H) or (E, H, A): what the next search starts from, once shifted by one step; the improved cross-entropy
    method has (E, 1 + n, H, A), the mean and the elites it remembers."""


def score(returns: ReturnFn, environments: IntArray, candidates: np.ndarray) -> FloatArray:
    """Return the candidates' returns (n, C); one that is not a number counts as minus infinity.

    Raises:
        NonFiniteReturnError: an environment has no candidate with a finite return.

    """
    scores = finite_scores(returns, environments, candidates)
    check_found(scores.max(axis=1), environments, scores.shape[1])
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
            "a finite number: the simulator diverges from this state; check the state, or shorten the horizon"
        )


def shifted(plan: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Drop the first action of plans (E, H, …) and append ``last`` (E, …)."""
    return np.concatenate([plan[:, 1:], last[:, None]], axis=1)


def gaussian_moments(elites: FloatArray, finite: BoolArray) -> tuple[FloatArray, FloatArray]:
    """Return mean and unbiased deviation (E, H, A) of elites (E, n, H, A), of those only whose return is a number."""
    weight = finite[:, :, None, None].astype(np.float64)
    count = weight.sum(axis=1)
    mean = (weight * elites).sum(axis=1) / count
    squared = (weight * (elites - mean[:, None]) ** 2).sum(axis=1)
    return mean, np.sqrt(squared / np.maximum(count - 1, 1))
