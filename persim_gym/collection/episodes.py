"""Episodes, step by step: what happens when a policy acts in a true system, and how steps become a log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from persim_gym.collection.policies import asked, rows_of_state
from persim_gym.tasks import System, Task
from persim_gym.types import BoolArray, FloatArray, IntArray, Policy


@dataclass(frozen=True)
class Step:
    """One step of B episodes that go on side by side."""

    episodes: IntArray
    """(B,): their numbers."""
    running: BoolArray
    """(B,): whether the episode had not ended before the step."""
    observations: FloatArray
    """(B, D): before the step."""
    actions: np.ndarray
    """(B,) or (B, A): as they were carried out (`Task.executed`)."""
    next_observations: FloatArray
    """(B, D): after the step."""
    terminated: BoolArray
    """(B,): whether the next observation is terminal."""

    @property
    def going_on(self) -> BoolArray:
        """(B,): whether the episode has not ended with the step."""
        return self.running & ~self.terminated

    def rewards(self, task: Task) -> FloatArray:
        """Return what the actions carried out earn (B,)."""
        return task.reward(self.observations, self.actions, self.next_observations)

    def record(self, task: Task, *, at_limit: bool) -> dict[str, np.ndarray]:
        """Return the step as columns of `Trajectories` (B, …), with the episodes' numbers as "agents".

        Args:
            task: whose rewards are recorded, of float64 actions also where the policy's are less precise.
            at_limit: whether the time limit cuts off the episodes that this step does not end.

        """
        exact = self if task.discrete else replace(self, actions=self.actions.astype(np.float64))
        return {
            "agents": self.episodes,
            "observations": self.observations,
            "actions": self.actions,
            "rewards": exact.rewards(task),
            "next_observations": self.next_observations,
            "terminated": self.terminated,
            "truncated": ~self.terminated & at_limit,
        }


def run(
    task: Task,
    policy: Policy,
    system: System,
    rng: np.random.Generator,
    *,
    steps: int | None = None,
    leave: bool = False,
) -> Iterator[Step]:
    """Let a policy act in all copies of a true system at once, an episode in each, and yield step after step.

    An action is checked and brought within its bounds once, and it is this one that moves the system and is in the
    step, to be recorded and rewarded.

    Args:
        task: of the system.
        policy: sees float32 observations. One that plans is told which episodes are over: it need not search for them.
        system: starts in random initial states.
        rng: of the initial states.
        steps: after which it ends; the task's time limit if not given.
        leave: whether episodes that are over leave: the policy then sees the others only, and the run ends with the
            last of them. Otherwise all copies are stepped to the end, also those that `Step.running` says are over.

    Raises:
        InvalidActionError: the policy gives an action that the task does not have.
        InvalidArgumentError: episodes leave, and the policy's state has no row for each of them.

    """
    episodes, running = np.arange(system.num_copies), np.ones(system.num_copies, bool)
    observations, state = np.array(system.reset(rng)), None
    plans = getattr(policy, "takes_running", False)
    for index in range(task.max_episode_steps if steps is None else steps):
        told: dict[str, Any] = {"running": running} if plans else {}
        begun = np.full(len(episodes), index == 0)
        given, state = asked(policy, observations.astype(np.float32), state, begun, **told)
        # Copies, for what is yielded is kept: policies and systems may write to arrays of their own at every step.
        actions = np.array(task.executed(given, len(episodes)))
        next_observations = np.array(system.step(actions))
        terminated = np.asarray(task.terminated(next_observations), bool)
        step = Step(episodes, running, observations, actions, next_observations, terminated)
        yield step
        observations, running = next_observations, step.going_on
        if leave and not running.all():
            rows = np.flatnonzero(running)
            if len(rows) == 0:
                return
            episodes, running, observations = episodes[rows], running[rows], observations[rows]
            system, state = system.branch(rows), rows_of_state(state, rows)


def in_episode_order(records: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the columns (T, …) of records of steps in turn: those of the first episode first, in time order."""
    columns = {name: np.concatenate([record[name] for record in records]) for name in records[0]}
    order = np.argsort(columns["agents"], kind="stable")
    return {name: column[order] for name, column in columns.items()}
