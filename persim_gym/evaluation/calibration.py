"""Forecast intervals that hold what they promise.

The members of an ensemble, the posterior of an agent's factors and the noise are all models of an error that is mostly
the networks' own, so the width of an interval is calibrated: it is the quantile of the errors, in the forecast's
standard deviations, that were made for agents of the log, each treated as a newcomer known by the first half of its
transitions, along the second half (split conformal prediction: Lei et al., Journal of the American Statistical
Association 113, 2018, with a scale that depends on the input). Agents have equal weights, however long their logs (Lee,
Barber and Willett, Distribution-free inference with hierarchical data, arXiv 2306.06342, 2023).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from persim_gym.arguments import generator_of, whole_number
from persim_gym.data.parts import turns
from persim_gym.data.segments import Segments, drawn_starts
from persim_gym.data.trajectories import Trajectories
from persim_gym.errors import InvalidDataError
from persim_gym.evaluation.forecasts import LEAST_DRAWS, of_nameless_agents, predicted_moments
from persim_gym.evaluation.intervals import LEVELS, RANGES, range_of
from persim_gym.factors.statistics import sufficient_statistics
from persim_gym.model.dynamics import check_is_ensemble, check_log_of
from persim_gym.model.ensemble import NEWCOMERS, Ensemble
from persim_gym.model.posterior import FactorPosterior
from persim_gym.types import BoolArray, FloatArray, IntArray
from persim_gym.user_warnings import warn_user

_HORIZON = 50
_MAX_SEGMENTS = 1000
_LEAST_AGENTS = 20
"""With errors of fewer agents a range of the horizon takes over the widths of the one before."""


def calibrate(
    ensemble: Ensemble, trajectories: Trajectories, *, draws: int = 8, seed: int = 0, device: str = "cpu"
) -> Ensemble:
    """Return a copy of the ensemble whose forecast intervals are calibrated on its errors along a log.

    Every agent of the log is treated as a newcomer known by the first half of its transitions; errors are counted along
    its second half, up to 50 steps ahead. All agents count alike, whether their logs are long or short.

    Args:
        ensemble: ensemble with the posterior of its agents' factors.
        trajectories: log of held-out agents; their labels do not matter. Calibrating on training agents makes the
            intervals too narrow, because errors on them are smaller; a warning says so.
        draws: number of paths per member, as in `forecast`.
        seed: seed of the draws and of where the segments begin.
        device: device to predict on.

    Raises:
        MissingStatisticsError: the ensemble has no posterior.
        InvalidArgumentError: an argument out of its range.
        InvalidDataError: the log does not fit the ensemble's task, or is too short to calibrate with.

    """
    draws, rng = whole_number("draws", draws, least=LEAST_DRAWS), generator_of(seed)
    check_is_ensemble(ensemble)
    check_log_of(ensemble, trajectories)
    posterior = ensemble.known_posterior()
    if trajectories.digest == ensemble.provenance.get("data_digest"):
        warn_user(
            "the ensemble was trained on this very log, on which its errors are smaller than on others: the intervals "
            "will be too narrow; calibrate on a log of agents that it has not seen"
        )
    elif trajectories.provenance == ensemble.provenance.get("data"):
        trained = set(ensemble.agent_labels) - set(ensemble.provenance.get(NEWCOMERS, ()))
        shared = trained & set(trajectories.agent_labels)
        if shared:
            warn_user(
                f"the ensemble was trained on {len(shared)} of the log's {trajectories.num_agents} agents, by the "
                "labels and the provenance of the log: the intervals will be too narrow for others; calibrate on "
                "agents that it has not seen, kept, new = log.split(0.2, by='agent')"
            )
    early, late = _halves(trajectories)
    statistics = sufficient_statistics(ensemble, trajectories, np.flatnonzero(early), device=device)
    known = FactorPosterior.of(posterior.prior, statistics)
    means, _ = known.moments(np.arange(trajectories.num_agents))
    newcomers = replace(of_nameless_agents(ensemble, means), posterior=known)
    segments = _segments(trajectories, late, rng)
    agents = np.asarray(trajectories.agents[segments.starts], np.int64)
    if len(np.unique(agents)) < _LEAST_AGENTS:
        raise InvalidDataError(
            f"the log has {trajectories.num_agents} agents, {len(np.unique(agents))} of them with a second half to "
            f"measure errors along; calibration needs {_LEAST_AGENTS}"
        )
    states, rows = trajectories.observations[segments.starts], segments.rows
    means, deviations = predicted_moments(newcomers, agents, states, trajectories.actions[rows], draws, rng, device)
    errors = np.abs(trajectories.next_observations[rows] - means) / np.maximum(deviations, np.finfo(np.float32).tiny)
    return replace(ensemble, calibration=_widths_of(errors, segments.inside, agents))


def _halves(log: Trajectories) -> tuple[BoolArray, BoolArray]:
    """Return which rows (T,) are in the first half of their agent's transitions, and which in the second."""
    counts = np.bincount(log.agents, minlength=log.num_agents)
    early = turns(log.agents) < counts[log.agents] // 2
    return early, ~early


def _segments(log: Trajectories, late: BoolArray, rng: np.random.Generator) -> Segments:
    """Return up to 1000 segments that begin anywhere in the late rows, drawn in turn of all agents."""
    starts = drawn_starts(log, late, _MAX_SEGMENTS, rng)
    return Segments(starts, np.minimum(log.steps_left[starts], _HORIZON))


def _widths_of(errors: FloatArray, inside: BoolArray, agents: IntArray) -> FloatArray:
    """Return widths (levels, ranges, D) from errors (B, H, D) in standard deviations, where inside (B, H)."""
    ranges = range_of(errors.shape[1])
    widths = np.empty((len(LEVELS), len(RANGES) + 1, errors.shape[2]))
    for index in range(widths.shape[1]):
        here = inside & (ranges == index)
        whose = np.broadcast_to(agents[:, None], here.shape)[here]
        if len(np.unique(whose)) < _LEAST_AGENTS:
            widths[:, index] = widths[:, index - 1]
        else:
            widths[:, index] = _quantiles(np.nan_to_num(errors[here], nan=np.inf), whose)
    return widths


def _quantiles(errors: FloatArray, agents: IntArray) -> FloatArray:
    """Return the quantiles (levels, D) of errors (n, D) of agents (n,), all agents with the same weight.

    The next agent counts as one more, whose errors are larger than all of these.
    """
    _, place, counts = np.unique(agents, return_inverse=True, return_counts=True)
    order = np.argsort(errors, axis=0)
    mass = np.cumsum((1 / counts)[place][order], axis=0)
    needed = np.array(LEVELS)[:, None, None] * (len(counts) + 1) - 1e-9  # less rounding
    return np.take_along_axis(np.take_along_axis(errors, order, 0), (mass < needed).sum(axis=1), 0)
