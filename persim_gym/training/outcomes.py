"""Learning reward and termination from a log, for a task that brings no such function (`persim_gym.model.outcomes`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy, mse_loss

from persim_gym.config import PerSimConfig
from persim_gym.data.trajectories import Trajectories
from persim_gym.devices import on_device
from persim_gym.errors import InvalidDataError
from persim_gym.model.action_scaling import for_raw_actions, scaled
from persim_gym.model.factorization import predict
from persim_gym.model.normalizer import deviation_or_one, varies
from persim_gym.model.outcomes import (
    LearnedReward,
    LearnedTermination,
    Outcome,
    OutcomeScaling,
    outcome_shapes,
    reward_inputs,
)
from persim_gym.tasks import Task
from persim_gym.training.checkpoint import Checkpoint
from persim_gym.training.epochs import run_epochs
from persim_gym.training.preparation import split
from persim_gym.training.trainer import DeviceLog, Trainer
from persim_gym.types import FloatArray, IntArray
from persim_gym.user_warnings import warn_user

_TO_CHOOSE_BY = 0.2
"""Part of the rows that tells whether outcomes have factors of each agent's own, where none are held out anyway."""

ENOUGH_ENDS = 5
"""Fewer ends of episodes do not tell a risk: their mere number has a standard error of half of it, 1/√4, and more."""

_ROWS_AT_ONCE = 8192
_USELESS = 10.0
"""A reward is of no use that errs by so many times what the log's rewards deviate from their mean."""


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
    seed: int
    device: torch.device
    threads: int
    progress: bool
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
            problem = _Problem.of(self.log, self.task, name, held_out)
            gain = problem.losses(shared) - problem.losses(own)
            if gain.mean() > 2 * gain.std(ddof=1) / np.sqrt(len(gain)):
                found[name] = own, True
        return found

    def _can_tell(self, name: str, held_out: IntArray) -> bool:
        """Whether rows held out can tell if an outcome needs factors of each agent's own."""
        return len(held_out) >= 2 if name == "reward" else self.log.terminated[held_out].sum() >= ENOUGH_ENDS

    def learn(self, name: str, rows: IntArray, *, by_agent: bool, stage: str) -> Outcome:
        """Learn one outcome from some rows, with or without factors of each agent's own; a stage's rows are its own."""
        problem = _Problem.of(self.log, self.task, name, rows, by_agent)
        shapes = outcome_shapes(self.task, self.config, problem.num_agents, name)
        # A log's rewards are learned as they are, however rare: a bonus at the goal is no outlier.
        config = self.config.with_changes(huber_threshold=None, weight_decay=0.0)
        trainer = Trainer(shapes, config, self.seed, self.device, self.threads, logistic=problem.logistic)
        scaling = problem.scaling()
        columns = problem.columns(scaling, self.device)
        if not problem.logistic:
            columns = columns.with_actions(scaled(self.log.actions)[rows])
        every = torch.arange(len(rows), device=self.device)
        variant = f"{name} by agent" if by_agent else name
        run_epochs(
            trainer,
            partial(trainer.run_epoch, columns, every),
            self.checkpoint_of(rows, f"{variant.replace(' ', '-')}-{stage}"),
            epochs=config.epochs,
            title=f"{self.task.name}, {variant}",
            progress=self.progress,
            advice=f"lower the learning rate (learning_rate={config.learning_rate})",
            preparation=trainer.preparation,
        )
        arrays = {name: tensor.cpu().numpy().copy() for name, tensor in trainer.parameters.items()}
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
    chosen = learner.choose(*((kept, held_out) if len(held_out) else split(len(kept), _TO_CHOOSE_BY, learner.seed)))
    by_agent = [name for name, (_, own_factors) in chosen.items() if own_factors]
    outcomes = {name: outcome for name, (outcome, _) in chosen.items()}
    errors = outcome_errors(log, learner.task, outcomes, kept, held_out) if len(held_out) else {}
    if refit or not len(held_out):
        everything = np.arange(log.num_transitions)
        outcomes = {
            name: learner.learn(name, everything, by_agent=name in by_agent, stage="full")
            for name in learner.names(everything)
        }
    _warn_of_useless_outcomes(log, errors)
    return outcomes, {**errors, "outcomes_by_agent": by_agent}


