"""Model-predictive path integral control (MPPI).

Williams et al., "Information Theoretic MPC for Model-Based Reinforcement Learning", ICRA 2017, algorithm 2; the noise
smoothed in time as in Nagabandi et al., "Deep Dynamics Models for Learning Dexterous Manipulation", CoRL 2019, eq. 3–5.
"""

from __future__ import annotations

import numpy as np

from persim_gym.planning.search import ContinuousSearch, Plan, score
from persim_gym.planning.settings import checks_settings
from persim_gym.types import FloatArray


@checks_settings
def path_integral_control(
    search: ContinuousSearch,
    *,
    num_candidates: int = 350,
    num_rounds: int = 5,
    temperature: float = 0.1,
    deviation: float = 0.5,
    noise_smoothing: float = 0.3,
) -> Plan:
    """Move the plan to the mean of noisy copies, weighted by exp(return / temperature).

    Args:
        search: what to plan for.
        num_candidates: C, in each round.
        num_rounds: number of rounds.
        temperature: λ, in standard deviations of the round's returns, so that it means the same in every task.
        deviation: standard deviation of the noise, in half widths of the bounds.
        noise_smoothing: weight of the noise of the step before; 0 for noise that is independent from step to step.

    Raises:
        InvalidArgumentError: a setting out of its range.
        NonFiniteReturnError: all candidates of an environment diverge.

    """
    best = mean = search.start
    environments, spread = np.arange(len(mean)), deviation * search.span
    best_return = np.full(len(mean), -np.inf)
    for _ in range(num_rounds):
        noise = smoothed(search.rng.standard_normal((len(mean), num_candidates, *mean.shape[1:])), noise_smoothing)
        candidates = np.clip(mean[:, None] + spread * noise, search.low, search.high)
        scores = score(search, candidates)
        winner = scores.argmax(axis=1)
        winning = scores[environments, winner]
        better = winning > best_return
        best = np.where(better[:, None, None], candidates[environments, winner], best)
        best_return = np.maximum(winning, best_return)
        mean = np.einsum("ec,echa->eha", _weights(scores, temperature), candidates)
    return Plan(actions=mean, returns=best_return, best=best, warm_start=mean)


def _weights(scores: FloatArray, temperature: float) -> FloatArray:
    """Return the candidates' weights (E, C), which sum to one; a score of minus infinity has none."""
    finite = np.isfinite(scores)
    known = np.where(finite, scores, 0.0)
    number = finite.sum(axis=1, keepdims=True)
    centre = known.sum(axis=1, keepdims=True) / number
    spread = np.sqrt((finite * (known - centre) ** 2).sum(axis=1, keepdims=True) / number)
    scale = np.where(spread > 0, temperature * spread, 1.0)
    weights = finite * np.exp((known - scores.max(axis=1, keepdims=True)) / scale * finite)
    return weights / weights.sum(axis=1, keepdims=True)


def smoothed(noise: FloatArray, weight: float) -> FloatArray:
    """Return noise (E, C, H, A) as n_t = √(1 − weight²)·ε_t + weight·n_{t−1}, of the same variance at every step."""
    result = noise.copy()
    for step in range(1, noise.shape[2]):
        result[:, :, step] = np.sqrt(1 - weight**2) * noise[:, :, step] + weight * result[:, :, step - 1]
    return result
