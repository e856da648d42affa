"""What all planners share: the plan they return, scoring, and sampling within an action space."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from persim_gym.errors import NonFiniteReturnError
from persim_gym.rollouts import ReturnFn
from persim_gym.types import FloatArray, IntArray


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
    """(E, H) or (E, H, A): what the next search starts from, once shifted by one step."""


def score(returns: ReturnFn, environments: IntArray, candidates: np.ndarray) -> FloatArray:
    """Return the candidates' returns (n, C); one that is not a number counts as minus infinity.

    Raises:
        NonFiniteReturnError: an environment has no candidate with a finite return.

    """
    scores = np.asarray(returns(environments, candidates), np.float64)
    scores = np.where(np.isfinite(scores), scores, -np.inf)
    lost = np.flatnonzero(np.isneginf(scores).all(axis=1))
    if len(lost):
        raise NonFiniteReturnError(
            f"all {scores.shape[1]} candidate plans of environment {environments[lost[0]]} have a return that is not "
            "a finite number: the simulator diverges from this state; check the state, or shorten the horizon"
        )
    return scores


def shifted(plan: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Drop the first action of plans (E, H, …) and append ``last`` (E, …)."""
    return np.concatenate([plan[:, 1:], last[:, None]], axis=1)
