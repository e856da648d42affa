"""The network of dynamics that see a context vector beside state and action (`persim_gym.baselines.context`).

Everything is feature-major, (M, features, B), as in `persim_gym.model.factorization`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from persim_gym.baselines.layers import Activation, Features, Scaling, one_hot
from persim_gym.model.factorization import num_layers
from persim_gym.simulators.networks.interfaces import CpuNetwork
from persim_gym.types import FloatArray, IntArray

_TENSOR_CORE_INPUTS = 8
"""Their number is to be a multiple of this."""
_ROWS_OF_A_KERNEL = 64
"""The number of rows in a product on the CPU is a multiple of this, but for the last product's."""
_CACHE_BYTES = 1 << 19
"""Of the second-level cache, for the hidden units of one layer."""


@dataclass(frozen=True)
class ContextDynamics:
    """A trained network of M members on a device: [features, action, context] -> standardized target."""

    parameters: Mapping[str, Tensor]
    """The layers "forward.0" …, each (M, outputs, inputs)."""
    features: Features
    inputs: Scaling
    """Of the features (F, 1)."""
    targets: Scaling
    """(D, 1)."""
    actions: Scaling | None
    """Of continuous actions (A, 1); None for discrete ones, which enter one-hot."""
    action_size: int
    activation: Activation
    """In place."""
    particles_per_member: int = 1
    log_variance_bounds: tuple[Tensor, Tensor] | None = None
    """Lower and upper, (1, D, 1), of a network that also predicts a variance; None for a deterministic one."""
    state_bounds: tuple[Tensor, Tensor] | None = None
    """Lower and upper, (D, 1), that next states are kept within; None for no bounds."""

    @property
    def num_particles(self) -> int:
        """P: trajectories a simulator follows, each tied to one member."""
        return self.parameters["forward.0.weight"].shape[0] * self.particles_per_member

    @cached_property
    def first(self) -> tuple[Tensor, Tensor, Tensor]:
        """First layer of every member, for raw inputs: weights of features and action, of the context, and biases."""
        weight, bias = self._layer(0)
        size = len(self.inputs.mean)
        by_features, by_action, by_context = weight.split(
            [size, self.action_size, weight.shape[2] - size - self.action_size], dim=2
        )
        by_features = by_features / self.inputs.scale.T
        bias = bias - by_features @ self.inputs.mean
        if self.actions is not None:
            by_action = by_action / self.actions.scale.T
            bias = bias - by_action @ self.actions.mean
        return torch.cat([by_features, by_action], dim=2), by_context, bias

    @cached_property
    def rest(self) -> list[tuple[Tensor, Tensor]]:
        """Weights and biases of every member's other layers."""
        return [self._layer(index) for index in range(1, num_layers(self.parameters, "forward"))]

    def _layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Return weight (M, outputs, inputs) and bias (M, outputs, 1) of a layer of every member."""
        return self.parameters[f"forward.{index}.weight"], self.parameters[f"forward.{index}.bias"]


def soft_clamp(log_variance: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return log variances kept smoothly within learned bounds (Chua et al., 2018, appendix A)."""
    softplus = torch.nn.functional.softplus
    return low + softplus(high - softplus(high - log_variance) - low)


