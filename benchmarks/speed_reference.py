"""PerSim as research code usually is: a PyTorch module a member, one-hot agents, a DataLoader, loops over members.

Written from the paper's description (section 3 and appendix D) as the plain thing to compare `speed.py`'s figures with.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from persim_gym import PerSimConfig, Task, Trajectories


def _layers(*sizes: int) -> nn.Sequential:
    modules: list[nn.Module] = []
    for inputs, outputs in zip(sizes[:-1], sizes[1:], strict=True):
        modules += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*modules[:-1])


class Member(nn.Module):
    """One member: the change of coordinate d is Σ_l u_l(agent)·v_l(state, d)·w_l(action)."""

    def __init__(self, task: Task, config: PerSimConfig, num_agents: int) -> None:
        super().__init__()
        self.rank = config.rank
        hidden = () if task.discrete else config.action_hidden
        self.agent = nn.Linear(num_agents, config.rank)
        self.state = _layers(task.observation_size, *config.state_hidden, task.observation_size * config.rank)
        self.action = _layers(task.action_size, *hidden, config.rank)

    def forward(self, agents: Tensor, states: Tensor, actions: Tensor) -> Tensor:
        """Return changes (B, D) for one-hot agents (B, N), states (B, D), and one-hot or continuous actions (B, A)."""
        by_coordinate = self.state(states).view(len(states), states.shape[1], self.rank)
        return (self.agent(agents)[:, None] * by_coordinate * self.action(actions)[:, None]).sum(2)


def members(task: Task, config: PerSimConfig, num_agents: int) -> list[Member]:
    """Return untrained members."""
    return [Member(task, config, num_agents) for _ in range(config.num_members)]


def one_hot_actions(task: Task, actions: np.ndarray) -> Tensor:
    """Return actions (…, A): one-hot rows of discrete ones."""
    if task.discrete:
        return nn.functional.one_hot(torch.as_tensor(actions), task.action_size).float()
    return torch.as_tensor(actions, dtype=torch.float32)


def train(log: Trajectories, task: Task, config: PerSimConfig, epochs: int = 1) -> None:
    """Train the members in turn."""
    agents = nn.functional.one_hot(torch.as_tensor(np.asarray(log.agents, np.int64)), log.num_agents).float()
    states = torch.as_tensor(np.asarray(log.observations, np.float32))
    changes = torch.as_tensor(np.asarray(log.next_observations - log.observations, np.float32))
    data = TensorDataset(agents, states, one_hot_actions(task, np.asarray(log.actions)), changes)
    for member in members(task, config, log.num_agents):
        optimizer = torch.optim.Adam(member.parameters(), lr=config.learning_rate)
        for _ in range(epochs):
            for agent, state, action, change in DataLoader(data, batch_size=config.batch_size, shuffle=True):
                optimizer.zero_grad()
                nn.functional.mse_loss(member(agent, state, action), change).backward()
                optimizer.step()


class Model:
    """Trained members as a simulator of one agent."""

    def __init__(self, task: Task, config: PerSimConfig, num_agents: int, agent: int = 0) -> None:
        self.task, self.members = task, members(task, config, num_agents)
        self._agent = torch.zeros(1, num_agents)
        self._agent[0, agent] = 1.0

    @torch.no_grad()
    def step(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Return the members' mean next states (B, D)."""
        inputs, moves = torch.as_tensor(states, dtype=torch.float32), one_hot_actions(self.task, actions)
        agents = self._agent.repeat(len(states), 1)
        return torch.stack([inputs + member(agents, inputs, moves) for member in self.members]).mean(0).numpy()

    @torch.no_grad()
    def returns(self, start: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Return the mean return (C,) of candidates (C, H) or (C, H, A), each member on its own trajectory."""
        goal = self.task.objective
        total = torch.zeros(len(actions))
        agents = self._agent.repeat(len(actions), 1)
        for member in self.members:
            states = torch.as_tensor(start, dtype=torch.float32).repeat(len(actions), 1)
            alive = torch.ones(len(actions))
            best = goal.progress(states) if goal.progress else None
            for step in range(actions.shape[1]):
                following = states + member(agents, states, one_hot_actions(self.task, actions[:, step]))
                if goal.terminated is not None:
                    alive = alive * ~goal.terminated(following)
                total += alive * goal.reward(states, torch.as_tensor(actions[:, step]), following)
                best = torch.maximum(best, goal.progress(following)) if goal.progress else None
                states = following
            if best is not None:
                total += actions.shape[1] * best
        return (total / len(self.members)).numpy()

    @torch.no_grad()
    def mean_state_returns(self, start: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Return the mean return (C,) of candidates (C, H, A), all members on their mean trajectory."""
        goal, total = self.task.objective, torch.zeros(len(actions))
        states = torch.as_tensor(start, dtype=torch.float32).repeat(len(actions), 1)
        agents = self._agent.repeat(len(actions), 1)
        for step in range(actions.shape[1]):
            moves = one_hot_actions(self.task, actions[:, step])
            each = [states + member(agents, states, moves) for member in self.members]
            total += torch.stack([goal.reward(states, moves, following) for following in each]).mean(0)
            states = torch.stack(each).mean(0)
        return total.numpy()


def shooting_decision(model: Model, start: np.ndarray, rng: np.random.Generator) -> Callable[[], object]:
    """Return one decision of random shooting, 1000 candidates of 50 steps."""

    def decide() -> object:
        candidates = rng.integers(model.task.action_size, size=(1000, 50))
        return candidates[model.returns(start, candidates).argmax(), 0]

    return decide
