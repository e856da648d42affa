"""`Simulator`: an ensemble bound to one or many agents. Environments, planners and evaluation reach the model here."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from persim_gym import jit
from persim_gym.aggregation import aggregated, check_aggregate
from persim_gym.blocks import BlockNetwork, ColumnNetwork
from persim_gym.compiled import CompiledNetwork
from persim_gym.compiled_layers import CompiledLayers
from persim_gym.devices import memory_for, resolve_device, threads_for
from persim_gym.errors import InvalidArgumentError, InvalidStateError
from persim_gym.folding import FoldedNetwork, Layers, fold
from persim_gym.gradients import agent_features, predict
from persim_gym.layers import TorchLayers
from persim_gym.model import Ensemble
from persim_gym.outcomes import bound_task
from persim_gym.types import FloatArray, IntArray, Prediction

_ROWS_AT_A_TIME = {True: 2048, False: 1 << 18}
"""Rows of a batch that are stepped together, on the CPU, where they should fit the cache, and elsewhere."""


class AgentNetwork:
    """One agent's folded members on a torch device, feature-major."""

    def __init__(self, folded: FoldedNetwork, bounds: tuple[Tensor, Tensor] | None, device: torch.device) -> None:
        def moved(layers: Layers) -> list[tuple[Tensor, Tensor]]:
            return [(torch.tensor(weight, device=device), torch.tensor(bias, device=device)) for weight, bias in layers]

        self.num_members = folded.head[0].shape[0]
        self.num_actions = folded.num_actions
        self._state = _network(moved([*folded.hidden, folded.head]))
        self._action = _network(moved(folded.action)) if folded.action else None
        self._change_mean = torch.tensor(folded.change_mean, device=device)[:, None]
        self._bounds = bounds

    def next_states(self, states: Tensor, actions: Tensor, members: slice = slice(None)) -> Tensor:
        """Return the next states (m, D, B) that some members predict; arguments as in `changes`."""
        return _within(states + self.changes(states, actions, members), self._bounds)

    def action_factors(self, actions: Tensor, members: slice = slice(None)) -> Tensor:
        """Return w (m, r, B) of continuous actions (A, B)."""
        assert self._action is not None, "discrete actions have indices"
        count = len(range(*members.indices(self.num_members)))
        return self._action(actions.expand(count, -1, -1), members)

    def changes(self, states: Tensor, actions: Tensor, members: slice = slice(None)) -> Tensor:
        """Return the changes (m, D, B) that some members predict for their states (m, D, B), or one for all (m, D, 1).

        ``actions`` are (B,) indices, or the factors (m, r, B) that `action_factors` made of continuous actions.
        """
        if self.num_actions == 0:
            return self._state.weighted(states, actions, members).add_(self._change_mean)
        count, size, batch = states.shape
        by_action = self._state(states, members).view(count, self.num_actions, size, batch)
        chosen = by_action[:, 0]
        for action in range(1, self.num_actions):
            chosen = torch.where(actions == action, by_action[:, action], chosen)
        return chosen


def _network(layers: list[tuple[Tensor, Tensor]]) -> CompiledLayers | TorchLayers:
    """Return layers that are computed as fast as can be here."""
    return CompiledLayers(layers) if CompiledLayers.fits(layers) else TorchLayers(layers)


