"""Steps of one state at a time: of every member, or of their mean at once.

Where numba is installed (extra "fast"), a compiled kernel takes the mean's steps in half the time.
`tests/test_simulator.py` holds all of them against the plain network.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isfinite
from typing import Any

import numpy as np

from persim_gym.simulators.networks.folding import FoldedNetwork
from persim_gym.simulators.networks.kernels import jit
from persim_gym.simulators.networks.shallow_compiled import laid_out

_ZERO = np.float32(0)


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


def mean_stepper(network: FoldedNetwork) -> MeanStepper | CompiledMeanStepper:
    """Return what steps one state at a time, for a network that `MeanStepper` fits."""
    return CompiledMeanStepper(network) if jit.available() else MeanStepper(network)


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


class CompiledMeanStepper:
    """`MeanStepper` by a compiled kernel. It serves one caller at a time."""

    limit = float(np.finfo(np.float32).max)
    """States of coordinates within ± this warn of nothing."""

    def __init__(self, network: FoldedNetwork) -> None:
        from persim_gym.simulators.networks.kernels.shallow import LANES, mean_kernel

        layers, heads, biases = laid_out(network, LANES)
        # In one array, for each that is handed over costs a tenth of a step.
        self._weights = np.concatenate([layers.reshape(-1), heads.reshape(-1), biases.reshape(-1)])
        self._shape = heads.shape[0], heads.shape[1], heads.shape[3]
        self.size = heads.shape[2]
        self._kernel = mean_kernel(self.size)
        self._state = np.empty(self.size, np.float32)

    def __call__(self, state: np.ndarray, action: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean next state (D,) float32 and the members' deviation (D,)."""
        self._state[...] = state
        outputs = np.empty(2 * self.size, np.float32)
        self._kernel(self._weights, *self._shape, self._state, action, outputs)
        return outputs[: self.size], outputs[self.size :]

    def guarded(self, state: np.ndarray, action: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the same for any state, without a warning."""
        with np.errstate(over="ignore", invalid="ignore"):
            return self(state, action)
