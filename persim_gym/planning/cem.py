"""The cross-entropy method as the paper's code runs it."""

from __future__ import annotations

import numpy as np

from persim_gym.errors import InvalidArgumentError
from persim_gym.planning.search import Plan, gaussian_moments, score, shifted
from persim_gym.rollouts import ReturnFn
from persim_gym.types import BoolArray, FloatArray

EXECUTE = ("elite_mean", "best")


def cross_entropy_method(
    returns: ReturnFn,
    *,
    low: FloatArray,
    high: FloatArray,
    rng: np.random.Generator,
    previous: FloatArray,
    warm: BoolArray,
    horizon: int = 30,
    num_candidates: int = 200,
    num_elites: int | None = None,
    num_rounds: int = 6,
    smoothing: float = 0.1,
    initial_deviation: tuple[float, float] = (0.3, 0.6),
    execute: str = "elite_mean",
) -> Plan:
    """Fit a Gaussian over sequences of continuous actions to its best samples, again and again.

    Args:
        returns: scores candidate sequences.
        low: (A,) lower bounds of the actions.
        high: (A,) upper bounds.
        rng: source of the candidates.
        previous: (E, H, A) warm start; where ``warm``, the search starts from it, shifted by one step.
        warm: (E,) whether ``previous`` means anything.
        horizon: H.
        num_candidates: C a round.
        num_elites: how many of the best a round keeps; by default a quarter of the candidates, the paper's 50 of 200.
        num_rounds: rounds; the first takes the elites' moments as they are, the later ones smooth.
        smoothing: weight of the old moments.
        initial_deviation: range from which one initial standard deviation is drawn for each environment.
        execute: "elite_mean", the mean of the last elites (the paper's code), or "best", the best sequence of the last
            round (the paper's text).

    Raises:
        InvalidArgumentError: ``execute`` is neither, there are more elites than candidates, or ``smoothing`` is not
            from 0 to below 1.

    """
    if execute not in EXECUTE:
        raise InvalidArgumentError(f"execute={execute!r} must be one of {', '.join(EXECUTE)}")
    if num_elites is None:
        num_elites = max(1, num_candidates // 4)
    if num_elites > num_candidates:
        raise InvalidArgumentError(f"num_elites={num_elites} must be at most num_candidates={num_candidates}")
    if not 0 <= smoothing < 1:
        raise InvalidArgumentError(f"smoothing={smoothing} must be at least 0 and below 1")
    count = len(previous)
    middle = np.broadcast_to(0.5 * (low + high), (count, low.shape[0]))
    start = shifted(np.clip(previous, low, high), middle)
    mean = np.where(warm[:, None, None], start, middle[:, None])
    span = 0.5 * (high - low)
    deviation = np.broadcast_to(rng.uniform(*initial_deviation, (count, 1, 1)) * span, mean.shape)
    environments = np.arange(count)
    best = elite_mean = mean
    best_return = np.full(count, -np.inf)
    for index in range(num_rounds):
        candidates = truncated_normal(rng, mean, deviation, num_candidates, low, high)
        scores = score(returns, environments, candidates)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :num_elites]
        elites = np.take_along_axis(candidates, order[:, :, None, None], axis=1)
        best, best_return = elites[:, 0], scores[environments, order[:, 0]]
        elite_mean, elite_deviation = gaussian_moments(elites, np.isfinite(np.take_along_axis(scores, order, axis=1)))
        kept = smoothing if index > 0 else 0.0
        mean = kept * mean + (1 - kept) * elite_mean
        deviation = kept * deviation + (1 - kept) * elite_deviation
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
