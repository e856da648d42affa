"""What the policy methods ask of a log: all agents' data (-P) or one agent's own (-A), with its terminal flags."""

from __future__ import annotations

import numpy as np

from persim_gym.data.log_and_task import check_log
from persim_gym.data.log_warnings import warn_of_rewards, warn_of_terminal_flags
from persim_gym.data.trajectories import Trajectories
from persim_gym.errors import InvalidDataError
from persim_gym.tasks import Task
from persim_gym.training.outcomes import check_rewards_known
from persim_gym.training.preparation import task_of
from persim_gym.types import IntArray

MIN_TRANSITIONS = 5
"""Fewer are refused: there is nothing to learn from them."""


def policy_log(
    trajectories: Trajectories, task: str | Task | None, agent: int | str | None
) -> tuple[Trajectories, Task]:
    """Return the log that a policy learns from, and its task; warn of what contradicts the task's own functions.

    Args:
        trajectories: of all agents.
        task: the task that the log was recorded in; by default the one named in it.
        agent: whose own trajectories are used (-A); None for everyone's (-P).

    Raises:
        UnknownNameError: no such agent.
        InvalidDataError: the log does not fit the task, holds too little, or lacks terminal flags.

    """
    found = task_of(trajectories, task)
    check_log(trajectories, found)
    log, rows = trajectories, np.arange(trajectories.num_transitions)
    if agent is not None:
        log = trajectories.select([agent])
        rows = rows[trajectories.agents == trajectories.agent_index(agent)]
    check_terminal_flags(log, found, rows)
    warn_of_terminal_flags(trajectories, found)  # of all agents, whose rows are those that the user knows
    warn_of_rewards(trajectories, found)
    if log.num_transitions < MIN_TRANSITIONS:
        whose = "the log" if agent is None else f"agent {log.agent_labels[0]!r}"
        raise InvalidDataError(
            f"{whose} has {_counted(log.num_transitions)}; a policy needs at least {MIN_TRANSITIONS}: "
            "collect more, or learn from all agents (agent=None)"
        )
    return log, found


def _counted(transitions: int) -> str:
    return f"{transitions} transition{'s' * (transitions != 1)}"


def check_terminal_flags(log: Trajectories, task: Task, rows: IntArray) -> None:
    """Raise `InvalidDataError` if the log reaches terminal states, yet no row of it is flagged as terminated.

    The message says what ``rows`` (T,) has for the log's rows. A value learned from such a log goes on counting rewards
    after the end of the episode. Where termination is left to be learned from the log, its flags are all there is.
    """
    if np.asarray(log.terminated).any() or "terminated" in task.learned:
        return
    reached = np.flatnonzero(task.terminated(np.asarray(log.next_observations, np.float64)))
    if len(reached):
        raise InvalidDataError(
            f"row {rows[reached[0]]} reaches a terminal state of task {task.name} ({len(reached)} rows do), but no row "
            "is flagged as terminated; give terminated=... when making the trajectories"
        )


def check_rewards(log: Trajectories, task: Task) -> None:
    """Raise `InvalidDataError` if all rewards of a log are zero, as they are when none were given, yet the task's not.

    Where the reward is left to be learned from the log, its rewards are all there is.
    """
    check_rewards_known(log, task)
    if np.asarray(log.rewards).any():
        return
    columns = (np.asarray(column, np.float64) for column in (log.observations, log.actions, log.next_observations))
    if np.any(task.reward(*columns)):
        raise InvalidDataError(
            f"all rewards of the log are zero, but those of task {task.name} are not; give rewards=... when making the "
            "trajectories"
        )