class Simulator:
    """The learned dynamics of one agent, for any number of states, or of B agents, for one state each.

    Made by `Ensemble.simulator`. States are raw observations, kept within the observation space where the ensemble's
    configuration says so.
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
        check_aggregate(aggregate)
        if len(agents) == 0:
            raise InvalidArgumentError("a simulator needs at least one agent")
        self.ensemble = ensemble
        self.task = bound_task(ensemble, [int(agent) for agent in agents])
        self.agents = agents
        self.aggregate = aggregate
        self.device = resolve_device(str(device))
        self._own_factors = own_factors
        self._networks: dict[int, AgentNetwork] = {}
        self._column_networks: dict[int, ColumnNetwork | None] = {}

    @property
    def num_members(self) -> int:
        """M."""
        return self.ensemble.num_members

    @property
    def hidden_layers(self) -> tuple[int, ...]:
        """Widths of the hidden layers that a step goes through."""
        return self.ensemble.config.state_hidden

    @property
    def stochastic(self) -> bool:
        """Whether next states are drawn; PerSim's are not."""
        return False

    @property
    def mixes_agents(self) -> bool:
        """Whether `network_of` takes states of several agents at once; PerSim's networks are folded for one."""
        return False

    def reseed(self, seed: int) -> None:
        """Start the simulator's own random numbers anew; one that is not stochastic has none."""

    def conditioned_on(self, observations: Any, actions: Any) -> Simulator:
        """Return the simulator for B episodes that began with observations (B, T + 1, D) and actions (B, T).

        PerSim knows an agent by its factor and learns nothing from the beginning of an episode; other dynamics do
        (`persim_gym.baselines.cadm`).
        """
        return self

    @property
    def _by_row(self) -> bool:
        """Whether each row of a batch has factors of its own."""
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
        parameters = self._shared[0]
        table, complete = parameters["agent.weight"], torch.tensor(factors, dtype=torch.float32, device=self.device)
        # A factor is the agent's row of the table and the bias that all agents share.
        table[:, torch.as_tensor(rows, device=self.device)] = complete - parameters["agent.bias"][:, None]

    def network(self, agent: int) -> AgentNetwork:
        """Return the folded network of an agent's index, with the agent's factors; folded once."""
        if agent not in self._networks:
            self._networks[agent] = AgentNetwork(fold(self.ensemble, agent), self._bounds, self.device)
        return self._networks[agent]

    def network_of(self, agents: IntArray) -> AgentNetwork:
        """Return the network for states of agents (B,), all of one index unless the simulator mixes agents."""
        return self.network(int(agents[0]))

    def column_network(self, agent: int) -> ColumnNetwork | None:
        """Return the network of an agent's index for columns of states, where there is one for it and the device."""
        if agent not in self._column_networks:
            space, folded = self.task.observation_space, fold(self.ensemble, agent)
            bounds = (space.low, space.high) if self.ensemble.config.clip_states else None
            fits = self.device.type == "cpu" and BlockNetwork.fits(folded)
            network = CompiledNetwork if jit.available() else BlockNetwork
            self._column_networks[agent] = network(folded, bounds) if fits else None
        return self._column_networks[agent]

    def step(self, observations: Any, actions: Any, *, uncertainty: bool = False) -> Prediction:
        """Predict one step.

        Args:
            observations: (B, D).
            actions: (B,) integers or (B, A) numbers.
            uncertainty: whether to tell the standard deviation of the next observations, too.

        Raises:
            InvalidStateError: observations of another shape.
            InvalidActionError: actions of another shape, or that the task does not have.
            MissingStatisticsError: the uncertainty is asked for, and the ensemble does not know it.

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

    def rollout(self, observations: Any, actions: Any) -> FloatArray:
        """Follow action sequences, each member on its own trajectory.

        Args:
            observations: (B, D) start states.
            actions: (B, H) integers or (B, H, A) numbers.

        Returns:
            (M, B, H, D) float32: the state after each action.

        """
        states, moves = self._tensors(*self._check(observations, actions, "H"))
        horizon = moves.shape[1]
        stacked = states.T.expand(self.num_members, -1, -1)
        with memory_for(f"give fewer than {len(states)} start states at once, or shorten the horizon of {horizon}"):
            trajectory = np.empty((self.num_members, len(states), horizon, states.shape[1]), np.float32)
        with torch.inference_mode(), threads_for(self.hidden_layers):
            for step in range(horizon):
                stacked = self._next_states(stacked, moves[:, step])
                trajectory[:, :, step] = _batch_major(stacked)
        return trajectory

    def combine(self, members: FloatArray) -> FloatArray:
        """Aggregate over the first axis: members (M, …) -> (…)."""
        return aggregated(members, self.aggregate)

    @cached_property
    def _bounds(self) -> tuple[Tensor, Tensor] | None:
        """Lower and upper bounds of states, columns (D, 1), where the configuration keeps to them."""
        if not self.ensemble.config.clip_states:
            return None
        space = self.task.observation_space
        low, high = (torch.tensor(bound, dtype=torch.float32, device=self.device) for bound in (space.low, space.high))
        return low[:, None], high[:, None]

    def _steps(self, states: FloatArray, actions: np.ndarray) -> Iterator[tuple[slice, FloatArray]]:
        """Yield the members' next states (M, b, D) of some rows of the batch at a time, so that memory stays small."""
        size = _ROWS_AT_A_TIME[self.device.type == "cpu"]
        network = None if self._by_row else self.column_network(int(self.agents[0]))
        with torch.inference_mode(), threads_for(self.hidden_layers):
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

    def _next_states(self, states: Tensor, actions: Tensor, first: int = 0) -> Tensor:
        """Return the members' next states (M, D, b) for states (M, D, b) and actions (b,) or (b, A).

        ``first`` is the row of the batch that the first column is.
        """
        if self._by_row:
            return _within(states + self._changes_of_many_agents(states, actions, first), self._bounds)
        network = self.network(int(self.agents[0]))
        if not self.task.discrete:
            actions = network.action_factors(actions.T)
        return network.next_states(states.contiguous(), actions)

    def _changes_of_many_agents(self, states: Tensor, actions: Tensor, first: int) -> Tensor:
        """Evaluate the unfolded model: each column has an agent of its own."""
        parameters, mean, scale, change_mean, change_scale = self._shared
        members, batch = states.shape[0], states.shape[2]
        member = torch.arange(members, device=self.device)[:, None]
        rows = torch.arange(first, first + batch, device=self.device) + member * len(self.agents)
        if self.task.discrete:
            moves = (actions + member * self.task.action_size).view(-1)
        else:
            moves = actions.T.expand(members, -1, -1)
        changes = predict(parameters, (states - mean) / scale, rows.view(-1), moves)
        return changes * change_scale + change_mean

    @cached_property
    def _shared(self) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor, Tensor]:
        """The parameters, with the table of agents cut down to those bound, and the normalizer as columns (D, 1)."""
        arrays = dict(self.ensemble.parameters)
        arrays["agent.weight"] = arrays["agent.weight"][:, self.agents]
        with torch.inference_mode(False):  # `set_factors` writes to the table
            parameters = {
                name: torch.tensor(np.ascontiguousarray(array), device=self.device) for name, array in arrays.items()
            }
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
        covariances = posterior.solve(self.agents)[1]
        parameters, mean, scale, _, _ = self._shared
        members = self.num_members
        states, moves = (torch.tensor(array, device=self.device) for array in (observations, actions))
        with torch.inference_mode(), threads_for(self.ensemble.config.state_hidden):
            if self.task.discrete:
                member = torch.arange(members, device=self.device)[:, None]
                moves = (moves + member * self.task.action_size).view(-1)
            else:
                moves = moves.T.expand(members, -1, -1).contiguous()
            stacked = ((states.T - mean) / scale).expand(members, -1, -1).contiguous()
            features = agent_features(parameters, stacked, moves).double().cpu().numpy()
        spread = np.broadcast_to(covariances, (members, len(states), *covariances.shape[2:]))
        of_factor = np.einsum("mdib,mbij,mdjb->mbd", features, spread, features, optimize=True)
        variance = (of_factor + posterior.prior.noise[:, None]).mean(0)
        return variance * self.ensemble.normalizer.change_scale**2

    def _check(self, observations: Any, actions: Any, *horizon: str) -> tuple[FloatArray, np.ndarray]:
        """Return observations (B, D) float32 and actions (B, …) int64 or float32, with an axis more if it is named."""
        states = np.ascontiguousarray(self.task.check_observations(observations, "B", least=1))
        if self._by_row and len(states) != len(self.agents):
            raise InvalidStateError(
                f"the simulator is bound to {len(self.agents)} agents, one for each row; got {len(states)} rows"
            )
        moves = self.task.check_actions(actions, len(states), *horizon)
        return states, moves.astype(np.int64 if self.task.discrete else np.float32)


def _within(states: Tensor, bounds: tuple[Tensor, Tensor] | None) -> Tensor:
    return states if bounds is None else torch.clamp(states, *bounds)


def _batch_major(states: Tensor) -> FloatArray:
    """(M, D, B) tensor -> (M, B, D) array."""
    return states.transpose(1, 2).contiguous().cpu().numpy()
