"""One agent's folded members on the CPU by a kernel that numba compiles, where numba is installed (extra "fast").

Between the two matrix products of `persim_gym.blocks` the hidden units of a whole block travel to the second-level
cache and back, several times. Here they never leave the processor's registers, and only the outputs of the action taken
are computed: a step takes a fifth of the time. The first use in a process loads the compiled kernel, the first on a
machine compiles it, in some seconds. `tests/test_blocks.py` holds this, too, against the plain network.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from persim_gym.blocks import BlockNetwork
from persim_gym.folding import FoldedNetwork
from persim_gym.types import FloatArray, IntArray


class CompiledNetwork(BlockNetwork):
    """`BlockNetwork` with a compiled step."""

    def __init__(self, folded: FoldedNetwork, bounds: tuple[FloatArray, FloatArray] | None) -> None:
        from persim_gym import shallow_kernel

        super().__init__(folded, bounds)
        self._kernel, lanes = shallow_kernel.step_kernel(self.size), shallow_kernel.LANES
        # Units that are always zero fill the last register; the first layer's bias is one more row.
        units = self._hidden.shape[1] - 1
        padding = (0, -units % lanes)
        self._first = np.pad(self._hidden[:, :-1].transpose(0, 2, 1), ((0, 0), (0, 0), padding))
        heads = self._head.reshape(self.num_members, self._num_actions, self.size, -1)
        self._heads = np.pad(heads[..., :-1], ((0, 0), (0, 0), (0, 0), padding))
        self._biases = np.ascontiguousarray(heads[..., -1])
        limits = (np.full(self.size, -np.inf), np.full(self.size, np.inf)) if bounds is None else bounds
        self._low, self._high = (np.ascontiguousarray(limit, np.float32) for limit in limits)

    def next_states(self, states: FloatArray, actions: IntArray, stops: Sequence[int], first: int = 0) -> FloatArray:
        """Return the next states, columns (D + 1, n); arguments as `BlockNetwork.next_states` has them."""
        following = np.empty(states.shape, np.float32)
        following[-1] = 1.0
        self._kernel(
            self._first, self._heads, self._biases, np.ascontiguousarray(states),
            np.ascontiguousarray(actions, np.int64), np.asarray(stops, np.int64), first, self._low, self._high,
            following,
        )  # fmt: skip
        return following
