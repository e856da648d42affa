"""Folding: for a fixed agent the factorized model is an ordinary, smaller network.

u(agent), and for discrete actions every w(action) too, contract with the last layer of the state encoder, and the
normalization with the first and last layer; what is left is, for CartPole, a plain 4 → 256 → 2·4 network a member.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from persim_gym.model import Ensemble

Layers = list[tuple[np.ndarray, np.ndarray]]
"""Weights (M, outputs, inputs) and biases (M, outputs, 1)."""


@dataclass(frozen=True)
class FoldedNetwork:
    """All members of an ensemble for one agent: raw states in, raw changes out."""

    hidden: Layers
    """ReLU layers from the state (D)."""
    head: tuple[np.ndarray, np.ndarray]
    """Linear layer, to A·D outputs (action-major) for discrete actions, to D·r for continuous ones."""
    action: Layers
    """Encoder of continuous actions to r factors, linear last layer; empty for discrete actions."""
    change_mean: np.ndarray
    """(D,): to add where the head does not contain it, that is, for continuous actions."""
    num_actions: int
    """A for discrete actions, 0 for continuous ones."""


def fold(ensemble: Ensemble, agent: int) -> FoldedNetwork:
    """Return the network of one agent."""
    normalizer = ensemble.normalizer
    layers = [
        (np.asarray(weight, np.float64), np.asarray(bias, np.float64)) for weight, bias in ensemble.layers("state")
    ]
    first_weight, first_bias = layers[0]
    weight = first_weight / normalizer.state_scale
    layers[0] = (weight, first_bias - weight @ normalizer.state_mean[:, None])

    head_weight, head_bias = layers.pop()
    members, _, width = head_weight.shape
    size, rank = ensemble.task.observation_size, ensemble.config.rank
    agent_factors = ensemble.agent_factors([agent])[:, 0].astype(np.float64)
    scale = normalizer.change_scale[:, None] * agent_factors[:, None]  # (M, D, r)
    weight = head_weight.reshape(members, size, rank, width) * scale[..., None]
    bias = head_bias.reshape(members, size, rank) * scale
    if ensemble.task.discrete:
        action_factors = ensemble.action_factors().astype(np.float64)
        weight = np.einsum("mdlh,mal->madh", weight, action_factors)
        bias = np.einsum("mdl,mal->mad", bias, action_factors) + normalizer.change_mean
    action = [] if ensemble.task.discrete else ensemble.layers("action")
    return FoldedNetwork(
        hidden=_float32(layers),
        head=_float32([(weight.reshape(members, -1, width), bias.reshape(members, -1, 1))])[0],
        action=_float32(action),
        change_mean=normalizer.change_mean.astype(np.float32),
        num_actions=ensemble.task.action_size if ensemble.task.discrete else 0,
    )


def _float32(layers: Layers) -> Layers:
    return [
        (np.ascontiguousarray(weight, np.float32), np.ascontiguousarray(bias, np.float32)) for weight, bias in layers
    ]


class SingleStepper:
    """One state at a time, in a handful of NumPy calls: the members' hidden layers side by side."""

    def __init__(self, network: FoldedNetwork) -> None:
        self._discrete = network.num_actions > 0
        self._members = network.head[0].shape[0]
        first, *deeper = network.hidden
        self._first_weight = np.ascontiguousarray(first[0].reshape(-1, first[0].shape[2]).T)  # (D, M·h)
        self._first_bias = first[1].reshape(-1)
        self._deeper = [(weight, bias) for weight, bias in deeper]
        self._action = network.action
        self._change_mean = network.change_mean
        weight, bias = network.head
        if self._discrete and not deeper:
            self._heads = _block_heads(weight, bias, network.num_actions)
        else:
            self._heads = None
            self._head = (weight, bias)
            self._num_actions = network.num_actions

    def changes(self, state: np.ndarray, action: int | np.ndarray) -> np.ndarray:
        """Return every member's predicted change (M, D) float32 for a state (D,) and a checked action."""
        hidden = state.astype(np.float32) @ self._first_weight
        hidden += self._first_bias
        np.maximum(hidden, 0.0, out=hidden)
        if self._heads is not None:
            weight, bias = self._heads[action]
            return (hidden @ weight).reshape(bias.shape) + bias
        column = hidden.reshape(self._members, -1, 1)
        for weight, bias in self._deeper:
            column = np.maximum(weight @ column + bias, 0.0)
        outputs = self._head[0] @ column + self._head[1]
        if self._discrete:
            return outputs.reshape(self._members, self._num_actions, -1)[:, action]
        factors = np.broadcast_to(np.asarray(action, np.float32).reshape(1, -1, 1), (self._members, np.size(action), 1))
        for index, (weight, bias) in enumerate(self._action):
            factors = weight @ factors + bias
            if index < len(self._action) - 1:
                factors = np.maximum(factors, 0.0)
        return (outputs.reshape(self._members, -1, factors.shape[1]) @ factors)[..., 0] + self._change_mean


def _block_heads(weight: np.ndarray, bias: np.ndarray, num_actions: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return, for each action, one matrix (M·h, M·D) with the members' heads on its diagonal, and biases (M, D)."""
    members, outputs, width = weight.shape
    size = outputs // num_actions
    heads = []
    for action in range(num_actions):
        rows = slice(action * size, (action + 1) * size)
        block = np.zeros((members, width, members, size), np.float32)
        for member in range(members):
            block[member, :, member] = weight[member, rows].T
        heads.append((block.reshape(members * width, members * size), bias[:, rows, 0].copy()))
    return heads
