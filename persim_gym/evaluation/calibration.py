"""How sure a simulator is along the horizon: forecasts with intervals, and intervals that hold what they promise.

A forecast is the mean and the deviation of paths that run freely. They differ for three reasons: the members disagree,
the agent's factor is drawn from its posterior in each member, and noise is drawn at every step. All three are models of
an error that is mostly the networks' own, so the width of an interval is calibrated: it is the quantile of the errors,
in those standard deviations, that were made for agents of the log, each treated as a newcomer known by the first half
of its transitions, along the second half (split conformal prediction: Lei et al., Journal of the American Statistical
Association 113, 2018, with a scale that depends on the input). Agents have equal weights, however long their logs (Lee,
Barber and Willett, Distribution-free inference with hierarchical data, arXiv 2306.06342, 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
import torch

from persim_gym.arguments import array_or_object, finite_number, generator_of, whole_number
from persim_gym.data.labels import NumberedLabels, find_agent, find_listed
from persim_gym.data.parts import turns
from persim_gym.data.segments import Segments, drawn_starts
from persim_gym.data.trajectories import Trajectories
from persim_gym.errors import InvalidActionError, InvalidArgumentError, InvalidDataError
from persim_gym.factors.statistics import sufficient_statistics
from persim_gym.model.dynamics import check_is_ensemble, check_log_of
from persim_gym.model.ensemble import Ensemble
from persim_gym.model.posterior import FactorPosterior
from persim_gym.simulators.factor_simulator import FactorSimulator
from persim_gym.types import BoolArray, FloatArray, IntArray
from persim_gym.user_warnings import warn_user

LEVELS = (0.5, 0.8, 0.9, 0.95)
"""Probabilities of the intervals that calibration measures."""
RANGES = (1, 5, 20)
"""Last steps of the ranges of the horizon that have widths of their own; the last range has no end."""
_HORIZON = 50
_MAX_SEGMENTS = 1000
_LEAST_AGENTS = 20
"""With errors of fewer agents a range of the horizon takes over the widths of the one before."""
_LEAST_DRAWS = 3
"""So that noise can have no mean and no correlation with the states, and still be there."""


@dataclass(frozen=True)
class Forecast:
    """Predictive distribution along a horizon of B trajectories."""

    means: FloatArray
    """(B, H, D): observations after each action."""
    standard_deviations: FloatArray
    """(B, H, D), in the units of the observations."""
    levels: tuple[float, ...]
    lower: FloatArray
    """(levels, B, H, D), within the observation space where the ensemble keeps its states there."""
    upper: FloatArray
    """(levels, B, H, D)."""


def forecast(
    ensemble: Ensemble,
    agents: int | str | Sequence[int | str],
    observations: FloatArray,
    actions: FloatArray | IntArray,
    *,
    levels: Sequence[float] = (0.5, 0.8, 0.95),
    draws: int = 8,
    seed: int | np.random.Generator = 0,
    device: str = "cpu",
) -> Forecast:
    """Predict where action sequences lead, and how sure that is.

    Args:
        ensemble: ensemble with the posterior of its agents' factors. Its intervals are those of normal distributions
            unless it has been calibrated.
        agents: index or label of the agent, or a list with the agent of each row.
        observations: (B, D) start states.
        actions: (B, H) integers or (B, H, A) numbers.
        levels: coverage probabilities in (0, 1). A calibrated ensemble supports 0.5, 0.8, 0.9 and 0.95 only.
        draws: number of paths per member, with factors and noise of their own; at least 3.
        seed: seed of the draws, or the generator that they come from.
        device: device to predict on.

    Raises:
        UnknownNameError: there is no such agent.
        MissingStatisticsError: the ensemble has no posterior.
        InvalidArgumentError: an argument out of its range, levels that are not known, or another number of agents
            than of rows.
        InvalidStateError: start states of another shape, not finite, or outside the observation space.
        InvalidActionError: actions of another shape, or that are none of the task's.

    """
    check_is_ensemble(ensemble)
    observations = ensemble.task.check_states(observations, "B").astype(np.float32)
    draws = whole_number("draws", draws, least=_LEAST_DRAWS)
    if array_or_object(levels).ndim != 1 or len(levels) == 0:
        raise InvalidArgumentError(f"levels={levels!r} must be one probability or more, such as (0.5, 0.9)")
    rng, chosen = generator_of(seed), _agent_of_rows(ensemble, agents, len(observations))
    moves = ensemble.task.check_actions(actions, len(observations), "H")
    if 0 in moves.shape:
        raise InvalidActionError(f"actions of shape {moves.shape} are none: forecast at least one step of one row")
    ensemble.known_posterior()  # says at once if there is none
    widths = np.stack([_widths(ensemble, level) for level in levels])  # (levels, ranges, D)
    means, deviations = _predict(ensemble, chosen, observations, moves, draws, rng, device)
    half = widths[:, _range_of(means.shape[1])][:, None] * deviations
    lower, upper = means - half, means + half
    if ensemble.state_bounds is not None:  # and so are the means
        lower, upper = (np.clip(bound, *ensemble.state_bounds) for bound in (lower, upper))
    return Forecast(means, deviations, tuple(levels), lower, upper)


def _agent_of_rows(ensemble: Ensemble, agents: int | str | Sequence[int | str], rows: int) -> IntArray:
    """Return the index of each row's agent (B,), one given for all or for each."""
    if isinstance(agents, (int, str, np.integer)):
        return np.full(rows, find_agent(agents, ensemble.agent_labels))
    chosen = find_listed(agents, ensemble.agent_labels, distinct=False)
    if len(chosen) != rows:
        raise InvalidArgumentError(f"agents={list(agents)} must be one agent, or {rows}, one for each observation")
    return chosen


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
    draws, rng = whole_number("draws", draws, least=_LEAST_DRAWS), generator_of(seed)
    check_is_ensemble(ensemble)
    check_log_of(ensemble, trajectories)
    posterior = ensemble.known_posterior()
    if trajectories.digest == ensemble.provenance.get("data_digest"):
        warn_user(
            "the ensemble was trained on this very log, on which its errors are smaller than on others: the intervals "
            "will be too narrow; calibrate on a log of agents that it has not seen"
        )
    elif trajectories.provenance == ensemble.provenance.get("data"):
        shared = set(trajectories.agent_labels) & set(ensemble.agent_labels)
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
    newcomers = replace(_of_agents(ensemble, means), posterior=known)
    segments = _segments(trajectories, late, rng)
    agents = np.asarray(trajectories.agents[segments.starts], np.int64)
    if len(np.unique(agents)) < _LEAST_AGENTS:
        raise InvalidDataError(
            f"the log has {trajectories.num_agents} agents, {len(np.unique(agents))} of them with a second half to "
            f"measure errors along; calibration needs {_LEAST_AGENTS}"
        )
    states, rows = trajectories.observations[segments.starts], segments.rows
    means, deviations = _predict(newcomers, agents, states, trajectories.actions[rows], draws, rng, device)
    errors = np.abs(trajectories.next_observations[rows] - means) / np.maximum(deviations, np.finfo(np.float32).tiny)
    return replace(ensemble, calibration=_widths_of(errors, segments.inside, agents))


