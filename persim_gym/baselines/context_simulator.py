"""`ContextSimulator`: a model bound to one or many agents by their contexts."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from persim_gym.arguments import checked_seed
from persim_gym.baselines.context_network import ContextCpuNetwork, ContextNetwork
from persim_gym.model.dynamics import no_posterior
from persim_gym.model.factorization import num_layers
from persim_gym.simulators.simulator import Simulator
from persim_gym.types import FloatArray, IntArray

if TYPE_CHECKING:
    from persim_gym.baselines.context import ContextModel


_SEEDS = 2**31
"""Exclusive upper bound of the seeds that are drawn."""


class ContextSimulator(Simulator):
    """A `ContextModel` conditioned on one agent, or on an agent for each row of a batch."""

    def __init__(
        self,
        model: ContextModel,
        agents: IntArray,
        contexts: Tensor,
        *,
        aggregate: str = "mean",
        device: torch.device,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Bind a model to contexts (M, context, n) of n agents, or of n environments numbered by ``agents`` (n,).

        Its products are computed in ``dtype``.
        """
        super().__init__(model.task, agents, aggregate=aggregate, device=device)
        self.model = model
        self._dtype = dtype
        self._dynamics = model.dynamics(device)
        self._contexts = contexts.repeat_interleave(self._dynamics.particles_per_member, 0)
        self._generator: torch.Generator | None = torch.Generator(device)
        self._column = {int(agent): column for column, agent in enumerate(agents)}
        self._by_agent: dict[int, ContextNetwork] = {}
        self._all_columns = self._told(self._contexts)
        self.reseed(seed)

    def _told(self, contexts: Tensor) -> ContextNetwork:
        return ContextNetwork(self._dynamics, contexts, self._generator, self._dtype)

    @property
    def stochastic(self) -> bool:
        return self._dynamics.log_variance_bounds is not None and self._generator is not None

    def deterministic(self) -> ContextSimulator:
        if not self.stochastic:
            return self
        other = copy.copy(self)
        other._generator, other._by_agent = None, {}
        other._all_columns = other._told(self._contexts)
        return other

    @property
    def num_members(self) -> int:
        """P: members, or particles tied to them."""
        return self._dynamics.num_particles

    def reseed(self, seed: int | np.random.Generator) -> None:
        if self._generator is not None:
            drawn = isinstance(seed, np.random.Generator)
            self._generator.manual_seed(int(seed.integers(_SEEDS)) if drawn else checked_seed(seed))

    def network(self, agent: int) -> ContextNetwork:
        """Return the network of an agent's index, or of an environment's number."""
        if agent not in self._by_agent:
            column = self._column[agent]
            contexts = self._contexts[:, :, column : column + 1]
            self._by_agent[agent] = self._told(contexts)
        return self._by_agent[agent]

    @property
    def mixes_agents(self) -> bool:
        return True

    def network_of(self, agents: IntArray) -> ContextNetwork:
        if (agents == agents[0]).all():
            return self.network(int(agents[0]))
        different, which = np.unique(agents, return_inverse=True)
        columns = np.array([self._column[int(agent)] for agent in different])[which]
        contexts = self._contexts[:, :, torch.as_tensor(columns, device=self.device)]
        return self._told(contexts)

    @property
    def hidden_layers(self) -> tuple[int, ...]:
        count = num_layers(self._dynamics.parameters, "forward")
        return tuple(self._dynamics.parameters[f"forward.{index}.bias"].shape[1] for index in range(count - 1))

    def _variance_within(self, observations: FloatArray, actions: np.ndarray) -> FloatArray:
        raise no_posterior(self.model)

    def cpu_network(self, agent: int) -> ContextCpuNetwork | None:
        on_cpu = self.device.type == "cpu"
        return ContextCpuNetwork(self.network(agent)) if on_cpu and self.task.discrete else None

    def _next_states(self, states: Tensor, actions: Tensor, first: int = 0) -> Tensor:
        network, columns = self._all_columns, states.shape[2]
        if 1 < len(self.agents) != columns:  # a part of the batch, whose first row is ``first``
            contexts = self._contexts[:, :, first : first + columns]
            network = self._told(contexts)
        inputs = actions if network.num_actions else network.action_factors(actions.T)
        return network.next_states(states, inputs)
