"""The improved cross-entropy method (iCEM): the same search with a quarter of the rollouts.

Pinneri et al., "Sample-efficient Cross-Entropy Method for Real-time Planning", CoRL 2020, algorithm 1.
"""

from __future__ import annotations

import numpy as np

from persim_gym.errors import InvalidArgumentError
from persim_gym.planning.search import Plan, gaussian_moments, score
from persim_gym.rollouts import ReturnFn
from persim_gym.types import BoolArray, FloatArray


def improved_cross_entropy_method(
    returns: ReturnFn,
    *,
    low: FloatArray,
    high: FloatArray,
    rng: np.random.Generator,
    previous: FloatArray,
    warm: BoolArray,
    horizon: int = 30,
    num_candidates: int = 80,
    num_elites: int = 10,
    num_rounds: int = 4,
    smoothing: float = 0.1,
    initial_deviation: float = 0.5,
    noise_exponent: float = 0.25,
    decay: float = 1.25,
    kept_fraction: float = 0.3,
) -> Plan:
    """Fit a Gaussian over sequences to its best samples, with noise that is correlated in time and a memory.

    Candidates beyond the bounds are clipped. A part of the elites competes again in the next round and, shifted by one
    step, in the next plan; the last round also tries the mean. The best sequence of the last round is executed.

    Args:
        returns: scores candidate sequences.
        low: (A,) lower bounds of the actions.
        high: (A,) upper bounds.
        rng: source of the candidates.
        previous: (E, H, A) warm start, or (E, 1 + n, H, A) as the last plan returned it: the mean, then n elites.
        warm: (E,) whether ``previous`` means anything.
        horizon: H.
        num_candidates: C drawn in the first round.
        num_elites: how many of the best a round keeps.
        num_rounds: rounds.
        smoothing: weight of the old moments.
        initial_deviation: standard deviation of the first round, in half widths of the bounds.
        noise_exponent: β; the noise's power falls with frequency f as f^−β, 0 is white. The paper has 0.25 for
            running HalfCheetah and 2 to 3.5 for other tasks.
        decay: by which the number of candidates is divided from round to round, down to twice the elites.
        kept_fraction: part of the elites that competes again.

    Raises:
        InvalidArgumentError: ``decay`` below 1 or ``kept_fraction`` not between 0 and 1.

    """
    if not decay >= 1 or not 0 <= kept_fraction <= 1:
        raise InvalidArgumentError(
            f"decay={decay} must be at least 1 and kept_fraction={kept_fraction} between 0 and 1"
        )
    count = len(previous)
    middle, span = 0.5 * (low + high), 0.5 * (high - low)
    old = previous if previous.ndim == 4 else previous[:, None]
    old = np.concatenate([old[:, :, 1:], old[:, :, -1:]], axis=2)  # one step on; the last action is repeated
    mean = np.where(warm[:, None, None], old[:, 0], middle)
    deviation = np.broadcast_to(initial_deviation * span, mean.shape)
    environments = np.arange(count)
    num_kept = int(kept_fraction * num_elites)
    elites = np.empty((count, 0, *mean.shape[1:]))
    for index in range(num_rounds):
        drawn = max(int(num_candidates * decay**-index), 2 * num_elites)
        noise = colored_noise(rng, noise_exponent, (count, drawn, mean.shape[2], horizon)).swapaxes(2, 3)
        candidates = np.clip(mean[:, None] + deviation[:, None] * noise, low, high)
        if index == 0:
            remembered = old[:, 1:]
            rows = np.flatnonzero(warm)
            candidates[rows, : remembered.shape[1]] = remembered[rows]
        tried = [candidates, elites[:, :num_kept]]
        if index == num_rounds - 1:
            tried.append(mean[:, None])
        candidates = np.concatenate(tried, axis=1)
        scores = score(returns, environments, candidates)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :num_elites]
        elites = np.take_along_axis(candidates, order[:, :, None, None], axis=1)
        elite_scores = np.take_along_axis(scores, order, axis=1)
        elite_mean, elite_deviation = gaussian_moments(elites, np.isfinite(elite_scores))
        mean = smoothing * mean + (1 - smoothing) * elite_mean
        deviation = smoothing * deviation + (1 - smoothing) * elite_deviation
    best = elites[:, 0]
    memory = np.concatenate([mean[:, None], elites[:, :num_kept]], axis=1)
    return Plan(actions=best, returns=elite_scores[:, 0], best=best, warm_start=memory)


def colored_noise(rng: np.random.Generator, exponent: float, shape: tuple[int, ...]) -> FloatArray:
    """Draw Gaussian noise whose power falls with frequency f as f^−exponent along the last axis, of unit variance.

    White noise is filtered in the frequency domain (Timmer and König, "On generating power law noise", Astronomy and
    Astrophysics 300, 1995); the lowest frequency, zero, counts as one period in the whole length.
    """
    length = shape[-1]
    frequencies = np.fft.rfftfreq(length)
    frequencies[0] = 1 / length
    gains = frequencies ** (-exponent / 2)
    twice = np.full(len(gains), 2.0)  # all frequencies occur twice in the full spectrum, but zero and the highest
    twice[0] = 1.0
    if length % 2 == 0:
        twice[-1] = 1.0
    gains /= np.sqrt((twice * gains**2).sum() / length)
    return np.fft.irfft(np.fft.rfft(rng.standard_normal(shape)) * gains, n=length)
