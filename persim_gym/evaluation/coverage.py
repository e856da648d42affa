"""Whether the intervals of `forecast` hold what they promise, along a log that the ensemble has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from persim_gym.arguments import as_list, generator_of, whole_number
from persim_gym.data.labels import AgentIndex
from persim_gym.data.segments import drawn_starts
from persim_gym.data.trajectories import Trajectories, check_is_log
from persim_gym.errors import InvalidDataError
from persim_gym.evaluation.agents import agents_along
from persim_gym.evaluation.forecasts import forecast
from persim_gym.model.dynamics import check_is_ensemble
from persim_gym.model.ensemble import Ensemble
from persim_gym.types import FloatArray

_MAX_SEGMENTS = 1000


@dataclass(frozen=True)
class IntervalCoverage:
    """How often intervals of one probability hold what a log has so many steps ahead; all its agents count alike."""

    horizon: int
    """Steps ahead."""
    level: float
    covered: float
    """Part of the observations within their intervals, mean over the coordinates; to be about ``level``."""
    by_coordinate: tuple[float, ...]
    """(D,): of each coordinate."""
    width: tuple[float, ...]
    """(D,): mean width of the intervals, in the coordinate's own units."""
    segments: int
    agents: int


def interval_coverage(
    ensemble: Ensemble,
    trajectories: Trajectories,
    *,
    horizons: Sequence[int] = (1, 10, 50),
    levels: Sequence[float] = (0.5, 0.8, 0.95),
    draws: int = 8,
    seed: int = 0,
    device: str = "cpu",
) -> list[IntervalCoverage]:
    """Measure how often the intervals of `forecast` cover what a log's agents did.

    Forecasts begin anywhere in the log, at up to 1000 rows for each horizon, one of each agent, then a second one, …,
    and follow the logged actions. A horizon that no episode is long enough for is left out. Warns of a synthetic log,
    and of the one that the ensemble was trained on.

    Args:
        ensemble: with the posterior of its agents' factors, calibrated or not.
        trajectories: log of any of its agents, of transitions that it has not seen: what `Trajectories.split` held out
            or, of newcomers, what came after those that `personalize` was given.
        horizons: steps ahead.
        levels: probabilities of the intervals, as in `forecast`.
        draws: number of paths per member, as in `forecast`.
        seed: of the draws and of where forecasts begin.
        device: device to predict on.

    Returns:
        A row for each horizon and level.

    Raises:
        UnknownNameError: the log has an agent that the ensemble does not know.
        InvalidDataError: the log does not fit the ensemble's task, is of other agents of the same labels, or has no
            episode as long as the shortest horizon.
        InvalidArgumentError: a horizon or another argument out of its range.
        MissingStatisticsError: the ensemble has no posterior.

    """
    rng = generator_of(seed)
    steps = sorted({whole_number("horizons", one) for one in as_list("horizons", horizons, "steps ahead")})
    check_is_ensemble(ensemble)
    check_is_log(trajectories)
    ensemble.known_posterior()  # says at once if there is none
    agents = agents_along(ensemble, trajectories)
    longest = int(trajectories.episode_lengths.max())
    within = [horizon for horizon in steps if horizon <= longest]
    if not within:
        raise InvalidDataError(
            f"horizons={list(horizons)!r} are beyond the log's longest episode, which has {longest} steps"
        )
    found: list[IntervalCoverage] = []
    for horizon in within:
        starts = drawn_starts(trajectories, trajectories.steps_left >= horizon, _MAX_SEGMENTS, rng)
        rows, owners = starts[:, None] + np.arange(horizon), trajectories.agents[starts]
        predicted = forecast(
            ensemble, [AgentIndex(agent) for agent in agents[owners]], trajectories.observations[starts],
            trajectories.actions[rows], levels=levels, draws=draws, seed=rng, device=device,
        )  # fmt: skip
        lower, upper = predicted.lower[:, :, -1], predicted.upper[:, :, -1]  # (levels, B, D)
        true = trajectories.next_observations[rows[:, -1]]
        _, place, counts = np.unique(owners, return_inverse=True, return_counts=True)
        weights = 1 / (counts[place] * len(counts))
        shares, widths = (_weighted(one, weights) for one in ((true >= lower) & (true <= upper), upper - lower))
        found += [
            IntervalCoverage(
                horizon, float(level), float(share.mean()), tuple(share.tolist()), tuple(width.tolist()), len(starts),
                len(counts),
            )
            for level, share, width in zip(predicted.levels, shares, widths, strict=True)
        ]  # fmt: skip
    return found


def _weighted(values: np.ndarray, weights: FloatArray) -> FloatArray:
    """Return the means (levels, D) of values (levels, B, D) with weights (B,)."""
    return np.einsum("lbd,b->ld", values.astype(np.float64), weights)
