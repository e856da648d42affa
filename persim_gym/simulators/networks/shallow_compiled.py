"""One agent's folded members on the CPU by a kernel that numba compiles, where numba is installed (extra "fast").

Between the two matrix products of `shallow` the hidden units of a whole block travel to the
second-level cache and back, several times. Here they never leave the processor's registers, and only the outputs of the
action taken are computed: a step of many states takes a third of the time. The first use in a process loads the
compiled kernel, the first on a machine compiles it, in some seconds. `tests/test_shallow.py` holds it, too, against the
plain network.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from persim_gym.simulators.networks.folding import FoldedNetwork
from persim_gym.simulators.networks.shallow import ShallowNetwork
from persim_gym.types import FloatArray, IntArray


class CompiledShallowNetwork(ShallowNetwork):
    """`ShallowNetwork` with a compiled step."""

    def __init__(self, folded: FoldedNetwork, bounds: tuple[FloatArray, FloatArray] | None) -> None:
        from persim_gym.simulators.networks.kernels.shallow import LANES, step_kernel

        super().__init__(folded, bounds)
        self._kernel = step_kernel(self.size)
        self._first, self._heads, self._biases = laid_out(folded, LANES)
        limits = (np.full(self.size, -np.inf), np.full(self.size, np.inf)) if bounds is None else bounds
        self._low, self._high = (np.ascontiguousarray(limit, np.float32) for limit in limits)

    def next_states(self, states: FloatArray, actions: IntArray, stops: Sequence[int], first: int = 0) -> FloatArray:
        """Return the next states; arguments as `CpuNetwork.next_states` has them."""
        following = np.empty(states.shape, np.float32)
        following[-1] = 1.0
        self._kernel(
            self._first, self._heads, self._biases, np.ascontiguousarray(states),
            np.ascontiguousarray(actions, np.int64), np.asarray(stops, np.int64), first, self._low, self._high,
            following,
        )  # fmt: skip
        return following


def laid_out(folded: FoldedNetwork, lanes: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return layers (M, D + 1, W), whose last row is the bias, heads (M, A, D, W) and their biases (M, A, D).

    Units that are always zero make W a multiple of ``lanes``.
    """
    ((weight, bias),) = folded.hidden
    padding = (0, -weight.shape[1] % lanes)
    layers = np.concatenate([weight, bias], axis=2).transpose(0, 2, 1)
    head, head_bias = folded.head
    heads = head.reshape(len(head), folded.num_actions, -1, head.shape[2])
    return (
        np.ascontiguousarray(np.pad(layers, ((0, 0), (0, 0), padding))),
        np.ascontiguousarray(np.pad(heads, ((0, 0), (0, 0), (0, 0), padding))),
        np.ascontiguousarray(head_bias.reshape(heads.shape[:3])),
    )
