"""The improved cross-entropy method (iCEM): the same search with a quarter of the rollouts.

Pinneri et al., "Sample-efficient Cross-Entropy Method for Real-time Planning", CoRL 2020, algorithm 1.
"""

from __future__ import annotations

import numpy as np

from persim_gym.planning.search import ContinuousSearch, Plan, elites_of, gaussian_moments, score
from persim_gym.planning.settings import checks_settings
from persim_gym.types import FloatArray


@checks_settings
def improved_cross_entropy_method(
    search: ContinuousSearch,
    *,
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
        search: what to plan for; the previous plans may bring elites to remember.
        num_candidates: C drawn in the first round.
        num_elites: how many of the best a round keeps.
        num_rounds: number of rounds.
        smoothing: weight of the old moments.
        initial_deviation: standard deviation of the first round, in half widths of the bounds.
        noise_exponent: β; the noise's power falls with frequency f as f^−β, 0 is white. The paper has 0.25 for
            running HalfCheetah and 2 to 3.5 for other tasks.
        decay: by which the number of candidates is divided from round to round, down to twice the elites.
        kept_fraction: part of the elites that competes again.

    Raises:
        InvalidArgumentError: a setting out of its range, or more elites than candidates.
        NonFiniteReturnError: all candidates of an environment diverge.

    """
    old = search.previous if search.previous.ndim == 4 else search.previous[:, None]
    old = np.concatenate([old[:, :, 1:], old[:, :, -1:]], axis=2)  # one step on; the last action is repeated
    mean = np.where(search.warm[:, None, None], old[:, 0], search.middle)
    count, horizon, size = mean.shape
    deviation = np.broadcast_to(initial_deviation * search.span, mean.shape)
    num_kept = int(kept_fraction * num_elites)
    elites = np.empty((count, 0, horizon, size))
    for index in range(num_rounds):
        drawn = max(int(num_candidates * decay**-index), 2 * num_elites)
        noise = colored_noise(search.rng, noise_exponent, (count, drawn, size, horizon)).swapaxes(2, 3)
        candidates = np.clip(mean[:, None] + deviation[:, None] * noise, search.low, search.high)
        if index == 0:
            remembered = old[:, 1:]
            rows = np.flatnonzero(search.warm)
            candidates[rows, : remembered.shape[1]] = remembered[rows]
        tried = [candidates, elites[:, :num_kept]]
        if index == num_rounds - 1:
            tried.append(mean[:, None])
        candidates = np.concatenate(tried, axis=1)
        elites, scores = elites_of(candidates, score(search, candidates), num_elites)
        elite_mean, elite_deviation = gaussian_moments(elites, np.isfinite(scores))
        mean = smoothing * mean + (1 - smoothing) * elite_mean
        deviation = smoothing * deviation + (1 - smoothing) * elite_deviation
    best = elites[:, 0]
    memory = np.concatenate([mean[:, None], elites[:, :num_kept]], axis=1)
    return Plan(actions=best, returns=scores[:, 0], best=best, warm_start=memory)


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
