"""Forecasts with intervals: how sure a simulator is along the horizon.

A forecast is the mean and the deviation of paths that run freely. They differ for three reasons: the members disagree,
the agent's factor is drawn from its posterior in each member, and noise is drawn at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from persim_gym.arguments import array_or_object, generator_of, whole_number
from persim_gym.data.labels import NumberedLabels, find_agent, find_listed
from persim_gym.errors import InvalidActionError, InvalidArgumentError
from persim_gym.evaluation.intervals import half_widths, range_of
from persim_gym.model.dynamics import check_is_ensemble
from persim_gym.model.ensemble import Ensemble
from persim_gym.simulators.factor_simulator import FactorSimulator
from persim_gym.types import FloatArray, IntArray

LEAST_DRAWS = 3
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
    draws = whole_number("draws", draws, least=LEAST_DRAWS)
    if array_or_object(levels).ndim != 1 or len(levels) == 0:
        raise InvalidArgumentError(f"levels={levels!r} must be one probability or more, such as (0.5, 0.9)")
    rng, chosen = generator_of(seed), _agent_of_rows(ensemble, agents, len(observations))
    moves = ensemble.task.check_actions(actions, len(observations), "H")
    if 0 in moves.shape:
        raise InvalidActionError(f"actions of shape {moves.shape} are none: forecast at least one step of one row")
    ensemble.known_posterior()  # says at once if there is none
    widths = np.stack([half_widths(ensemble, level) for level in levels])  # (levels, ranges, D)
    means, deviations = predicted_moments(ensemble, chosen, observations, moves, draws, rng, device)
    half = widths[:, range_of(means.shape[1])][:, None] * deviations
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


def predicted_moments(
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
    drawn = of_nameless_agents(ensemble, np.concatenate(list(factors), axis=1))
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


def of_nameless_agents(ensemble: Ensemble, factors: FloatArray) -> Ensemble:
    """Return the ensemble of n other agents, without names, who have the factors (M, n, r)."""
    return replace(
        ensemble,
        parameters={**ensemble.parameters, "agent.weight": ensemble.table_rows(factors)},
        agent_labels=NumberedLabels(factors.shape[1]),
        covariates=None,
        posterior=None,
        outcomes={},  # of other agents; predictions of states need none
    )
