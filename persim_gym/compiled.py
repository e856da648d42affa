"""One agent's folded members on the CPU by kernels that numba compiles, where numba is installed (extra "fast").

Between the two matrix products of `persim_gym.blocks` the hidden units of a whole block travel to the second-level
cache and back, several times. Here they never leave the processor's registers, and only the outputs of the action taken
are computed: a step of many states takes a third of the time, one of a single state half of `MeanStepper`'s. The first
use in a process loads the compiled kernels, the first on a machine compiles them, in some seconds.
`tests/test_blocks.py` and `tests/test_simulator.py` hold them, too, against the plain network.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from persim_gym import jit
from persim_gym.blocks import BlockNetwork
from persim_gym.folding import FoldedNetwork, MeanStepper
from persim_gym.types import FloatArray, IntArray


class CompiledNetwork(BlockNetwork):
    """`BlockNetwork` with a compiled step."""

    def __init__(self, folded: FoldedNetwork, bounds: tuple[FloatArray, FloatArray] | None) -> None:
        from persim_gym import shallow_kernel

        super().__init__(folded, bounds)
        self._kernel = shallow_kernel.step_kernel(self.size)
        self._first, self._heads, self._biases = _laid_out(folded, shallow_kernel.LANES)
        limits = (np.full(self.size, -np.inf), np.full(self.size, np.inf)) if bounds is None else bounds
        self._low, self._high = (np.ascontiguousarray(limit, np.float32) for limit in limits)

    def next_states(self, states: FloatArray, actions: IntArray, stops: Sequence[int], first: int = 0) -> FloatArray:
        """Return the next states; arguments as `ColumnNetwork.next_states` has them."""
        following = np.empty(states.shape, np.float32)
        following[-1] = 1.0
        self._kernel(
            self._first, self._heads, self._biases, np.ascontiguousarray(states),
            np.ascontiguousarray(actions, np.int64), np.asarray(stops, np.int64), first, self._low, self._high,
            following,
        )  # fmt: skip
        return following


def mean_stepper(network: FoldedNetwork) -> MeanStepper | CompiledStepper:
    """Return what steps one state at a time, for a network that `MeanStepper` fits."""
    return CompiledStepper(network) if jit.available() else MeanStepper(network)


class CompiledStepper:
    """`MeanStepper` by a compiled kernel. It serves one caller at a time."""

    limit = float(np.finfo(np.float32).max)
    """States of coordinates within ± this warn of nothing."""

    def __init__(self, network: FoldedNetwork) -> None:
        from persim_gym import shallow_kernel

        layers, heads, biases = _laid_out(network, shallow_kernel.LANES)
        # In one array, for each that is handed over costs a tenth of a step.
        self._weights = np.concatenate([layers.reshape(-1), heads.reshape(-1), biases.reshape(-1)])
        self._shape = heads.shape[0], heads.shape[1], heads.shape[3]
        self.size = heads.shape[2]
        self._kernel = shallow_kernel.mean_kernel(self.size)
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


def _laid_out(folded: FoldedNetwork, lanes: int) -> tuple[FloatArray, FloatArray, FloatArray]:
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