class ContextNetwork:
    """P particles conditioned on one agent, or on one agent for each column; what planners roll out.

    The standardization is folded into the first layer, and so is the context of a single agent; those of several enter
    beside state and action, which takes less memory than biases of their own. A network that predicts a variance draws
    each particle's next state anew with every call (TS∞ of Chua et al., 2018), unless it has no generator to draw with:
    next states are then their means.
    """

    def __init__(
        self,
        dynamics: ContextDynamics,
        contexts: Tensor,
        generator: torch.Generator | None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Tell the network contexts (P, context, 1) or (P, context, B), and the type its products are computed in.

        That of the first layer is always in float32: it is small, and states differ by less than bfloat16 tells apart.
        """
        weight, by_context, bias = dynamics.first
        self._contexts = None if contexts.shape[2] == 1 else contexts
        if self._contexts is None:
            first = weight, bias + by_context @ contexts[:: dynamics.particles_per_member]
        else:
            first = torch.cat([weight, by_context], dim=2), bias
        padded = torch.nn.functional.pad(first[0], (0, -first[0].shape[2] % _TENSOR_CORE_INPUTS))
        self._first = padded, first[1][:, :, 0]
        self._rest = [(weight.to(dtype), bias[:, :, 0].to(dtype)) for weight, bias in dynamics.rest]
        self._dtype = dtype
        self.particles_per_member = dynamics.particles_per_member
        self._dynamics = dynamics
        self._generator = generator
        self.num_members, self.observation_size = dynamics.num_particles, len(dynamics.targets.mean)
        self.num_actions = 0 if dynamics.actions is not None else dynamics.action_size

    def action_factors(self, actions: Tensor, members: slice = slice(None)) -> Tensor:
        """Return continuous actions (A, B) as `next_states` takes them, (m, A, B)."""
        return actions.expand(len(range(*members.indices(self.num_members))), -1, -1)

    def next_states(self, states: Tensor, actions: Tensor, members: slice = slice(None)) -> Tensor:
        """Return next states (m, D, B) of some particles from states (m, D, B), or from one for all (m, D, 1).

        Actions are (B,) indices, or (m, A, B) from `action_factors`.
        """
        states = states.expand(-1, -1, actions.shape[-1])
        if self.num_actions:
            actions = one_hot(actions, self.num_actions).expand(len(states), -1, -1)
        inputs = [self._dynamics.features.of(states), actions]
        if self._contexts is not None:
            inputs.append(self._contexts[members])
        fed = torch.cat(inputs, dim=1).transpose(1, 2)
        first, count = range(self.num_members)[members].start, fed.shape[1]
        outputs = self._outputs(fed.flatten(0, 1), [count * (particle + 1) for particle in range(len(fed))], first)
        return self._after(states, outputs.unflatten(0, fed.shape[:2]).transpose(1, 2))

    def next_columns(self, states: Tensor, actions: Tensor, stops: Sequence[int], first: int) -> Tensor:
        """Return next states (D, n) of columns, any number of each particle, conditioned on one agent.

        Args:
            states: (D, n), the columns of one particle after those of another.
            actions: (n,) indices.
            stops: where the columns of each particle in turn end; the last is n.
            first: the particle whose columns come first.

        """
        fed = torch.cat([self._dynamics.features.of(states), one_hot(actions, self.num_actions)]).T
        return self._after(states, self._outputs(fed, stops, first).T)

    def _outputs(self, rows: Tensor, stops: Sequence[int], first: int) -> Tensor:
        """Return the outputs (n, O) for inputs (n, I), rows of one particle after those of another.

        All particles of a member go through its layers as rows of one product, which is what libraries of products are
        quick at: on a GPU if rows are as long as its tensor cores want them, on a CPU if so few go at once that the
        cache holds their hidden units.
        """
        at_once = len(rows) if rows.is_cuda else max(_ROWS_OF_A_KERNEL, self._rows_in_cache)
        # In bfloat16 the CPU's library makes a kernel for every number of rows, which takes longer than to use it.
        multiple = 1 if self._dtype == torch.float32 else _ROWS_OF_A_KERNEL
        padding = (0, -rows.shape[1] % _TENSOR_CORE_INPUTS, 0, multiple - 1)
        fed = torch.nn.functional.pad(rows, padding)
        each, outputs, left = self.particles_per_member, [], 0
        for member in range(first // each, (first + len(stops) - 1) // each + 1):
            right = stops[min((member + 1) * each - first, len(stops)) - 1]
            for start in range(left, right, at_once):
                stop = min(start + at_once, right)
                part = fed[start : stop + (start - stop) % multiple]
                outputs.append(self._outputs_of(member, part)[: stop - start])
            left = right
        return torch.cat(outputs)

    def _outputs_of(self, member: int, inputs: Tensor) -> Tensor:
        """Return a member's outputs (n, O) for its padded inputs (n, I)."""
        linear, activation = torch.nn.functional.linear, self._dynamics.activation
        outputs = linear(inputs, self._first[0][member], self._first[1][member]).to(self._dtype)
        for weight, bias in self._rest:
            outputs = linear(activation(outputs), weight[member], bias[member])
        return outputs

    @property
    def _rows_in_cache(self) -> int:
        widest = max(weight.shape[2] for weight, _ in self._rest)
        rows = _CACHE_BYTES // (widest * self._dtype.itemsize)
        return rows // _ROWS_OF_A_KERNEL * _ROWS_OF_A_KERNEL

    def _after(self, states: Tensor, outputs: Tensor) -> Tensor:
        """Return the next states for outputs (…, O, B) of the network, drawn if it predicts a variance."""
        dynamics, outputs = self._dynamics, outputs.float()
        if dynamics.log_variance_bounds is not None:
            outputs, log_variance = outputs.chunk(2, dim=-2)
            if self._generator is not None:
                low, high = (bound.reshape(-1, 1) for bound in dynamics.log_variance_bounds)
                deviation = (0.5 * soft_clamp(log_variance, low, high)).exp()
                noise = torch.randn(
                    outputs.shape, generator=self._generator, dtype=torch.float32, device=outputs.device
                )
                outputs = outputs + deviation * noise
        targets = outputs * dynamics.targets.scale + dynamics.targets.mean
        following = dynamics.features.base(states) + targets
        return following if dynamics.state_bounds is None else following.clamp(*dynamics.state_bounds)


class ContextCpuNetwork(CpuNetwork):
    """A `ContextNetwork` of one agent on the CPU, of a task of discrete actions, for columns of its particles."""

    def __init__(self, network: ContextNetwork) -> None:
        """Wrap a network conditioned on one agent."""
        self._network, self.size, self.num_members = network, network.observation_size, network.num_members
        self.at_once = network.particles_per_member

    def next_states(self, states: FloatArray, actions: IntArray, stops: Sequence[int], first: int = 0) -> FloatArray:
        """Return the next states; arguments as `CpuNetwork.next_states` has them."""
        following = np.ones_like(states)
        given = torch.from_numpy(states[:-1]), torch.from_numpy(np.ascontiguousarray(actions, np.int64))
        following[:-1] = self._network.next_columns(*given, stops, first).numpy()
        return following
