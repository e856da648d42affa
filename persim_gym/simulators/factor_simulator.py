"""`FactorSimulator`: PerSim's simulator, an ensemble bound to one or many agents by their factors u(agent)."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from persim_gym.devices import on_device
from persim_gym.errors import InvalidArgumentError
from persim_gym.model.ensemble import Ensemble
from persim_gym.model.factorization import agent_features, member_actions, member_rows, predict
from persim_gym.model.outcomes import bound_task
from persim_gym.simulators.networks.agent_network import AgentNetwork, clamped
from persim_gym.simulators.networks.folding import fold
from persim_gym.simulators.networks.interfaces import Bounds, CpuNetwork, bounds_on
from persim_gym.simulators.networks.kernels import jit
from persim_gym.simulators.networks.shallow import ShallowNetwork
from persim_gym.simulators.networks.shallow_compiled import CompiledShallowNetwork
from persim_gym.simulators.simulator import Simulator
from persim_gym.threads import limited_threads
from persim_gym.types import FloatArray, IntArray


class FactorSimulator(Simulator):
    """The members of an ensemble, conditioned on one agent, or on an agent for each row of a batch.

    Made by `Ensemble.simulator`. States are kept within the observation space where the ensemble's configuration says
    so. For one agent the model is folded; for many it is evaluated as it is, each row with its own factors.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        agents: IntArray,
        *,
        aggregate: str = "mean",
        device: str | torch.device = "cpu",
        own_factors: bool = False,
    ) -> None:
        """Bind an ensemble to agents.

        Args:
            ensemble: trained.
            agents: (B,) indices, or one for any number of states.
            aggregate: "mean" or "median" over the members.
            device: any torch device.
            own_factors: whether every row may have factors other than its agent's (`set_factors`).

        Raises:
            InvalidArgumentError: no agent, or an unknown aggregate or device.

        """
        task = bound_task(ensemble, [int(agent) for agent in agents])
        super().__init__(task, agents, aggregate=aggregate, device=device)
        self.ensemble = ensemble
        self._own_factors = own_factors
        self._networks: dict[int, AgentNetwork] = {}
        self._cpu_networks: dict[int, CpuNetwork] = {}

    def __repr__(self) -> str:
        if len(self.agents) > 1:
            return super().__repr__()
        label = self.ensemble.agent_labels[int(self.agents[0])]
        return f"{type(self).__name__}({self.task.name}: agent {label!r}, {self.num_members} members)"

    @property
    def num_members(self) -> int:
        return self.ensemble.num_members

    @property
    def hidden_layers(self) -> tuple[int, ...]:
        return self.ensemble.config.state_hidden

    @property
    def _by_row(self) -> bool:
        return len(self.agents) > 1 or self._own_factors

    def set_factors(self, rows: IntArray, factors: FloatArray) -> None:
        """Let some rows (n,) of the batch have factors (M, n, r) instead of their agents', from now on.

        Raises:
            InvalidArgumentError: the simulator was made without ``own_factors``.

        """
        if not self._own_factors:
            raise InvalidArgumentError(
                "this simulator's rows have their agents' factors; make it with own_factors=True"
            )
        table, own = self._shared[0]["agent.weight"], self.ensemble.table_rows(np.asarray(factors, np.float32))
        table[:, torch.as_tensor(rows, device=self.device)] = torch.as_tensor(own, device=self.device)

    def network(self, agent: int) -> AgentNetwork:
        """Return the folded network of an agent's index, with the agent's factors; folded once."""
        if agent not in self._networks:
            self._networks[agent] = AgentNetwork(fold(self.ensemble, agent), self._bounds, self.device)
        return self._networks[agent]

    def cpu_network(self, agent: int) -> CpuNetwork | None:
        if self.device.type != "cpu" or not (self.task.discrete and len(self.ensemble.config.state_hidden) == 1):
            return None
        if agent not in self._cpu_networks:
            network = CompiledShallowNetwork if jit.available() else ShallowNetwork
            self._cpu_networks[agent] = network(fold(self.ensemble, agent), self.ensemble.state_bounds)
        return self._cpu_networks[agent]

    @cached_property
    def _bounds(self) -> Bounds | None:
        """The bounds of states, where the ensemble keeps to them."""
        return bounds_on(self.device, self.ensemble.state_bounds)

    def _next_states(self, states: Tensor, actions: Tensor, first: int = 0) -> Tensor:
        if self._by_row:
            return clamped(states + self._changes_of_many_agents(states, actions, first), self._bounds)
        network = self.network(int(self.agents[0]))
        if not self.task.discrete:
            actions = network.action_factors(actions.T)
        return network.next_states(states.contiguous(), actions)

    def _changes_of_many_agents(self, states: Tensor, actions: Tensor, first: int) -> Tensor:
        """Evaluate the unfolded model: each column has an agent of its own."""
        parameters, mean, scale, change_mean, change_scale = self._shared
        members, batch = states.shape[0], states.shape[2]
        agents = torch.arange(first, first + batch, device=self.device)
        rows = member_rows(agents, members, len(self.agents)).view(-1)
        moves = member_actions(actions, members, self.task.action_size)
        changes = predict(parameters, (states - mean) / scale, rows, moves)
        return changes * change_scale + change_mean

    @cached_property
    def _shared(self) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor, Tensor]:
        """The parameters, with the table of agents cut down to those bound, and the normalizer as columns (D, 1)."""
        arrays = dict(self.ensemble.parameters)
        arrays["agent.weight"] = arrays["agent.weight"][:, self.agents]
        with torch.inference_mode(False):  # `set_factors` writes to the table
            parameters = on_device(arrays, self.device)
        normalizer = self.ensemble.normalizer
        mean, scale, change_mean, change_scale = (
            torch.tensor(column, dtype=torch.float32, device=self.device)[:, None]
            for column in (
                normalizer.state_mean,
                normalizer.state_scale,
                normalizer.change_mean,
                normalizer.change_scale,
            )
        )
        return parameters, mean, scale, change_mean, change_scale

    def _variance_within(self, observations: FloatArray, actions: np.ndarray) -> FloatArray:
        """Return the variance (B, D) of a step that members see in the agents' factors and in noise, averaged."""
        posterior = self.ensemble.known_posterior()
        _, covariances = posterior.moments(self.agents)
        parameters, mean, scale, _, _ = self._shared
        members = self.num_members
        states, moves = (torch.tensor(array, device=self.device) for array in (observations, actions))
        with torch.inference_mode(), limited_threads(self.hidden_layers):
            moves = member_actions(moves, members, self.task.action_size).contiguous()
            stacked = ((states.T - mean) / scale).expand(members, -1, -1).contiguous()
            features = agent_features(parameters, stacked, moves).double().cpu().numpy()
        by_row = np.broadcast_to(covariances, (members, len(states), *covariances.shape[2:]))
        of_factor = np.einsum("mdib,mbij,mdjb->mbd", features, by_row, features, optimize=True)
        variance = (of_factor + posterior.prior.noise_of_predictions[:, None]).mean(0)
        return variance * self.ensemble.normalizer.change_scale**2
