"""What the policy methods ask of a log: all agents' data (-P) or one agent's own (-A), with its terminal flags."""

from __future__ import annotations

import numpy as np

from persim_gym.data import Trajectories, check_log
from persim_gym.errors import InvalidActionError, InvalidDataError
from persim_gym.tasks import Task
from persim_gym.training import task_of
from persim_gym.types import FloatArray

MIN_TRANSITIONS = 5
"""Fewer are refused: there is nothing to learn from them."""


def policy_log(
    trajectories: Trajectories, task: str | Task | None, agent: int | str | None
) -> tuple[Trajectories, Task]:
    """Return the log that a policy learns from, and its task.

    Args:
        trajectories: of all agents.
        task: what it is a log of; by default the task named in it.
        agent: whose own trajectories are used (-A); None for everyone's (-P).

    Raises:
        UnknownNameError: no such agent.
        InvalidDataError: the log does not fit the task, holds too little, or lacks terminal flags.

    """
    found = task_of(trajectories, task)
    check_log(trajectories, found)
    check_terminal_flags(trajectories, found)
    log = trajectories if agent is None else trajectories.select([agent])
    if log.num_transitions < MIN_TRANSITIONS:
        whose = "the log" if agent is None else f"agent {log.agent_labels[0]!r}"
        raise InvalidDataError(
            f"{whose} has {log.num_transitions} transitions; a policy needs at least {MIN_TRANSITIONS}: "
            "collect more, or learn from all agents (agent=None)"
        )
    return log, found


def check_terminal_flags(log: Trajectories, task: Task) -> None:
    """Raise `InvalidDataError` if the log reaches terminal states, yet no row of it is flagged as terminated.

    A value learned from such a log goes on counting rewards after the end of the episode.
    """
    if np.asarray(log.terminated).any():
        return
    reached = np.flatnonzero(task.terminated(np.asarray(log.next_observations, np.float64)))
    if len(reached):
        raise InvalidDataError(
            f"row {reached[0]} reaches a terminal state of task {task.name} ({len(reached)} rows do), but no row is "
            "flagged as terminated; give terminated=... when making the trajectories"
        )


def finite_action_bounds(task: Task) -> tuple[FloatArray, FloatArray]:
    """Return the bounds (A,) of continuous actions, or raise `InvalidActionError` if there are none."""
    low, high = task.action_bounds
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise InvalidActionError(
            f"the actions of task {task.name} reach from {low.tolist()} to {high.tolist()}; this method needs finite "
            "bounds: give the task an action space that has them"
        )
    return low, high