def _warn_of_useless_outcomes(log: Trajectories, errors: dict[str, float]) -> None:
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
            problem = _Problem.of(log, task, "terminated", rows)
            frequency = float(np.mean(np.asarray(log.terminated)[kept]))
            loss, constant = float(problem.losses(outcomes["terminated"]).mean()), problem.constant_loss(frequency)
            if constant > 0:  # else every row ends an episode, and there is nothing to tell apart
                errors["termination_skill"] = 1 - loss / constant
        errors["terminations_false"] = float(np.mean(said[~true])) if not true.all() else 0.0
    return errors


@dataclass(frozen=True)
class _Problem:
    """Inputs and targets of one outcome."""

    logistic: bool
    """Whether the targets are 0 and 1, and the outputs their logits."""
    inputs: FloatArray
    """(T, I)."""
    input_scale: FloatArray
    """(I,): deviation of the inputs, 1 for one that does not vary."""
    targets: FloatArray
    """(T, 1)."""
    agents: IntArray
    """(T,)."""
    actions: np.ndarray
    """(T,) or (T, A); zeros for the termination."""
    num_agents: int
    """With factors of their own."""
    num_actions: int
    """Different ones, if they are discrete."""

    @classmethod
    def of(cls, log: Trajectories, task: Task, name: str, rows: IntArray, by_agent: bool = True) -> _Problem:
        before, after = (np.asarray(column[rows], np.float64) for column in (log.observations, log.next_observations))
        agents = np.asarray(log.agents[rows], np.int64) if by_agent else np.zeros(len(rows), np.int64)
        num_agents = log.num_agents if by_agent else 1
        targets = np.asarray((log.rewards if name == "reward" else log.terminated)[rows], np.float64)[:, None]
        if name == "reward":
            state, change = reward_inputs(before, after)
            inputs = np.concatenate([state, change], axis=1)
            scale = np.concatenate([deviation_or_one(state), deviation_or_one(change, before)])
            actions = np.asarray(log.actions[rows])
            return cls(False, inputs, scale, targets, agents, actions, num_agents, task.action_size)
        nothing = np.zeros(len(rows), np.int64)
        return cls(True, after, deviation_or_one(after), targets, agents, nothing, num_agents, 1)

    def scaling(self) -> OutcomeScaling:
        """Return mean and scale of the inputs, and of the targets, 0 and 1 if these are probabilities.

        The scale of targets that do not vary is 0: the outcome is their mean, whatever a network says.
        """
        mean, scale = np.zeros(1), np.ones(1)
        if not self.logistic:
            deviation = np.where(varies(self.targets), deviation_or_one(self.targets), 0.0)
            mean, scale = self.targets.mean(0), deviation
        return OutcomeScaling(self.inputs.mean(0), self.input_scale, mean, scale)

    def columns(self, scaling: OutcomeScaling, device: torch.device) -> DeviceLog:
        """Return inputs and targets, standardized."""
        inputs, targets = scaling.standardized(self.inputs, self.targets)
        return DeviceLog(
            torch.tensor(np.concatenate([inputs, targets], axis=1), dtype=torch.float32, device=device),
            torch.tensor(self.agents, device=device),
            torch.tensor(self.actions, device=device),
            num_inputs=inputs.shape[1],
            num_agents=self.num_agents,
            num_actions=self.num_actions,
        )

    def losses(self, outcome: Outcome) -> FloatArray:
        """Return the squared errors (T,) of the members' mean, or the cross entropies of their mean probability."""
        columns = self.columns(outcome.scaling, torch.device("cpu"))
        parameters = on_device(outcome.parameters, torch.device("cpu"))
        loss_of = binary_cross_entropy if self.logistic else mse_loss
        losses = []
        with torch.inference_mode():
            every, members = torch.arange(len(self.agents)), len(parameters["agent.weight"])
            for states, rows, actions, wanted in columns.batches(every, members):
                outputs = predict(parameters, states, rows, actions)
                mean = (outputs.sigmoid() if self.logistic else outputs).mean(0)
                losses.append(loss_of(mean, wanted[0], reduction="none")[0])
        return torch.cat(losses).numpy()

    def constant_loss(self, probability: float) -> float:
        """Return the mean cross entropy of one probability for all rows."""
        wanted = torch.as_tensor(self.targets)
        return float(binary_cross_entropy(torch.full_like(wanted, probability), wanted))


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