def _predict(
    ensemble: Ensemble,
    agents: IntArray,
    observations: FloatArray,
    actions: FloatArray | IntArray,
    draws: int,
    rng: np.random.Generator,
    device: str,
) -> tuple[FloatArray, FloatArray]:
    """Return means and standard deviations (B, H, D) of predictions for one agent (B,) a row."""
    posterior = ensemble.known_posterior()
    rows = len(agents)
    found, place = np.unique(agents, return_inverse=True)
    factors = posterior.draw(found, rng, draws)  # (draws, M, n, r)
    means, _ = posterior.moments(found)
    # A few draws are centred elsewhere than the posterior, and so would the forecast be.
    factors = means + (factors - factors.mean(0)) * np.sqrt(draws / (draws - 1))
    drawn = _of_agents(ensemble, np.concatenate(list(factors), axis=1))
    copies = (np.arange(draws)[:, None] * len(found) + place).reshape(-1)
    times = (draws,) + (1,) * (actions.ndim - 1)
    with np.errstate(over="ignore", invalid="ignore"):  # a model that diverges
        paths = FactorSimulator(drawn, copies, device=device).rollout(
            np.tile(observations, (draws, 1)), np.tile(actions, times), disturb=_noise(ensemble, draws, rng)
        )
        paths = paths.reshape(-1, draws, rows, *paths.shape[2:])
        centre, deviation = (one(axis=(0, 1), dtype=np.float64) for one in (paths.mean, paths.std))
        return centre, np.maximum(deviation, _rounding(observations, centre))


