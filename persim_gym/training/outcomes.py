"""Learning reward and termination from a log, for a task that brings no such function (`persim_gym.model.outcomes`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from persim_gym.config import PerSimConfig
from persim_gym.data.trajectories import Trajectories
from persim_gym.errors import InvalidDataError
from persim_gym.model.action_scaling import for_raw_actions, scaled
from persim_gym.model.outcomes import Outcome, outcome_shapes
from persim_gym.tasks import Task
from persim_gym.training.checkpoint import Checkpoint
from persim_gym.training.outcome_errors import outcome_errors, warn_of_useless_outcomes
from persim_gym.training.outcome_problem import OutcomeProblem
from persim_gym.training.preparation import split
from persim_gym.training.runner import Runner
from persim_gym.types import IntArray
from persim_gym.user_warnings import warn_user

_TO_CHOOSE_BY = 0.2
"""Part of the rows that tells whether outcomes have factors of each agent's own, where none are held out anyway."""

ENOUGH_ENDS = 5
"""Fewer ends of episodes do not tell a risk: their mere number has a standard error of half of it, 1/√4, and more."""


@dataclass(frozen=True)
class OutcomeLearner:
    """What the outcomes of a task are learned from and with.

    The reward by the squared error, the termination by the cross entropy, both with the members, rank, widths, epochs,
    batches and learning rate of the dynamics. Most often everybody earns alike and ends alike, and factors of each
    agent's own then only learn what happened to it: in 200 logs of CartPole, one end in each, they missed 58 % of the
    ends held out, and factors common to all 11 %. Which of the two a task needs is told by transitions held out.
    """

    log: Trajectories
    task: Task
    config: PerSimConfig
    runner: Runner
    checkpoint_of: Callable[[IntArray, str], Checkpoint]
    """Returns the checkpoint of a run on some rows, under a name of its own."""

    def choose(self, kept: IntArray, held_out: IntArray) -> dict[str, tuple[Outcome, bool]]:
        """Learn each outcome from the kept rows in both ways.

        Returns:
            by name, the better on the rows held out, and whether it has factors of each agent's own: where these help
            by more than two standard errors. An outcome that is the same in all kept rows is not learned by agent, nor
            is a termination of which fewer than `ENOUGH_ENDS` are held out: rows without an end favor the factors that
            blame past ends on the agents whose they were.

        Raises:
            InvalidDataError: a reward is to be learned, but all rewards of the log are zero.
            TrainingDivergedError: the loss is no longer finite.

        """
        found = {}
        for name in self.names(kept):
            shared = self.learn(name, kept, by_agent=False, stage="validation")
            found[name] = shared, False
            if not self._can_tell(name, held_out) or not shared.scaling.output_scale.any():
                continue
            own = self.learn(name, kept, by_agent=True, stage="validation")
            problem = OutcomeProblem.of(self.log, self.task, name, held_out)
            gain = problem.losses(shared) - problem.losses(own)
            if gain.mean() > 2 * gain.std(ddof=1) / np.sqrt(len(gain)):
                found[name] = own, True
        return found

    def _can_tell(self, name: str, held_out: IntArray) -> bool:
        """Whether rows held out can tell if an outcome needs factors of each agent's own."""
        return len(held_out) >= 2 if name == "reward" else self.log.terminated[held_out].sum() >= ENOUGH_ENDS

    def learn(self, name: str, rows: IntArray, *, by_agent: bool, stage: str) -> Outcome:
        """Learn one outcome from some rows, with or without factors of each agent's own; a stage's rows are its own."""
        problem = OutcomeProblem.of(self.log, self.task, name, rows, by_agent)
        shapes = outcome_shapes(self.task, self.config, problem.num_agents, name)
        # A log's rewards are learned as they are, however rare: a bonus at the goal is no outlier.
        config = self.config.with_changes(huber_threshold=None, weight_decay=0.0)
        scaling = problem.scaling()
        columns = problem.columns(scaling, self.runner.device)
        if not problem.logistic:
            columns = columns.with_actions(scaled(self.log.actions)[rows])
        variant = f"{name} by agent" if by_agent else name
        arrays, _ = self.runner.train(
            shapes,
            config,
            columns,
            np.arange(len(rows)),
            self.checkpoint_of(rows, f"{variant.replace(' ', '-')}-{stage}"),
            title=f"{self.task.name}, {variant}",
            advice=f"lower the learning rate (learning_rate={config.learning_rate})",
            logistic=problem.logistic,
        )
        if not problem.logistic:
            arrays = for_raw_actions(self.log.actions, arrays)
        if not by_agent:
            arrays["agent.weight"] = np.repeat(arrays["agent.weight"], self.log.num_agents, axis=1)
        return Outcome(arrays, scaling)

    def names(self, rows: IntArray) -> list[str]:
        """Return what can be learned from some rows.

        A log without a terminated row has nothing to learn a termination from: no episode then ever terminates.

        Raises:
            InvalidDataError: a reward is to be learned, but all rewards of the log are zero.

        """
        log, task = self.log, self.task
        check_rewards_known(log, task)
        return [name for name in task.learned if name == "reward" or log.terminated[rows].any()]


def learn_outcomes(
    learner: OutcomeLearner, kept: IntArray, held_out: IntArray, *, refit: bool
) -> tuple[dict[str, Outcome], dict[str, Any]]:
    """Learn what the task leaves to be learned; return it, and its errors on the held-out rows.

    Args:
        learner: of the log.
        kept: the rows to learn from.
        held_out: the rows to choose by whether outcomes have factors of each agent's own; if there are none, a part of
            the kept ones is held out for that, and what is chosen is learned again from all.
        refit: whether to learn from all rows again in any case.

    Raises:
        InvalidDataError: a reward is to be learned, but all rewards of the log are zero.
        TrainingDivergedError: the loss is no longer finite.

    """
    log = learner.log
    if not learner.task.learned:
        return {}, {}
    seed = learner.runner.seed
    chosen = learner.choose(*((kept, held_out) if len(held_out) else split(len(kept), _TO_CHOOSE_BY, seed)))
    by_agent = [name for name, (_, own_factors) in chosen.items() if own_factors]
    outcomes = {name: outcome for name, (outcome, _) in chosen.items()}
    errors = outcome_errors(log, learner.task, outcomes, kept, held_out) if len(held_out) else {}
    if refit or not len(held_out):
        everything = np.arange(log.num_transitions)
        outcomes = {
            name: learner.learn(name, everything, by_agent=name in by_agent, stage="full")
            for name in learner.names(everything)
        }
    warn_of_useless_outcomes(log, errors)
    return outcomes, {**errors, "outcomes_by_agent": by_agent}


def check_rewards_known(log: Trajectories, task: Task) -> None:
    """Raise `InvalidDataError` if a reward is to be learned, but all rewards of the log are zero."""
    if "reward" in task.learned and not np.any(log.rewards):
        raise InvalidDataError(
            "all rewards of the log are zero, so there is none to learn: give the log's rewards, or "
            f"Task(reward=...) of task {task.name}"
        )


def warn_of_few_ends(log: Trajectories, task: Task) -> None:
    """Warn of a termination that is to be learned from fewer than `ENOUGH_ENDS` ends."""
    ends = int(log.terminated.sum())
    if "terminated" in task.learned and 0 < ends < ENOUGH_ENDS:
        warn_user(
            f"the termination is learned from {ends} end{'s' * (ends > 1)} in {log.num_transitions:,} rows: how often "
            "episodes end is then known but roughly, and in which states hardly at all. Give a log with more ends, or "
            "Task(terminated=...)"
        )
