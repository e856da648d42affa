"""How far simulators stray from a log that they have not seen: for data without a true system to compare with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from persim_gym.arguments import whole_number
from persim_gym.data import Trajectories, check_log
from persim_gym.errors import UnknownNameError
from persim_gym.types import FloatArray, IntArray, LearnedDynamics


@dataclass(frozen=True)
class LogError:
    """Error of free-running predictions along one agent's part of a log."""

    agent: str
    ratio: float
    """Root mean over the coordinates of (rmse / unchanged)²: below 1 the simulator says more than that nothing
    changes. A coordinate that never changes is left out."""
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
) -> list[LogError]:
    """Measure how far each agent's simulator strays from a log when it runs freely.

    Every episode is cut into segments of up to ``horizon`` steps. Each member starts from a segment's first state and
    follows the logged actions; the prediction is the aggregate of the members' trajectories.

    Args:
        ensemble: to be measured.
        trajectories: of any of its agents, best of transitions that it was not trained on.
        horizon: steps of a segment.
        aggregate: "mean" or "median" over the members.
        device: to predict on.

    Returns:
        One for each agent of the log, in its order.

    Raises:
        UnknownNameError: the log has an agent that the ensemble does not know.
        InvalidDataError: the log does not fit the ensemble's task.

    """
    horizon = whole_number("horizon", horizon)
    check_log(trajectories, ensemble.task)
    strangers = [label for label in trajectories.agent_labels if label not in ensemble.agent_labels]
    if strangers:
        raise UnknownNameError(
            f"agent {strangers[0]!r} is not in the ensemble ({len(strangers)} such agents); persim_gym.personalize "
            "adds newcomers, from transitions that are then not to be measured on"
        )
    starts, lengths = _segments(trajectories, horizon)
    found = []
    for agent, label in enumerate(trajectories.agent_labels):
        own = trajectories.agents[starts] == agent
        first, count = starts[own], lengths[own]
        steps = first[:, None] + np.minimum(np.arange(count.max()), count[:, None] - 1)
        inside = np.arange(steps.shape[1]) < count[:, None]
        simulator = ensemble.simulator(label, aggregate=aggregate, device=device)
        states = np.asarray(trajectories.observations[first])
        predicted = simulator.combine(simulator.rollout(states, trajectories.actions[steps]))[inside]
        true = np.asarray(trajectories.next_observations[steps[inside]], np.float64)
        rmse = _root_mean_square(predicted - true)
        unchanged = _root_mean_square(np.repeat(states, count, axis=0) - true)
        changes = unchanged > 0
        ratio = _root_mean_square(rmse[changes] / unchanged[changes]) if changes.any() else np.array(0.0)
        found.append(
            LogError(label, float(ratio), tuple(rmse.tolist()), tuple(unchanged.tolist()), len(first), int(count.sum()))
        )
    return found


def _segments(log: Trajectories, horizon: int) -> tuple[IntArray, IntArray]:
    """Return first row (S,) and length (S,) of the segments of all episodes, in the log's order."""
    ends = zip(log.episode_starts.tolist(), log.episode_ends.tolist(), strict=True)
    starts = np.concatenate([np.arange(start, end, horizon) for start, end in ends])
    ends_of = np.repeat(log.episode_ends, -(-log.episode_lengths // horizon))
    return starts, np.minimum(ends_of - starts, horizon)


def _root_mean_square(values: FloatArray) -> FloatArray:
    """Return it over the first axis."""
    with np.errstate(over="ignore", invalid="ignore"):  # a model that diverges
        return np.sqrt(np.mean(np.square(values, dtype=np.float64), axis=0))
