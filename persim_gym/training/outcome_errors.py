"""How well a learned reward and a learned termination do on rows that they were not learned from."""

from __future__ import annotations

import numpy as np

from persim_gym.data.trajectories import Trajectories
from persim_gym.model.normalizer import varies
from persim_gym.model.outcomes import LearnedReward, LearnedTermination, Outcome
from persim_gym.tasks import Task
from persim_gym.training.outcome_problem import OutcomeProblem
from persim_gym.types import IntArray
from persim_gym.user_warnings import warn_user

_ROWS_AT_ONCE = 8192
_USELESS = 10.0
"""A reward is of no use that errs by so many times what the log's rewards deviate from their mean."""


def outcome_errors(
    log: Trajectories, task: Task, outcomes: dict[str, Outcome], kept: IntArray, rows: IntArray
) -> dict[str, float]:
    """Return the errors, on rows held out, of what was learned from the kept ones, as `persim_gym.fit` names them."""
    reward, risk = np.empty(len(rows), np.float32), np.empty(len(rows), np.float32)
    agents = np.asarray(log.agents)[rows]
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        own = agents[part].tolist()
        columns = [
            np.asarray(getattr(log, name))[rows[part]] for name in ("observations", "actions", "next_observations")
        ]
        if "reward" in outcomes:
            reward[part] = LearnedReward(outcomes["reward"], own)(*columns)
        if "terminated" in outcomes:
            risk[part] = LearnedTermination(outcomes["terminated"], own).probability(columns[2])
    errors: dict[str, float] = {}
    if "reward" in outcomes:
        errors["reward_rmse"] = float(np.sqrt(np.mean((reward - np.asarray(log.rewards)[rows]) ** 2)))
    if "terminated" in outcomes:
        true, said = np.asarray(log.terminated)[rows], risk > 0.5
        errors["terminations_held_out"] = int(true.sum())
        errors["terminations_expected"] = float(risk.sum(dtype=np.float64))
        if true.any():
            errors["terminations_missed"] = float(np.mean(~said[true]))
            problem = OutcomeProblem.of(log, task, "terminated", rows)
            frequency = float(np.mean(np.asarray(log.terminated)[kept]))
            loss, constant = float(problem.losses(outcomes["terminated"]).mean()), problem.constant_loss(frequency)
            if constant > 0:  # else every row ends an episode, and there is nothing to tell apart
                errors["termination_skill"] = 1 - loss / constant
        errors["terminations_false"] = float(np.mean(said[~true])) if not true.all() else 0.0
    return errors


def warn_of_useless_outcomes(log: Trajectories, errors: dict[str, float]) -> None:
    """Warn of a learned reward that errs far more than their mean would, and of a termination no better than that."""
    rewards, error = np.asarray(log.rewards, np.float64), errors.get("reward_rmse", 0.0)
    if varies(rewards[:, None])[0] and error > _USELESS * rewards.std():
        warn_user(
            f"the learned reward errs by {error:.3g} along transitions held out, where the log's rewards deviate from "
            f"their mean by {rewards.std():.3g}: it is of no use; lower the learning rate"
        )
    if errors.get("termination_skill", 1.0) <= 0:
        warn_user(
            "the learned termination tells ends of episodes no better than their mere frequency does, on held-out "
            f"transitions with {errors['terminations_held_out']} of them: unless real ones come alike in every state, "
            "in which states simulated episodes end means nothing. Train for more epochs, give a log with more ends, "
            "or Task(terminated=...)"
        )
