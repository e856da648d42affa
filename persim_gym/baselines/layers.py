"""What the baselines' own networks share: layers of all members, what they see of states and actions, scaling.

Everything is feature-major, (M, features, B), as in `persim_gym.model.factorization`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from persim_gym.model.factorization import initialize_layer, num_layers
from persim_gym.model.normalizer import varies
from persim_gym.model.parameters import layer_shapes
from persim_gym.tasks import Task
from persim_gym.tasks.action_bounds import scale_actions

Activation = Callable[[Tensor], Tensor]


def mlp(
    parameters: Mapping[str, Tensor],
    name: str,
    inputs: Tensor,
    activation: Activation,
    hidden_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return the linear outputs (M, O, B) of a network of all members for inputs (M, I, B).

    Hidden units and the products between hidden layers are of ``hidden_dtype``, those of the first and the last layer,
    which are small and decide how exact inputs and outputs are, always float32.
    """
    last = num_layers(parameters, name) - 1
    for index in range(last + 1):
        weight, bias = parameters[f"{name}.{index}.weight"], parameters[f"{name}.{index}.bias"]
        dtype = hidden_dtype if 0 < index < last else torch.float32
        inputs = torch.baddbmm(bias.to(dtype), weight.to(dtype), inputs.to(dtype))
        if index < last:
            inputs = activation(inputs.to(hidden_dtype))
    return inputs


def initial_layers(
    name: str, members: int, sizes: Sequence[int], generator: torch.Generator, device: torch.device
) -> dict[str, Tensor]:
    """Return a network's weights (M, outputs, inputs) and biases (M, outputs, 1), drawn as torch does."""
    return {
        key: initialize_layer(torch.empty(shape, device=device), fan_in, generator)
        for key, (shape, fan_in) in layer_shapes(name, members, sizes).items()
    }


def one_hot(actions: Tensor, count: int) -> Tensor:
    """Return indices (B,) of discrete actions as columns (A, B) of a one and zeros."""
    return torch.nn.functional.one_hot(actions, count).T.float()


def action_features(task: Task, actions: np.ndarray) -> Tensor:
    """Return actions (B,) or (B, A) as inputs (A, B): one-hot if discrete, else from −1 to 1 over the action space."""
    if task.discrete:
        return one_hot(torch.tensor(np.asarray(actions, np.int64)), task.action_size)
    return torch.tensor(scale_actions(actions, *task.action_bounds).T)


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
        """Return mean and deviation over the columns of values (size, T); a row that does not vary keeps scale 1."""
        values, rows = values.double(), values.double().cpu().numpy().T
        differ = torch.as_tensor(varies(rows), device=values.device)[:, None]
        deviation = values.std(dim=1, keepdim=True, unbiased=False)
        scale = torch.where(differ, deviation, torch.ones_like(deviation))
        return cls(values.mean(dim=1, keepdim=True).float(), scale.float())

    def __call__(self, values: Tensor) -> Tensor:
        """Standardize values (…, size, B)."""
        return (values - self.mean) / self.scale
