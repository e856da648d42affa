"""One agent's folded members on the CPU by a kernel that numba compiles, where numba is installed (extra "fast").

Between the two matrix products of `persim_gym.blocks` the hidden units of a whole block travel to the second-level
cache and back, several times. Here those of four states stay in the first, and only the outputs of the action taken are
computed: a step takes half the time or less. The first use in a process loads the compiled kernel, the first on a
machine compiles it, in some seconds. `tests/test_blocks.py` holds this, too, against the plain network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from persim_gym.blocks import BlockNetwork
from persim_gym.folding import FoldedNetwork
from persim_gym.jit import compile_for
from persim_gym.types import FloatArray, IntArray

_STATES_AT_ONCE = 4
_ZERO = np.float32(0)


class CompiledNetwork(BlockNetwork):
    """`BlockNetwork` with a compiled step."""

    def __init__(self, folded: FoldedNetwork, bounds: tuple[FloatArray, FloatArray] | None) -> None:
        super().__init__(folded, bounds)
        self._kernel = _kernel(self.size)
        # The bias is one more row of the first layer, and one more column of the second.
        self._first = np.ascontiguousarray(self._hidden[:, :-1].transpose(0, 2, 1))
        self._heads = self._head.reshape(self.num_members, self._num_actions, self.size, -1)
        limits = (np.full(self.size, -np.inf), np.full(self.size, np.inf)) if bounds is None else bounds
        self._low, self._high = (np.ascontiguousarray(limit, np.float32) for limit in limits)

    def next_states(self, states: FloatArray, actions: IntArray, stops: Sequence[int], first: int = 0) -> FloatArray:
        """Return the next states, columns (D + 1, n); arguments as `BlockNetwork.next_states` has them."""
        following = np.empty(states.shape, np.float32)
        following[-1] = 1.0
        self._kernel(
            self._first, self._heads, np.ascontiguousarray(states), np.ascontiguousarray(actions, np.int64),
            np.asarray(stops, np.int64), first, self._low, self._high, following,
        )  # fmt: skip
        return following


@cache
def _kernel(size: int) -> Callable[..., None]:
    """Return the compiled step for states of so many coordinates; loops over them are unrolled."""
    import numba

    def step(
        layers: Any, heads: Any, states: Any, actions: Any, stops: Any, member: int, low: Any, high: Any, following: Any
    ) -> None:
        width = layers.shape[2]
        hidden = np.empty((_STATES_AT_ONCE, width), np.float32)
        left = 0
        for stop in stops:
            layer = layers[member]
            for start in range(left, stop, _STATES_AT_ONCE):
                count = min(_STATES_AT_ONCE, stop - start)
                # Four states share what is loaded of the layer; where fewer are left, the last is computed again.
                a, b, c, d = start, start + min(1, count - 1), start + min(2, count - 1), start + count - 1
                for unit in range(width):
                    bias = layer[size, unit]
                    at_a, at_b, at_c, at_d = bias, bias, bias, bias
                    for coordinate in range(size):
                        weight = layer[coordinate, unit]
                        at_a += weight * states[coordinate, a]
                        at_b += weight * states[coordinate, b]
                        at_c += weight * states[coordinate, c]
                        at_d += weight * states[coordinate, d]
                    # What is not a number is not below zero either, and stays.
                    hidden[0, unit] = _ZERO if at_a < _ZERO else at_a
                    hidden[1, unit] = _ZERO if at_b < _ZERO else at_b
                    hidden[2, unit] = _ZERO if at_c < _ZERO else at_c
                    hidden[3, unit] = _ZERO if at_d < _ZERO else at_d
                for place in range(count):
                    column = start + place
                    units, head = hidden[place], heads[member, actions[column]]
                    for coordinate in range(size):
                        weights, change = head[coordinate], _ZERO
                        for unit in range(width):
                            change += weights[unit] * units[unit]
                        value = states[coordinate, column] + (change + weights[width])
                        value = low[coordinate] if value < low[coordinate] else value
                        following[coordinate, column] = high[coordinate] if value > high[coordinate] else value
            left, member = stop, member + 1

    floats, indices = numba.float32, numba.int64
    signature = numba.void(
        floats[:, :, ::1], floats[:, :, :, ::1], floats[:, ::1], indices[::1], indices[::1], indices,
        floats[::1], floats[::1], floats[:, ::1],
    )  # fmt: skip
    return compile_for(signature, step)
