"""What one outcome is learned from: its inputs and targets, and how well it meets them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy, mse_loss

from persim_gym.data.trajectories import Trajectories
from persim_gym.devices import on_device
from persim_gym.model.factorization import predict
from persim_gym.model.normalizer import deviation_or_one, varies
from persim_gym.model.outcomes import Outcome, OutcomeScaling, reward_inputs
from persim_gym.tasks import Task
from persim_gym.training.trainer import DeviceLog
from persim_gym.types import FloatArray, IntArray


@dataclass(frozen=True)
class OutcomeProblem:
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
    def of(cls, log: Trajectories, task: Task, name: str, rows: IntArray, by_agent: bool = True) -> OutcomeProblem:
        """Return the problem of "reward" or "terminated" on some rows, with factors of each agent's own or without."""
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
