"""Learning reward and termination from a log, for a task that brings no such function (`persim_gym.outcomes`)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from persim_gym.config import PerSimConfig
from persim_gym.data import Trajectories
from persim_gym.errors import InvalidDataError, TrainingDivergedError
from persim_gym.gradients import predict
from persim_gym.model import Outcome, outcome_shapes, spread
from persim_gym.outcomes import LearnedReward, LearnedTermination, reward_inputs
from persim_gym.tasks import Task
from persim_gym.terminal import ProgressBar
from persim_gym.types import FloatArray, IntArray


def fit_outcomes(
    log: Trajectories,
    task: Task,
    config: PerSimConfig,
    rows: IntArray,
    *,
    seed: int,
    device: torch.device,
    progress: bool,
) -> dict[str, Outcome]:
    """Learn what the task leaves to be learned from some rows of a log.

    The reward by the squared error, the termination by the cross entropy, both with the members, rank, widths, epochs,
    batches and learning rate of the dynamics. A log without a terminated row has nothing to learn a termination from:
    no episode then ever terminates.

    Raises:
        InvalidDataError: a reward is to be learned, but all rewards of the log are zero.
        TrainingDivergedError: the loss is no longer finite.

    """
    found: dict[str, Outcome] = {}
    for name in task.learned:
        if name == "reward" and not np.any(log.rewards):
            raise InvalidDataError(
                f"all rewards of the log are zero, so there is none to learn: give the log's rewards, or "
                f"Task(reward=...) of task {task.name}"
            )
        if name == "reward" or log.terminated[rows].any():
            found[name] = _fit(_Problem.of(log, task, name, rows), task, config, log.num_agents, seed, device, progress)
    return found


def outcome_errors(log: Trajectories, outcomes: dict[str, Outcome], rows: IntArray) -> dict[str, float]:
    """Return the reward's root mean squared error, and the parts of the terminal and other rows that are misjudged."""
    reward = np.empty(len(rows), np.float32)
    terminated = np.zeros(len(rows), bool)
    agents = np.asarray(log.agents)[rows]
    for agent in np.unique(agents):
        own = agents == agent
        columns = [
            np.asarray(getattr(log, name))[rows[own]] for name in ("observations", "actions", "next_observations")
        ]
        if "reward" in outcomes:
            reward[own] = LearnedReward(outcomes["reward"], [int(agent)])(*columns)
        if "terminated" in outcomes:
            terminated[own] = LearnedTermination(outcomes["terminated"], [int(agent)])(columns[2])
    errors: dict[str, float] = {}
    if "reward" in outcomes:
        errors["reward_rmse"] = float(np.sqrt(np.mean((reward - np.asarray(log.rewards)[rows]) ** 2)))
    if "terminated" in outcomes:
        true = np.asarray(log.terminated)[rows]
        errors["terminations_missed"] = float(np.mean(~terminated[true])) if true.any() else 0.0
        errors["terminations_false"] = float(np.mean(terminated[~true])) if not true.all() else 0.0
    return errors


@dataclass(frozen=True)
class _Problem:
    """Inputs and targets of one outcome."""

    name: str
    inputs: FloatArray
    """(T, I)."""
    targets: FloatArray
    """(T,)."""
    agents: IntArray
    """(T,)."""
    actions: np.ndarray
    """(T,) or (T, A); zeros for the termination."""

    @classmethod
    def of(cls, log: Trajectories, task: Task, name: str, rows: IntArray) -> _Problem:
        before, after = (np.asarray(column[rows], np.float64) for column in (log.observations, log.next_observations))
        agents = np.asarray(log.agents[rows], np.int64)
        if name == "reward":
            inputs = np.concatenate(reward_inputs(before, after), axis=1)
            return cls(name, inputs, np.asarray(log.rewards[rows], np.float64), agents, np.asarray(log.actions[rows]))
        return cls(name, after, np.asarray(log.terminated[rows], np.float64), agents, np.zeros(len(rows), np.int64))


def _fit(
    problem: _Problem,
    task: Task,
    config: PerSimConfig,
    num_agents: int,
    seed: int,
    device: torch.device,
    progress: bool,
) -> Outcome:
    probability = problem.name == "terminated"
    input_mean, input_scale = problem.inputs.mean(0), spread(problem.inputs)
    targets = problem.targets[:, None]
    output_mean, output_scale = (np.zeros(1), np.ones(1)) if probability else (targets.mean(0), spread(targets))
    states = _tensor((problem.inputs - input_mean) / input_scale, device)
    wanted = _tensor((targets - output_mean) / output_scale, device)
    agents, actions = torch.tensor(problem.agents, device=device), torch.tensor(problem.actions, device=device)
    generator = torch.Generator(device).manual_seed(seed)
    shapes = outcome_shapes(task, config, num_agents, problem.name)
    parameters = {
        name: torch.empty(shape, device=device)
        .uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)  # torch's own, of a linear layer
        .requires_grad_()
        for name, (shape, fan_in) in shapes.items()
    }
    optimizer = torch.optim.Adam(parameters.values(), config.learning_rate, fused=True)
    every = config.halve_learning_rate_every or config.epochs
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, every, gamma=0.5 if config.halve_learning_rate_every else 1.0)
    members, loss_of = config.num_members, binary_cross_entropy_with_logits if probability else mse_loss
    member = torch.arange(members, device=device)[:, None]
    num_actions = shapes["action.weight"][0][1] if "action.weight" in shapes else 0
    with ProgressBar(f"{task.name}, {problem.name}", config.epochs, progress) as bar:
        for _ in range(config.epochs):
            order = torch.stack(
                [torch.randperm(len(states), generator=generator, device=device) for _ in range(members)]
            )
            loss = torch.zeros(())
            for rows in order.split(config.batch_size_for(len(states)), dim=1):
                moves = actions[rows]
                moves = (moves + member * num_actions).reshape(-1) if num_actions else moves.transpose(1, 2)
                chosen = (agents[rows] + member * num_agents).reshape(-1)
                outputs = predict(parameters, states[rows].transpose(1, 2), chosen, moves)[:, 0]
                loss = loss_of(outputs, wanted[rows][..., 0]) * members  # each member descends as if it were alone
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            schedule.step()
            value = float(loss.detach()) / members
            if not np.isfinite(value):
                raise TrainingDivergedError(
                    f"the loss of the {problem.name} is {value}; lower the learning rate ({config.learning_rate})"
                )
            bar.advance(f"loss {value:.3e}")
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in parameters.items()}
    return Outcome(arrays, input_mean, input_scale, output_mean, output_scale)


def _tensor(array: FloatArray, device: torch.device) -> Tensor:
    return torch.tensor(array, dtype=torch.float32, device=device)
