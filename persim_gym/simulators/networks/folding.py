"""Folding: for a fixed agent the factorized model is an ordinary, smaller network.

u(agent), and for discrete actions every w(action) too, contract with the last layer of the state encoder, and the
normalization with the first and last layer; what is left is, for CartPole, a plain 4 → 256 → 2·4 network a member.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from persim_gym.model.ensemble import Ensemble
from persim_gym.model.parameters import SKIP

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


def fold(ensemble: Ensemble, agent: int, factors: np.ndarray | None = None) -> FoldedNetwork:
    """Return the network of one agent, with its own factors or with others (M, r)."""
    normalizer = ensemble.normalizer
    layers = [
        (np.asarray(weight, np.float64), np.asarray(bias, np.float64)) for weight, bias in ensemble.layers("state")
    ]
    if SKIP in ensemble.parameters:
        layers = _with_skip(layers, np.asarray(ensemble.parameters[SKIP], np.float64))
    first_weight, first_bias = layers[0]
    weight = first_weight / normalizer.state_scale
    layers[0] = (weight, first_bias - np.einsum("mhd,d->mh", weight, normalizer.state_mean)[..., None])

    head_weight, head_bias = layers.pop()
    members, _, width = head_weight.shape
    size, rank = ensemble.task.observation_size, ensemble.config.rank
    own = ensemble.agent_factors([agent])[:, 0] if factors is None else factors
    agent_factors = own.astype(np.float64)
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


def _with_skip(layers: Layers, skip: np.ndarray) -> Layers:
    """Return ReLU layers that contain a linear path (M, outputs, D): s = relu(s) − relu(−s), which each passes on."""
    members, _, size = skip.shape
    *hidden, (head, head_bias) = layers
    wider = []
    for index, (weight, bias) in enumerate(hidden):
        rows, columns = weight.shape[1:]
        passing = np.eye(2 * size) if index else np.concatenate([np.eye(size), -np.eye(size)])
        extended = np.zeros((members, rows + 2 * size, columns + (2 * size if index else 0)))
        extended[:, :rows, :columns] = weight
        extended[:, rows:, -passing.shape[1] :] = passing
        wider.append((extended, np.concatenate([bias, np.zeros((members, 2 * size, 1))], axis=1)))
    return [*wider, (np.concatenate([head, skip, -skip], axis=2), head_bias)]


def _float32(layers: Layers) -> Layers:
    return [
        (np.ascontiguousarray(weight, np.float32), np.ascontiguousarray(bias, np.float32)) for weight, bias in layers
    ]
