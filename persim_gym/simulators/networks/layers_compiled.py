"""ReLU layers on the CPU by a kernel that numba compiles, where numba is installed (extra "fast").

A dense matrix product multiplies the zeros of ReLU units, too: a third to a half of all, and where neighbouring states
are alike, as a planner's candidates are, mostly those of the same units. Here a few states at a time go through a layer
together, and units that are zero in all of them are left out of the next layer's sums. Planning for HalfCheetah takes
two thirds of the time. `tests/test_layers.py` holds this against torch's products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from persim_gym.simulators.networks.kernels import jit
from persim_gym.simulators.networks.layers import weighted_sums
from persim_gym.threads import run_in_threads

if TYPE_CHECKING:
    from persim_gym.simulators.networks.kernels.tiles import Tile

_WORTH_A_THREAD = 256  # states
_NO_FACTORS = np.empty((0, 0, 0), np.float32)
_FEW_INPUTS = 8  # whose signs say much of which units are zero: of six, sorted, a fifth more are


class CompiledMemberLayers:
    """Linear layers of every member with ReLU between them."""

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]], tile: Tile | None = None) -> None:
        """Lay weights (M, outputs, inputs) and biases (M, outputs, 1) out for the kernel."""
        from persim_gym.simulators.networks.kernels.layers import layers_kernel
        from persim_gym.simulators.networks.kernels.tiles import best_tile

        self._tile = best_tile() if tile is None else tile
        self._kernel = layers_kernel(self._tile)
        panel = self._tile.columns
        self._sizes = np.array([layers[0][0].shape[2], *(weight.shape[1] for weight, _ in layers)])
        self._padded = -(-self._sizes // panel) * panel
        packed = [_packed(weight, bias, panel) for weight, bias in layers]
        # Torch's memory begins at a cache line, so that no vector of weights lies in two: 1.4 times as fast.
        self._weights = torch.cat([weights for weights, _ in packed], 1).numpy()
        self._biases = torch.cat([biases for _, biases in packed], 1).numpy()

    @staticmethod
    def fits(layers: Sequence[tuple[Tensor, Tensor]]) -> bool:
        """Whether numba is there, the layers are deep and on the CPU, and nothing in them turns zeros into NaN."""
        tensors = [tensor for layer in layers for tensor in layer]
        deep = len(layers) > 2 and tensors[0].device.type == "cpu" and jit.available()
        return deep and all(bool(tensor.isfinite().all()) for tensor in tensors)

    def __call__(self, inputs: Tensor, members: slice) -> Tensor:
        """Return the linear outputs (m, O, B) of some members for inputs (m, I, B)."""
        batch = inputs.shape[2]
        order = _alike_together(inputs[0].numpy())
        rows = self._rows(inputs, order)
        outputs = np.empty((*rows.shape[:2], self._padded[-1]), np.float32)
        self._compute(rows, members, outputs, _NO_FACTORS, _NO_FACTORS)
        found = outputs[:, :batch, : self._sizes[-1]]
        if isinstance(order, np.ndarray):
            found, outputs = np.empty_like(found), found
            found[:, order] = outputs
        return torch.from_numpy(found).transpose(1, 2)

    def weighted(self, inputs: Tensor, factors: Tensor, members: slice) -> Tensor:
        """Return Σ_l factors[:, l]·outputs[:, d, l] (m, D, B) for inputs (m, I, B) and factors (m, r, B), O = D·r.

        One input (m, I, 1) is for all factors.
        """
        count, rank, batch = factors.shape
        if inputs.shape[2] < batch:
            return weighted_sums(self(inputs, members), factors)
        rows = self._rows(inputs, slice(None))
        sums = np.empty((count, batch, self._sizes[-1] // rank), np.float32)
        self._compute(rows, members, _NO_FACTORS, factors.transpose(1, 2).numpy(), sums)
        return torch.from_numpy(sums).transpose(1, 2)

    def _rows(self, inputs: Tensor, order: np.ndarray | slice) -> np.ndarray:
        """Return inputs (m, I, B) as (m, B + padding, I)."""
        count, size, batch = inputs.shape
        rows = np.zeros((count, -(-batch // self._tile.rows) * self._tile.rows, size), np.float32)
        rows[:, :batch] = inputs.transpose(1, 2).numpy()[:, order]
        return rows

    def _compute(
        self, rows: np.ndarray, members: slice, outputs: np.ndarray, factors: np.ndarray, sums: np.ndarray
    ) -> None:
        """Fill the outputs (m, B + padding, O + padding), or, where there are factors (m, B, r), the sums (m, B, D)."""
        first, last, _ = members.indices(len(self._weights))
        weights, biases = self._weights[first:last], self._biases[first:last]

        def compute(part: slice) -> None:
            start, stop = part.start * self._tile.rows, part.stop * self._tile.rows
            self._kernel(weights, biases, self._sizes, self._padded, rows, outputs, factors, sums, start, stop)

        tiles, threads = rows.shape[1] // self._tile.rows, torch.get_num_threads()
        pieces = min(threads, -(-rows.shape[1] // _WORTH_A_THREAD))
        stops = [tiles * piece // pieces for piece in range(pieces + 1)]
        if pieces == 1:
            compute(slice(0, tiles))
        else:
            run_in_threads(compute, [slice(*pair) for pair in zip(stops[:-1], stops[1:], strict=True)], threads)


def _alike_together(inputs: np.ndarray) -> np.ndarray | slice:
    """Return an order of the columns of a few inputs (I, B) in which neighbours lie in the same part of space.

    That is in the same orthant about the mean first, and then in the same half of it along every axis.
    """
    if len(inputs) > _FEW_INPUTS:
        return slice(None)
    with np.errstate(invalid="ignore", over="ignore"):  # a model that diverges
        centred = inputs - inputs.mean(axis=1, keepdims=True)
        size = np.abs(centred)
    signs, halves = (np.packbits(bits, axis=0)[0] for bits in (centred > 0, size > size.mean(axis=1, keepdims=True)))
    return np.argsort(signs.astype(np.uint16) << 8 | halves, kind="stable")


def _packed(weight: Tensor, bias: Tensor, panel: int) -> tuple[Tensor, Tensor]:
    """Return weights (M, ·), so many outputs after the other, each block input-major, and biases (M, outputs)."""
    members, outputs, inputs = weight.shape
    missing = -outputs % panel
    blocks = pad(weight, (0, 0, 0, missing)).view(members, -1, panel, inputs).transpose(2, 3)
    return blocks.reshape(members, -1), pad(bias[..., 0], (0, missing))
