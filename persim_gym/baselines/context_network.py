"""The network of dynamics that see a context vector beside state and action (`persim_gym.baselines.context`).

Everything is feature-major, (M, features, B), as in `persim_gym.gradients`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from persim_gym.gradients import num_layers

Activation = Callable[[Tensor], Tensor]
_TENSOR_CORE_INPUTS = 8
"""Their number is to be a multiple of this."""


def mlp(parameters: Mapping[str, Tensor], name: str, inputs: Tensor, activation: Activation) -> Tensor:
    """Return the linear outputs (M, O, B) of a network of all members for inputs (M, I, B)."""
    last = num_layers(parameters, name) - 1
    for index in range(last + 1):
        inputs = torch.baddbmm(parameters[f"{name}.{index}.bias"], parameters[f"{name}.{index}.weight"], inputs)
        if index < last:
            inputs = activation(inputs)
    return inputs


def layer_shapes(name: str, members: int, sizes: Sequence[int]) -> dict[str, tuple[int, int, int]]:
    """Return the shapes of a network's weights (M, outputs, inputs) and biases (M, outputs, 1)."""
    shapes = {}
    for index, (inputs, outputs) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        shapes[f"{name}.{index}.weight"] = (members, outputs, inputs)
        shapes[f"{name}.{index}.bias"] = (members, outputs, 1)
    return shapes


@dataclass(frozen=True)
class Features:
    """What a network sees of a state, and what it predicts of the next one."""

    absolute: tuple[int, ...] = ()
    """Coordinates whose next value is predicted itself, not its change; they are no input."""
    angles: tuple[int, ...] = ()
    """Coordinates that enter by sine and cosine."""

    def size(self, observation_size: int) -> int:
        """Return F, the number of features of D coordinates."""
        return observation_size - len(self.absolute) + len(self.angles)

    def of(self, states: Tensor) -> Tensor:
        """Return the features (…, F, B) of raw states (…, D, B)."""
        if not (self.absolute or self.angles):
            return states
        plain = [i for i in range(states.shape[-2]) if i not in self.absolute and i not in self.angles]
        angles = states[..., list(self.angles), :]
        return torch.cat([states[..., plain, :], angles.sin(), angles.cos()], dim=-2)

    def base(self, states: Tensor) -> Tensor:
        """Return what a predicted target (…, D, B) is to be added to: the states, zero where absolute."""
        if not self.absolute:
            return states
        base = states.clone()
        base[..., list(self.absolute), :] = 0.0
        return base


@dataclass(frozen=True)
class Scaling:
    """Means and scales, columns (size, 1) on a device."""

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Scaling:
        """Return mean and deviation over the columns of values (size, T); a constant row keeps scale 1."""
        deviation = values.double().std(dim=1, keepdim=True, unbiased=False)
        scale = torch.where(deviation > 1e-10, deviation, torch.ones_like(deviation))
        return cls(values.double().mean(dim=1, keepdim=True).float(), scale.float())

    def __call__(self, values: Tensor) -> Tensor:
        """Standardize values (…, size, B)."""
        return (values - self.mean) / self.scale


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
    particles_per_member: int = 1
    log_variance_bounds: tuple[Tensor, Tensor] | None = None
    """Lower and upper, (1, D, 1), of a network that also predicts a variance; None for a deterministic one."""

    @property
    def num_particles(self) -> int:
        """P: trajectories a simulator follows, each tied to one member."""
        return self.parameters["forward.0.weight"].shape[0] * self.particles_per_member

    @cached_property
    def first(self) -> tuple[Tensor, Tensor, Tensor]:
        """First layer of every particle, for raw inputs: weights of features and action, of the context, and biases."""
        weight, bias = self.layer(0)
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
        """Weights and biases of every particle's other layers."""
        return [self.layer(index) for index in range(1, num_layers(self.parameters, "forward"))]

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Return weight (P, outputs, inputs) and bias (P, outputs, 1) of a layer of every particle."""
        names = (f"forward.{index}.weight", f"forward.{index}.bias")
        weight, bias = (self.parameters[name].repeat_interleave(self.particles_per_member, 0) for name in names)
        return weight, bias


def soft_clamp(log_variance: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return log variances kept smoothly within learned bounds (Chua et al., 2018, appendix A)."""
    softplus = torch.nn.functional.softplus
    return low + softplus(high - softplus(high - log_variance) - low)


