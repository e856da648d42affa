"""What a log cannot teach, or says otherwise than its task: warnings before training."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from persim_gym.data.trajectories import Trajectories
from persim_gym.errors import InvalidDataError
from persim_gym.tasks import Task, is_built_in
from persim_gym.types import BoolArray, FloatArray, IntArray
from persim_gym.user_warnings import warn_user

_FAR, _LEAST_JUMPS, _RARER = 0.75, 3, 10
"""A jump is a change by 3/4 of a coordinate's range; a wrapping coordinate makes some, and ten times fewer changes of
1/4 to 3/4 of the range."""
_ALIKE = 1e-3
"""Rewards that differ by less than this part of the log's largest are the same, however they were rounded."""


def untried_actions(log: Trajectories, task: Task) -> list[int]:
    """Return the actions that no row has, or, if actions are continuous, the coordinates that never vary; warn of them.

    What they do can only be extrapolated.
    """
    actions = np.asarray(log.actions)
    if task.discrete:
        untried = np.flatnonzero(np.bincount(actions, minlength=task.action_size) == 0).tolist()
        what = f"no row of the log has action {', '.join(map(str, untried))}"
    else:
        untried = np.flatnonzero(np.ptp(actions, axis=0) == 0).tolist()
        what = f"{', '.join(task.action_names[coordinate] for coordinate in untried)} never varies in the log"
    if untried:
        warn_user(
            f"{what}: what simulators and planners do with it is made up; give the task only actions that were tried",
        )
    return untried


def warn_of_terminal_flags(log: Trajectories, task: Task) -> None:
    """Warn of rows whose terminal flag is not what the task's own rule says of their next state.

    Simulators and planners follow the rule, values learned from a log its flags. Nothing is said where the rule is left
    to be learned. A log without any flag is one that was given none: the rule is doubted only if it says yes of most
    rows.
    """
    flagged = np.asarray(log.terminated, bool)
    if "terminated" in task.learned:
        return
    if not flagged.any():
        _warn_of_endless_ends(log, task)
        return
    rows = _contradictory(flagged, np.asarray(log.next_observations, np.float64), task)
    early, late = rows[flagged[rows]], rows[~flagged[rows]]
    parts = []
    if len(early):
        parts.append(
            f"row {early[0]} is flagged as terminated, but the rule says no of its next state (such rows: "
            f"{len(early)}; if time limits ended these episodes, flag them as truncated instead)"
        )
    if len(late):
        parts.append(f"row {late[0]} is not flagged, but the rule says yes (such rows: {len(late)})")
    if parts:
        warn_user(
            f"the log's terminal flags are not what the termination rule of task {task.name} says: {'; '.join(parts)}. "
            "Simulators follow the rule, BCQ and CQL the flags",
        )


def warn_of_long_episodes(log: Trajectories, task: Task) -> None:
    """Warn of episodes beyond a task's time limit: several may have been taken for one."""
    longer = np.flatnonzero(log.episode_lengths > task.max_episode_steps)
    if len(longer):
        first = longer[0]
        warn_user(
            f"{len(longer)} of the log's {log.num_episodes} episodes are longer than the time limit of task "
            f"{task.name}, {task.max_episode_steps} steps; the first begins at row {log.episode_starts[first]} and has "
            f"{log.episode_lengths[first]}: give the task a larger max_episode_steps or, if several episodes were "
            "taken for one, say where they end (from_dataframe(episode=...), truncated=, episode_starts=)"
        )


def _warn_of_endless_ends(log: Trajectories, task: Task) -> None:
    ends = np.asarray(task.terminated(np.asarray(log.next_observations, np.float64)), bool)
    if 2 * ends.sum() > len(ends):
        warn_user(
            f"the termination rule of task {task.name} says yes in {ends.sum()} of {len(ends)} rows, the first of them "
            f"row {np.argmax(ends)}, and the log's flags in none: simulated episodes end almost at once. Look for "
            "another unit, or < for >; if the rule is right, flag those rows as terminated",
        )