def _rounding(observations: FloatArray, means: FloatArray) -> FloatArray:
    """Return what float32 may round away from states (B, D) on their way to means (B, H, D).

    A coordinate that always changes alike has no other error, and without one its intervals would have no width.
    """
    largest = np.maximum(np.abs(observations)[:, None], np.abs(means))
    return np.finfo(np.float32).eps * largest * np.arange(1, means.shape[1] + 1)[:, None]


def _noise(ensemble: Ensemble, draws: int, rng: np.random.Generator) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what adds a step's noise to states (M, D, draws·B), and keeps them within bounds if the ensemble does."""
    noise = ensemble.known_posterior().prior.noise_of_predictions  # (M, D)
    deviation = (np.sqrt(noise) * ensemble.normalizer.change_scale)[..., None, None]
    low, high = ensemble.state_bounds or (-np.inf, np.inf)

    def disturbed(states: torch.Tensor) -> torch.Tensor:
        paths = states.double().cpu().numpy().reshape(*states.shape[:2], draws, -1)
        paths = paths + deviation * _unrelated(rng.standard_normal(paths.shape), paths)
        within = np.clip(np.moveaxis(paths, 1, -1), low, high)
        return torch.tensor(np.moveaxis(within, -1, 1).reshape(states.shape), dtype=torch.float32, device=states.device)

    return disturbed


def _unrelated(drawn: FloatArray, paths: FloatArray) -> FloatArray:
    """Return normal numbers (M, D, draws, B) with mean 0 and mean square 1 over the draws, uncorrelated with the paths.

    Numbers as they are drawn are all of that only in the mean, which a few paths are far from; so the variance of a
    path would be, too.
    """
    away = paths - paths.mean(axis=2, keepdims=True)
    size = np.maximum((away**2).sum(axis=2, keepdims=True), np.finfo(np.float64).tiny)
    drawn = drawn - drawn.mean(axis=2, keepdims=True)
    drawn -= away * (drawn * away).sum(axis=2, keepdims=True) / size
    return drawn / np.sqrt((drawn**2).mean(axis=2, keepdims=True))


def _of_agents(ensemble: Ensemble, factors: FloatArray) -> Ensemble:
    """Return the ensemble of n other agents, without names, who have the factors (M, n, r)."""
    return replace(
        ensemble,
        parameters={**ensemble.parameters, "agent.weight": ensemble.table_rows(factors)},
        agent_labels=NumberedLabels(factors.shape[1]),
        covariates=None,
        posterior=None,
        outcomes={},  # of other agents; predictions of states need none
    )


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
    ranges = _range_of(errors.shape[1])
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


def _range_of(horizon: int) -> IntArray:
    """Return the range of the horizon (H,) that each step is in."""
    return np.searchsorted(RANGES, np.arange(1, horizon + 1))


def _widths(ensemble: Ensemble, level: float) -> FloatArray:
    """Return half widths (ranges, D) of an interval, in standard deviations."""
    if not 0 < finite_number("level", level) < 1:
        raise InvalidArgumentError(f"level {level} must be above 0 and below 1")
    if ensemble.calibration is None:
        width = NormalDist().inv_cdf((1 + level) / 2)
        return np.full((len(RANGES) + 1, ensemble.task.observation_size), width)
    if level not in LEVELS:
        raise InvalidArgumentError(f"level {level} is not calibrated; levels are {', '.join(map(str, LEVELS))}")
    return np.asarray(ensemble.calibration)[LEVELS.index(level)]
