"""The cross-entropy method as the paper's code runs it."""

from __future__ import annotations

import numpy as np

from persim_gym.planning.search import ContinuousSearch, Plan, elites_of, gaussian_moments, score
from persim_gym.planning.settings import checks_settings
from persim_gym.types import FloatArray


@checks_settings
def cross_entropy_method(
    search: ContinuousSearch,
    *,
    num_candidates: int = 200,
    num_elites: int | None = None,
    num_rounds: int = 6,
    smoothing: float = 0.1,
    initial_deviation: tuple[float, float] = (0.3, 0.6),
    execute: str = "elite_mean",
) -> Plan:
    """Fit a Gaussian over sequences of continuous actions to its best samples, again and again.

    Args:
        search: what to plan for.
        num_candidates: C, in each round.
        num_elites: how many of the best a round keeps; by default a quarter of the candidates, the paper's 50 of 200.
        num_rounds: number of rounds; the first takes the elites' moments as they are, the later ones smooth.
        smoothing: weight of the old moments.
        initial_deviation: range from which one initial standard deviation is drawn for each environment, in half
            widths of the bounds.
        execute: "elite_mean", the mean of the last elites (the paper's code), or "best", the best sequence of the last
            round (the paper's text).

    Raises:
        InvalidArgumentError: a setting out of its range, or more elites than candidates.
        NonFiniteReturnError: all candidates of an environment diverge.

    """
    if num_elites is None:
        num_elites = max(1, num_candidates // 4)
    low, high, rng = search.low, search.high, search.rng
    mean = np.clip(search.start, low, high)
    drawn = rng.uniform(*initial_deviation, (len(mean), 1, 1))
    deviation = np.broadcast_to(drawn * search.span, mean.shape)
    best = elite_mean = mean
    best_return = np.full(len(mean), -np.inf)
    for index in range(num_rounds):
        candidates = truncated_normal(rng, mean, deviation, num_candidates, low, high)
        elites, scores = elites_of(candidates, score(search, candidates), num_elites)
        best, best_return = elites[:, 0], scores[:, 0]
        elite_mean, elite_deviation = gaussian_moments(elites, np.isfinite(scores))
        kept = smoothing if index > 0 else 0.0
        # The mean of equal numbers is off by rounding: where the bounds are equal, draws about it are never within.
        elite_mean = np.clip(elite_mean, low, high)
        mean = np.clip(kept * mean + (1 - kept) * elite_mean, low, high)
        deviation = np.where(low < high, kept * deviation + (1 - kept) * elite_deviation, 0.0)
    actions = elite_mean if execute == "elite_mean" else best
    return Plan(actions=actions, returns=best_return, best=best, warm_start=mean)


def truncated_normal(
    rng: np.random.Generator, mean: FloatArray, deviation: FloatArray, count: int, low: FloatArray, high: FloatArray
) -> FloatArray:
    """Draw (E, count, H, A) from Gaussians (E, H, A); entries outside the bounds are drawn again."""
    shape = (mean.shape[0], count, *mean.shape[1:])
    centre, spread = np.broadcast_to(mean[:, None], shape), np.broadcast_to(deviation[:, None], shape)
    lower, upper = np.broadcast_to(low, shape), np.broadcast_to(high, shape)
    samples = centre + spread * rng.standard_normal(shape)
    outside = np.nonzero((samples < lower) | (samples > upper))
    while len(outside[0]):
        redrawn = centre[outside] + spread[outside] * rng.standard_normal(len(outside[0]))
        samples[outside] = redrawn
        still = (redrawn < lower[outside]) | (redrawn > upper[outside])
        outside = tuple(axis[still] for axis in outside)
    return samples