def _contradictory(flagged: BoolArray, next_observations: FloatArray, task: Task) -> IntArray:
    """Return the rows that a task's rule contradicts, even if their states (T, D) were rounded to float32."""
    return _different(lambda rows, after: np.asarray(task.terminated(after), bool) != flagged[rows], next_observations)


def _different(differ: Callable[..., BoolArray], *columns: FloatArray) -> IntArray:
    """Return the rows that differ, by a function of rows and their states, even if these (T, D) were rounded."""
    rows = np.arange(len(columns[0]))
    size = columns[0].shape[1]
    for change in (np.zeros(size), np.ones(size), -np.ones(size), *np.eye(size), *-np.eye(size)):
        near = [states[rows] + change * np.spacing(np.abs(states[rows]).astype(np.float32)) for states in columns]
        rows = rows[differ(rows, *near)]
    return rows


def warn_of_rewards(log: Trajectories, task: Task) -> None:
    """Warn of rewards that are not what a user's own reward function says of their rows.

    Simulators, planners and MOReL follow the function, BCQ and CQL the log. Nothing is said of a log all of whose
    rewards are zero, which is one that was given none.

    Raises:
        InvalidDataError: the function returns what is not a finite number.

    """
    if "reward" in task.learned or is_built_in(task):
        return
    logged, actions = np.asarray(log.rewards, np.float64), task.executed(log.actions, log.num_transitions)
    columns = [np.asarray(column, np.float64) for column in (log.observations, log.next_observations)]
    found = np.asarray(task.reward(columns[0], actions, columns[1]), np.float64)
    broken = np.flatnonzero(~np.isfinite(found))
    if len(broken):
        raise InvalidDataError(
            f"the reward function of task {task.name} returns {found[broken[0]]} of row {broken[0]} of the log (such "
            f"rows: {len(broken)} of {len(found)}): it must return a finite number of every state"
        )
    if not logged.any():
        return
    tolerance = _ALIKE * np.abs(logged).max()
    rows = _different(
        lambda rows, before, after: ~(np.abs(task.reward(before, actions[rows], after) - logged[rows]) <= tolerance),
        *columns,
    )
    if len(rows):
        row = rows[0]
        warn_user(
            f"the log's rewards are not what the reward function of task {task.name} says: {logged[row]:g} in row "
            f"{row}, where the function says {found[row]:g} (such rows: {len(rows)} of {len(found)}). Simulators "
            "and MOReL follow the function, BCQ and CQL the log; to learn the log's rewards, make the task without one",
        )


def warn_of_jumps(log: Trajectories, task: Task) -> None:
    """Warn of coordinates that wrap around, as an angle does: the model would have to learn the jumps."""
    counts, wrapping = jumping(np.asarray(log.observations), np.asarray(log.next_observations))
    for coordinate in np.flatnonzero(wrapping):
        name = task.observation_names[coordinate]
        warn_user(
            f"{name} jumps by about its whole range in {counts[coordinate]} rows and moves little in the others. "
            "If it wraps around, as an angle or the time of day does, give its sine and cosine instead",
        )


def jumping(observations: FloatArray, next_observations: FloatArray) -> tuple[FloatArray, BoolArray]:
    """Return the number of jumps (D,), and which coordinates (D,) seem to wrap around.

    Such a coordinate has also been in the middle of its range at least as often as it has jumped, which a flag has not.

    Args:
        observations: (T, D).
        next_observations: (T, D).

    """
    low = np.minimum(observations.min(0), next_observations.min(0))
    high = np.maximum(observations.max(0), next_observations.max(0))
    width = np.maximum(high - low, np.finfo(np.float32).tiny)
    sizes = np.abs(next_observations - observations) / width
    jumps = (sizes > _FAR).sum(0)
    between = ((sizes > 1 - _FAR) & (sizes <= _FAR)).sum(0)
    middle = (np.abs(observations - (low + high) / 2) < width / 4).sum(0)
    return jumps, (jumps >= _LEAST_JUMPS) & (jumps > _RARER * between) & (middle >= jumps)
