"""One agent's members of one hidden layer on the CPU, in blocks of states small enough to stay in the cache.

For such a network the products are so thin that a general matrix kernel spends its time elsewhere.
NumPy's BLAS (OpenBLAS) has kernels for small products and costs a third of a torch operation to call, which here makes
it two to three times as fast as torch's default; only the ReLU is torch's, which is eight times as fast as NumPy's.
`tests/test_shallow.py` holds this against the plain network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from persim_gym.simulators.networks.folding import FoldedNetwork
from persim_gym.simulators.networks.interfaces import CpuNetwork
from persim_gym.types import FloatArray, IntArray

BLOCK = 256
"""States at a time: 256 hidden units of 256 states are 256 KiB, a quarter of a usual second-level cache."""


class ShallowNetwork(CpuNetwork):
    """The members, folded, with one hidden layer."""

    def __init__(self, folded: FoldedNetwork, bounds: tuple[FloatArray, FloatArray] | None) -> None:
        """Lay the weights out.

        Args:
            folded: a network that `fits`.
            bounds: (D,) lower and upper bounds that states are kept within, or None.

        """
        ((weight, bias),) = folded.hidden
        members, width, self.size = weight.shape
        # One more hidden unit is always 1, so that the head's bias is a column of its weights.
        hidden = np.zeros((members, width + 1, self.size + 1), np.float32)
        hidden[:, :width, :-1], hidden[:, :width, -1:], hidden[:, width, -1] = weight, bias, 1.0
        self._hidden = hidden
        self._head = np.ascontiguousarray(np.concatenate(folded.head, axis=2))
        self._num_actions, self.num_members = folded.num_actions, members
        self._bounds = None if bounds is None else tuple(bound.astype(np.float32)[:, None] for bound in bounds)

    def next_states(self, states: FloatArray, actions: IntArray, stops: Sequence[int], first: int = 0) -> FloatArray:
        """Return the next states; arguments as `CpuNetwork.next_states` has them."""
        outputs = np.empty((len(self._head[0]), states.shape[1]), np.float32)
        buffer = np.empty(self._hidden.shape[1] * BLOCK, np.float32)  # of this call: several threads may be here
        tensor = torch.from_numpy(buffer)
        for member, left, right in _pieces(stops, first):
            size = self._hidden.shape[1] * (right - left)
            hidden = buffer[:size].reshape(-1, right - left)
            np.dot(self._hidden[member], states[:, left:right], out=hidden)
            tensor[:size].relu_()
            outputs[:, left:right] = np.dot(self._head[member], hidden)
        by_action = outputs.reshape(self._num_actions, self.size, -1)
        change = by_action[0]
        for action in range(1, self._num_actions):
            change = np.where(actions == action, by_action[action], change)
        following = np.empty_like(states)
        np.add(states[:-1], change, out=following[:-1])
        if self._bounds is not None:
            torch.from_numpy(following[:-1]).clamp_(*map(torch.from_numpy, self._bounds))
        following[-1] = 1.0
        return following


def _pieces(stops: Sequence[int], member: int) -> Iterator[tuple[int, int, int]]:
    """Yield member, first and last column of each block."""
    left = 0
    for stop in stops:
        for start in range(left, stop, BLOCK):
            yield member, start, min(start + BLOCK, stop)
        left, member = stop, member + 1
