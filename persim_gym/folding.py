"""Folding: for a fixed agent the factorized model is an ordinary, smaller network.

u(agent), and for discrete actions every w(action) too, contract with the last layer of the state encoder, and the
normalization with the first and last layer; what is left is, for CartPole, a plain 4 → 256 → 2·4 network a member.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np

from persim_gym.model import Ensemble
from persim_gym.parameters import SKIP

Layers = list[tuple[np.ndarray, np.ndarray]]
"""Weights (M, outputs, inputs) and biases (M, outputs, 1)."""
_ZERO = np.float32(0)


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


class MeanStepper:
    """Mean next state of one state at a time, and the members' disagreement, in seven NumPy calls.

    For members of one hidden layer in a task of discrete actions. The members' mean is linear in their hidden units,
    and so are their deviations from it; these sum to zero, so M − 1 numbers a coordinate have their sum of squares
    (`_contrasts`). One matrix an action gives them all. A stepper serves one caller at a time.
    """

    def __init__(self, network: FoldedNetwork) -> None:
        """Lay the weights of a network that `fits` out."""
        ((weight, bias),) = network.hidden
        members, width, size = weight.shape
        # The last input and the last hidden unit are 1 and meet the biases; those before pass the state on.
        first = np.zeros((size + 1, members * width + 2 * size + 1), np.float32)
        first[:size, : members * width] = weight.reshape(-1, size).T
        first[size, : members * width] = bias.reshape(-1)
        first[:size, members * width : -1] = np.concatenate([np.eye(size), -np.eye(size)], axis=1)
        first[size, -1] = 1.0
        # Members with a linear path beside their hidden layer have units in common, with each other and with those.
        first, places = np.unique(first, axis=1, return_inverse=True)
        self._first = np.ascontiguousarray(first)
        self._input = np.ones(size + 1, np.float32)
        self._hidden = np.empty(first.shape[1], np.float32)
        self._zeros = np.zeros(first.shape[1], np.float32)
        self._heads = [
            _sum_columns(_mean_head(network, action), places.reshape(-1), first.shape[1])
            for action in range(network.num_actions)
        ]
        self._mean_squares = np.zeros((members * size, size), np.float32)
        self._mean_squares[size:] = np.tile(np.eye(size) / members, (members - 1, 1))
        self.size = size
        self._state = self._input[:-1]
        largest = np.abs(first).sum(axis=0).max() * max(np.abs(head).sum(axis=1).max() for head in self._heads)
        self.limit = 1e15 / max(largest, 1.0) if isfinite(largest) else 0.0
        """States of coordinates within ± this do not overflow float32 anywhere."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Become a copy, by pickle or deepcopy, in which the state is again a part of the input."""
        self.__dict__.update(state)
        self._state = self._input[:-1]

    @staticmethod
    def fits(network: FoldedNetwork) -> bool:
        """Whether the network has one hidden layer and discrete actions."""
        return len(network.hidden) == 1 and network.num_actions > 0

    def __call__(self, state: np.ndarray, action: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean next state (D,) float32 and the members' deviation (D,).

        Where the state is beyond ``limit``, use `guarded`.
        """
        hidden = self._hidden
        self._state[...] = state
        np.dot(self._input, self._first, out=hidden)
        np.maximum(hidden, self._zeros, out=hidden)
        outputs = np.dot(self._heads[action], hidden)
        return outputs[: self.size], np.sqrt(np.dot(outputs * outputs, self._mean_squares))

    def guarded(self, state: np.ndarray, action: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the same for any state, without a warning where the model diverges; a microsecond slower."""
        with np.errstate(over="ignore", invalid="ignore"):
            return self(state, action)


def _mean_head(network: FoldedNetwork, action: int) -> np.ndarray:
    """Return the matrix (M·D, M·h + 2·D + 1) from hidden units to the mean next state and the contrasts."""
    weight, bias = network.head
    members, outputs, width = weight.shape
    size = outputs // network.num_actions
    rows = slice(action * size, (action + 1) * size)
    mixing = np.concatenate([np.full((1, members), 1 / members), _contrasts(members)])
    head = np.zeros((members, size, members * width + 2 * size + 1))
    by_member = np.einsum("km,mdh->kdmh", mixing, weight[:, rows].astype(np.float64))
    head[:, :, : members * width] = by_member.reshape(members, size, -1)
    with np.errstate(invalid="ignore"):  # a model that is not finite
        head[:, :, -1] = mixing @ bias[:, rows, 0]
    head[0, :, members * width : -1] = np.concatenate([np.eye(size), -np.eye(size)], axis=1)
    return head.reshape(members * size, -1)


def _sum_columns(head: np.ndarray, places: np.ndarray, count: int) -> np.ndarray:
    """Return ``count`` columns, each the sum of the columns of ``head`` that have its number in ``places``."""
    summed = np.zeros((count, len(head)))
    with np.errstate(invalid="ignore"):  # a model that is not finite
        np.add.at(summed, places, head.T)
    return np.ascontiguousarray(summed.T, np.float32)


def _contrasts(members: int) -> np.ndarray:
    """Return orthonormal rows (M − 1, M) that are orthogonal to the mean (Helmert's)."""
    rows = [np.r_[np.ones(k), -k, np.zeros(members - k - 1)] / np.sqrt(k * (k + 1)) for k in range(1, members)]
    return np.array(rows).reshape(members - 1, members)


class SingleStepper:
    """One state at a time, in a handful of NumPy calls on buffers made once.

    `np.dot`, not ``@``: it costs half as much to call, and does not look at the floating-point flags, which some
    matrix kernels raise over finite numbers. A stepper serves one caller at a time.
    """

    def __init__(self, network: FoldedNetwork) -> None:
        self._members = network.head[0].shape[0]
        self._num_actions = network.num_actions
        self._change_mean = network.change_mean
        first, *deeper = network.hidden
        size = first[0].shape[2]
        # All members' first layers side by side; the last row is the bias, which meets the 1 at the state's end.
        self._first = np.concatenate([first[0].reshape(-1, size), first[1].reshape(-1, 1)], axis=1).T.copy()
        self._input = np.ones(size + 1, np.float32)
        self._hidden = np.empty(self._first.shape[1], np.float32)
        self._heads = None if deeper or not self._num_actions else _block_heads(*network.head, self._num_actions)
        self._rest = [_Layer(*layer) for layer in deeper] + [_Layer(*network.head)]
        self._action = [_Layer(*layer) for layer in network.action]

    def changes(self, state: np.ndarray, action: int | np.ndarray) -> np.ndarray:
        """Return every member's predicted change (M, D) float32 for a state (D,) and a checked action."""
        hidden = self._hidden
        self._input[:-1] = state
        np.dot(self._input, self._first, out=hidden)
        np.maximum(hidden, _ZERO, out=hidden)
        if self._heads is not None:
            weight, bias = self._heads[action]
            return np.dot(hidden, weight).reshape(bias.shape) + bias
        outputs = _forward(self._rest, hidden.reshape(self._members, -1))
        if self._num_actions:
            return outputs.reshape(self._members, self._num_actions, -1)[:, action].copy()
        inputs = np.asarray(action, np.float32).reshape(-1)
        factors = _forward(self._action, [inputs] * self._members)
        by_coordinate = outputs.reshape(self._members, -1, factors.shape[1])
        return np.einsum("mdr,mr->md", by_coordinate, factors) + self._change_mean


class _Layer:
    """A linear layer of every member, and a buffer for its outputs (M, outputs)."""

    def __init__(self, weight: np.ndarray, bias: np.ndarray) -> None:
        self.weight, self.bias = weight, bias[..., 0].copy()
        self.outputs = np.empty(self.bias.shape, np.float32)

    def __call__(self, inputs: Iterable[np.ndarray]) -> np.ndarray:
        """Apply to the members' inputs, a vector each."""
        for weight, vector, output in zip(self.weight, inputs, self.outputs, strict=True):
            np.dot(weight, vector, out=output)
        self.outputs += self.bias
        return self.outputs


def _forward(layers: Sequence[_Layer], inputs: Iterable[np.ndarray]) -> np.ndarray:
    """Apply layers with ReLU between them."""
    *hidden, last = layers
    for layer in hidden:
        inputs = layer(inputs)
        np.maximum(inputs, _ZERO, out=inputs)
    return last(inputs)


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
