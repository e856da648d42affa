"""`Simulator`: learned dynamics bound to one or many agents. Environments, planners and evaluation reach models here.

`persim_gym.simulators.factor_simulator` has PerSim's, `persim_gym.baselines.context_simulator` the baselines'.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from persim_gym.arguments import one_of
from persim_gym.devices import resolve_device
from persim_gym.errors import InvalidArgumentError, InvalidStateError
from persim_gym.memory import explain_out_of_memory
from persim_gym.simulators.aggregation import AGGREGATES, aggregated
from persim_gym.simulators.networks.interfaces import CpuNetwork, MemberNetwork
from persim_gym.tasks import Task
from persim_gym.threads import limited_threads
from persim_gym.types import FloatArray, IntArray, Prediction

_ROWS_AT_A_TIME = {True: 2048, False: 1 << 18}
"""Rows of a batch that are stepped together, on the CPU, where they should fit the cache, and elsewhere."""


class Simulator(ABC):
    """The learned dynamics of one agent, for any number of states, or of B agents, for one state each.

    States are raw observations. Subclasses implement how the members step.
    """

    def __init__(
        self, task: Task, agents: IntArray, *, aggregate: str = "mean", device: str | torch.device = "cpu"
    ) -> None:
        """Bind to agents.

        Args:
            task: of the agents, with the functions that were learned for them.
            agents: (B,) indices, or one for any number of states.
            aggregate: "mean" or "median" over the members.
            device: any torch device.

        Raises:
            InvalidArgumentError: no agent, or an unknown aggregate or device.

        """
        one_of("aggregate", aggregate, AGGREGATES)
        if len(agents) == 0:
            raise InvalidArgumentError("a simulator needs at least one agent")
        self.task = task
        self.agents = agents
        self.aggregate = aggregate
        self.device = resolve_device(str(device))

    def __repr__(self) -> str:
        whose = f"agent {self.agents[0]}" if len(self.agents) == 1 else f"{len(self.agents)} rows of agents"
        return f"{type(self).__name__}({self.task.name}: {whose}, {self.num_members} members)"

    @property
    @abstractmethod
    def num_members(self) -> int:
        """M: trajectories that are followed side by side, of members or of particles tied to them."""

    @property
    @abstractmethod
    def hidden_layers(self) -> tuple[int, ...]:
        """Widths of the hidden layers that a step goes through."""

    @property
    def stochastic(self) -> bool:
        """Whether next states are drawn."""
        return False

    @property
    def mixes_agents(self) -> bool:
        """Whether `network_of` takes states of several agents at once."""
        return False

    def reseed(  # noqa: B027 - those that are not stochastic have nothing to do
        self, seed: int | np.random.Generator
    ) -> None:
        """Start the simulator's own random numbers anew, if it has any, from a seed or from one that is drawn."""

    def deterministic(self) -> Simulator:
        """Return the simulator whose next states are the means of those that are drawn; itself if none are."""
        return self

    def conditioned_on(self, observations: Any, actions: Any) -> Simulator:
        """Return the simulator for B episodes that began with observations (B, T + 1, D) and actions (B, T).

        It is the same unless the model learns from the beginning of an episode whom it simulates
        (`persim_gym.baselines.cadm`).
        """
        return self

    @abstractmethod
    def network(self, agent: int) -> MemberNetwork:
        """Return the network conditioned on the agent of an index."""

    def network_of(self, agents: IntArray) -> MemberNetwork:
        """Return the network for states of agents (B,), all of one index unless the simulator mixes agents."""
        return self.network(int(agents[0]))

    def cpu_network(self, agent: int) -> CpuNetwork | None:
        """Return the network of an agent's index for columns of states, where there is one for it and the device."""
        return None

    def step(self, observations: Any, actions: Any, *, uncertainty: bool = False) -> Prediction:
        """Predict one step.

        Args:
            observations: (B, D); what is not finite leads to what is not.
            actions: (B,) integers or (B, A) numbers.
            uncertainty: whether to compute `Prediction.standard_deviation`, too.

        Raises:
            InvalidStateError: observations of another shape.
            InvalidActionError: actions of another shape, or that the task does not have.
            MissingStatisticsError: the uncertainty is asked for, and the model does not know it.

        """
        states, moves = self._check(observations, actions)
        combined, disagreement = np.empty_like(states), np.empty_like(states)
        with np.errstate(invalid="ignore", over="ignore"):  # a model that diverges
            for rows, members in self._steps(states, moves):
                combined[rows] = self.combine(members)
                disagreement[rows] = members.std(axis=0)
            deviation = np.sqrt(disagreement**2 + self._variance_within(states, moves)) if uncertainty else None
        return Prediction(combined, disagreement, deviation)

    def step_members(self, observations: Any, actions: Any) -> FloatArray:
        """Return every member's next observation (M, B, D) float32, all from the same observations (B, D)."""
        states, moves = self._check(observations, actions)
        following = np.empty((self.num_members, *states.shape), np.float32)
        with np.errstate(invalid="ignore", over="ignore"):
            for rows, members in self._steps(states, moves):
                following[:, rows] = members
        return following

    def rollout(
        self, observations: Any, actions: Any, *, disturb: Callable[[Tensor], Tensor] | None = None
    ) -> FloatArray:
        """Follow action sequences, each member on its own trajectory.

        Args:
            observations: (B, D) start states.
            actions: (B, H) integers or (B, H, A) numbers.
            disturb: function of the members' states (M, D, B) after each step; the rollout continues from what it
                returns. By default states stay as they are.

        Returns:
            (M, B, H, D) float32: the state after each action.

        """
        states, moves = self._tensors(*self._check(observations, actions, "H"))
        horizon = moves.shape[1]
        stacked = states.T.expand(self.num_members, -1, -1)
        with explain_out_of_memory(
            f"give fewer than {len(states)} start states at once, or shorten the horizon of {horizon}"
        ):
            trajectory = np.empty((self.num_members, len(states), horizon, states.shape[1]), np.float32)
        with torch.inference_mode(), limited_threads(self.hidden_layers):
            for step in range(horizon):
                stacked = self._next_states(stacked, moves[:, step])
                if disturb is not None:
                    stacked = disturb(stacked)
                trajectory[:, :, step] = _batch_major(stacked)
        return trajectory

    def combine(self, members: FloatArray) -> FloatArray:
        """Aggregate over the first axis: members (M, …) -> (…)."""
        return aggregated(members, self.aggregate)

    @property
    def _by_row(self) -> bool:
        """Whether each row of a batch is of an agent of its own."""
        return len(self.agents) > 1

    def _steps(self, states: FloatArray, actions: np.ndarray) -> Iterator[tuple[slice, FloatArray]]:
        """Yield the members' next states (M, b, D) of some rows of the batch at a time, so that memory stays small."""
        size = _ROWS_AT_A_TIME[self.device.type == "cpu"]
        network = None if self._by_row else self.cpu_network(int(self.agents[0]))
        with torch.inference_mode(), limited_threads(self.hidden_layers):
            for start in range(0, len(states), size):
                rows = slice(start, min(start + size, len(states)))
                if network is not None:
                    yield rows, network.step(states[rows], actions[rows])
                    continue
                part, moves = self._tensors(states[rows], actions[rows])
                stacked = part.T.expand(self.num_members, -1, -1)
                yield rows, _batch_major(self._next_states(stacked, moves, start))

    def _tensors(self, states: FloatArray, actions: np.ndarray) -> tuple[Tensor, Tensor]:
        return torch.tensor(states, device=self.device), torch.tensor(actions, device=self.device)

    @abstractmethod
    def _next_states(self, states: Tensor, actions: Tensor, first: int = 0) -> Tensor:
        """Return the members' next states (M, D, b) for states (M, D, b) and actions (b,) or (b, A).

        ``first`` is the row of the batch that the first column is.
        """

    @abstractmethod
    def _variance_within(self, observations: FloatArray, actions: np.ndarray) -> FloatArray:
        """Return the variance (B, D) of a step that members see in the agents and in noise, averaged.

        Raises:
            MissingStatisticsError: the model does not know it.

        """

    def _check(self, observations: Any, actions: Any, *horizon: str) -> tuple[FloatArray, np.ndarray]:
        """Return observations (B, D) float32 and actions (B, …) int64 or float32, with an axis more if it is named."""
        states = np.ascontiguousarray(self.task.check_observations(observations, "B", least=1))
        if self._by_row and len(states) != len(self.agents):
            raise InvalidStateError(
                f"the simulator is bound to {len(self.agents)} agents, one for each row; got {len(states)} rows"
            )
        moves = self.task.executed(actions, len(states), *horizon)
        return states, moves.astype(np.int64 if self.task.discrete else np.float32)


def _batch_major(states: Tensor) -> FloatArray:
    """(M, D, B) tensor -> (M, B, D) array."""
    return states.transpose(1, 2).contiguous().cpu().numpy()
