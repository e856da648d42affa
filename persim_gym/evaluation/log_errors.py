"""How far simulators stray from a log that they have not seen: for data without a true system to compare with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from persim_gym.arguments import whole_number
from persim_gym.data.labels import AgentIndex
from persim_gym.data.segments import Segments
from persim_gym.data.trajectories import Trajectories
from persim_gym.evaluation.agents import agents_along
from persim_gym.model.dynamics import LearnedDynamics
from persim_gym.terminal import ProgressBar
from persim_gym.types import FloatArray


@dataclass(frozen=True)
class LogError:
    """Error of free-running predictions along one agent's part of a log."""

    agent: str
    ratio: float
    """Root mean over the coordinates of (rmse / unchanged)²: below 1 the simulator beats the prediction that nothing
    changes. A coordinate that never changes is left out; NaN if none changes, infinity for a simulator that
    diverges."""
    rmse: tuple[float, ...]
    """(D,): root mean squared error of each coordinate over all steps, in its own units."""
    unchanged: tuple[float, ...]
    """(D,): the same for the prediction that the state stays what it was at the beginning of the segment."""
    segments: int
    steps: int


def log_error(
    ensemble: LearnedDynamics,
    trajectories: Trajectories,
    *,
    horizon: int = 50,
    aggregate: str = "mean",
    device: str = "cpu",
    progress: bool = False,
) -> list[LogError]:
    """Measure how far each agent's simulator strays from a log when it runs freely.

    Every episode is cut into segments of up to ``horizon`` steps. Each member starts from a segment's first state and
    follows the logged actions; the prediction is the aggregate of the members' trajectories. Warns of a synthetic log,
    and of the one that the ensemble was trained on.

    Args:
        ensemble: model to be measured.
        trajectories: log of any of its agents, best of transitions that it was not trained on (`Trajectories.split`).
        horizon: number of steps per segment.
        aggregate: "mean" or "median" over the members.
        device: device to predict on.
        progress: whether to show a bar.

    Returns:
        One row per agent of the log, in its order.

    Raises:
        UnknownNameError: the log has an agent that the ensemble does not know.
        InvalidDataError: the log does not fit the ensemble's task, or is of other agents of the same labels.
        InvalidArgumentError: a horizon below 1, or an unknown aggregate or device.

    """
    horizon = whole_number("horizon", horizon)
    agents = agents_along(ensemble, trajectories)
    segments, rounding = _segments(trajectories, horizon), np.finfo(np.float32).eps
    found: list[LogError] = []
    with ProgressBar("log error", trajectories.num_agents, progress) as bar:
        for agent, label in enumerate(trajectories.agent_labels):
            own = segments.where(trajectories.agents[segments.starts] == agent)
            simulator = ensemble.simulator(AgentIndex(agents[agent]), aggregate=aggregate, device=device)
            states = np.asarray(trajectories.observations[own.starts])
            predicted = simulator.combine(simulator.rollout(states, trajectories.actions[own.rows]))[own.inside]
            predicted = np.where(np.isnan(predicted), np.inf, predicted)  # infinity minus infinity, on the way out
            true = np.asarray(trajectories.next_observations[own.rows[own.inside]], np.float64)
            rmse = _root_mean_square(predicted - true)
            unchanged = _root_mean_square(np.repeat(states, own.lengths, axis=0) - true)
            changes = unchanged > rounding * np.abs(true).max(axis=0)
            found.append(
                LogError(
                    agent=label,
                    ratio=float(_root_mean_square(rmse[changes] / unchanged[changes]))
                    if changes.any()
                    else float("nan"),
                    rmse=tuple(rmse.tolist()),
                    unchanged=tuple(unchanged.tolist()),
                    segments=len(own.starts),
                    steps=int(own.lengths.sum()),
                )
            )
            bar.advance(f"agent {label}: ratio {found[-1].ratio:.3g}")
    return found


def mean_over_agents(errors: Sequence[LogError]) -> LogError:
    """Return the means of one or more agents' errors, and how many segments and steps there were in all.

    The mean ratio is that of the agents who have one; NaN if none has.
    """
    ratios = [row.ratio for row in errors if not math.isnan(row.ratio)]
    return LogError(
        agent="all agents",
        ratio=float(np.mean(ratios)) if ratios else math.nan,
        rmse=tuple(np.mean([row.rmse for row in errors], axis=0).tolist()),
        unchanged=tuple(np.mean([row.unchanged for row in errors], axis=0).tolist()),
        segments=sum(row.segments for row in errors),
        steps=sum(row.steps for row in errors),
    )


def _segments(log: Trajectories, horizon: int) -> Segments:
    """Return the segments of all episodes, in the log's order."""
    ends = zip(log.episode_starts.tolist(), log.episode_ends.tolist(), strict=True)
    starts = np.concatenate([np.arange(start, end, horizon) for start, end in ends])
    ends_of = np.repeat(log.episode_ends, -(-log.episode_lengths // horizon))
    return Segments(starts, np.minimum(ends_of - starts, horizon))


def _root_mean_square(values: FloatArray) -> FloatArray:
    """Return the root mean square (…) of values (n, …)."""
    with np.errstate(over="ignore", invalid="ignore"):  # a model that diverges
        return np.sqrt(np.mean(np.square(values, dtype=np.float64), axis=0))