class ContextNetwork:
    """P particles told about one agent, or about one agent for each column; what planners roll out.

    The standardization is folded into the first layer, and so is the context of a single agent; those of several enter
    beside state and action, which takes less memory than biases of their own. A network that predicts a variance draws
    each particle's next state anew with every call (TS∞ of Chua et al., 2018).
    """

    def __init__(self, dynamics: ContextDynamics, contexts: Tensor, generator: torch.Generator | None) -> None:
        """Tell the network contexts (P, context, 1) or (P, context, B)."""
        weight, by_context, bias = dynamics.first
        self._contexts = None if contexts.shape[2] == 1 else contexts
        if self._contexts is None:
            first = weight, bias + by_context @ contexts
        else:
            first = torch.cat([weight, by_context], dim=2), bias
        self._layers = [first, *dynamics.rest]
        self._particles_per_member = dynamics.particles_per_member
        self._dynamics = dynamics
        self._generator = generator
        self.num_members = dynamics.num_particles
        self.num_actions = 0 if dynamics.actions is not None else dynamics.action_size

    def action_factors(self, actions: Tensor, members: slice = slice(None)) -> Tensor:
        """Return continuous actions (A, B) as `next_states` takes them, (m, A, B)."""
        return actions.expand(len(range(*members.indices(self.num_members))), -1, -1)

    def next_states(self, states: Tensor, actions: Tensor, members: slice = slice(None)) -> Tensor:
        """Return next states (m, D, B) of some particles; actions (B,) indices, or (m, A, B) from `action_factors`."""
        dynamics = self._dynamics
        if self.num_actions:
            one_hot = torch.nn.functional.one_hot(actions, self.num_actions).T.to(states.dtype)
            actions = one_hot.expand(len(states), -1, -1)
        inputs = [dynamics.features.of(states), actions]
        if self._contexts is not None:
            inputs.append(self._contexts[members])
        hidden = torch.cat(inputs, dim=1)
        if hidden.is_cuda:
            outputs = self._outputs_by_member(hidden, range(self.num_members)[members])
        else:
            for weight, bias in self._layers[:-1]:
                hidden = dynamics.activation(torch.baddbmm(bias[members], weight[members], hidden))
            weight, bias = self._layers[-1]
            outputs = torch.baddbmm(bias[members], weight[members], hidden)
        if dynamics.log_variance_bounds is not None:
            outputs, log_variance = outputs.chunk(2, dim=1)
            deviation = (0.5 * soft_clamp(log_variance, *dynamics.log_variance_bounds)).exp()
            noise = torch.randn(outputs.shape, generator=self._generator, device=outputs.device)
            outputs = outputs + deviation * noise
        targets = outputs * dynamics.targets.scale + dynamics.targets.mean
        return dynamics.features.base(states) + targets

    def _outputs_by_member(self, inputs: Tensor, particles: range) -> Tensor:
        """Return the outputs (m, O, B) for inputs (m, I, B) of some particles, as a GPU is quick at it.

        All particles of a member go through its layers as rows of one product, to which the GPU's library adds the
        bias in passing; that of a batch of products is written out first. Rows are as long as tensor cores want them.
        """
        linear, activation, each = torch.nn.functional.linear, self._dynamics.activation, self._particles_per_member
        rows = torch.nn.functional.pad(inputs.transpose(1, 2), (0, -inputs.shape[1] % _TENSOR_CORE_INPUTS))
        outputs = []
        for first in range(particles.start - particles.start % each, particles.stop, each):
            own = rows[max(first - particles.start, 0) : first + each - particles.start]
            *hidden_layers, last = self._by_member[first // each]
            hidden = own.flatten(0, 1)
            for weight, bias in hidden_layers:
                hidden = activation(linear(hidden, weight, bias))
            outputs.append(linear(hidden, *last).unflatten(0, own.shape[:2]))
        return torch.cat(outputs).transpose(1, 2)

    @cached_property
    def _by_member(self) -> list[list[tuple[Tensor, Tensor]]]:
        """Weights (O, I) and biases (O,) of each member's layers, the first one's inputs padded."""
        first = self._layers[0][0]
        padded = torch.nn.functional.pad(first, (0, -first.shape[2] % _TENSOR_CORE_INPUTS))
        layers = [(padded, self._layers[0][1]), *self._layers[1:]]
        members = range(0, self.num_members, self._particles_per_member)
        return [[(weight[member], bias[member, :, 0]) for weight, bias in layers] for member in members]
