"""The kernel of `persim_gym.simulators.networks.layers_compiled`: layers with ReLU between them.

A tile of outputs of a few states is summed over the inputs that are not zero in all of them. A unit's sum keeps its
place in a register from the first term to the last (`persim_gym.simulators.networks.kernels.tiles`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from persim_gym.simulators.networks.kernels.jit import SOURCES, compile_for, fast
from persim_gym.simulators.networks.kernels.tiles import INDEX, Tile, TileWriter, literal_tile

STATES_AT_ONCE = 256
"""Go through one layer after the other: what stays in the second-level cache."""


@cache
def layers_kernel(tile: Tile) -> Callable[..., None]:
    """Return the compiled layers.

    They take weights (M, ·) and biases (M, ·), every layer's as `CompiledMemberLayers` packs them; the sizes of
    inputs and layers, and the same with padding; rows (M, B, I), B a multiple of the tile's states; outputs (M, B, O
    with padding) to fill, or factors (M, b, r) and sums (M, b, D) to fill with Σ_l factors[:, :, l]·outputs[:, :, d, l]
    of the first b rows; and which rows to begin and to end with, multiples of the tile's states.
    """
    # Integers: what was compiled for them is found again by their values.
    lanes, vectors, states, sources = tile.lanes, tile.vectors, tile.rows, SOURCES

    def layers(
        weights: Any, biases: Any, sizes: Any, padded: Any, rows: Any, outputs: Any, factors: Any, sums: Any,
        start: int, stop: int,
    ) -> None:  # fmt: skip
        _ = sources
        width = 0
        for layer in range(1, len(sizes)):
            width = max(width, padded[layer])
        panel, groups_at_once = lanes * vectors, STATES_AT_ONCE // states
        longest, last = width + sizes[0], len(sizes) - 2
        hidden = np.empty((2, STATES_AT_ONCE * width), np.float32)
        alive = np.empty(groups_at_once * width, np.int32)
        places = np.empty(groups_at_once * longest, np.int32)
        counts = np.empty(groups_at_once, np.int64)
        for member in range(len(weights)):
            weight, bias = weights[member], biases[member]
            for begin in range(start, stop, STATES_AT_ONCE):
                groups = (min(stop, begin + STATES_AT_ONCE) - begin) // states
                inputs, source, source_width = rows[member].reshape(-1), begin * sizes[0], sizes[0]
                for group in range(groups):
                    counts[group] = sizes[0]
                    for unit in range(sizes[0]):
                        places[group * longest + unit] = unit
                weight_at = bias_at = 0
                for layer in range(last + 1):
                    target_width = padded[layer + 1]
                    if layer == last and len(sums) == 0:
                        target, target_at = outputs[member].reshape(-1), begin * target_width
                    else:
                        target, target_at = hidden[layer % 2], 0
                    for block in range(0, target_width, panel):
                        for group in range(groups):
                            _products(
                                lanes, vectors, states,
                                weight, weight_at, bias, bias_at, places, group * longest, counts[group],
                                inputs, source + group * states * source_width, source_width,
                                target, target_at + group * states * target_width + block, target_width,
                                alive, group * target_width + block, layer < last,
                            )  # fmt: skip
                        weight_at += panel * sizes[layer]
                        bias_at += panel
                    if layer < last:
                        for group in range(groups):
                            counts[group] = _list_units(
                                alive, group * target_width, sizes[layer + 1], places, group * longest
                            )
                    inputs, source, source_width = target, 0, target_width
                if len(sums):
                    end = min(begin + groups * states, sums.shape[1])
                    _weigh(inputs, source_width, factors[member, begin:end], sums[member, begin:end])

    floats, indices = numba.float32, numba.int64
    signature = numba.void(
        floats[:, ::1], floats[:, ::1], indices[::1], indices[::1], floats[:, :, ::1], floats[:, :, ::1],
        types.Array(floats, 3, "A"), floats[:, :, ::1], indices, indices,
    )  # fmt: skip
    return compile_for(signature, layers)


@fast
def _list_units(alive: Any, first: int, size: int, places: Any, start: int) -> int:
    """List the units that are not zero in all of the tile's states; return how many."""
    count = 0
    for unit in range(size):
        places[start + count] = unit
        count += alive[first + unit] != 0
    return count


@fast
def _weigh(outputs: Any, distance: int, factors: Any, sums: Any) -> None:
    """Sum a member's outputs (D, r) for each state, weighted by its factors."""
    count, size = sums.shape
    rank = factors.shape[1]
    own = np.empty(rank, np.float32)
    for state in range(count):
        for place in range(rank):
            own[place] = factors[state, place]
        values = outputs[state * distance : (state + 1) * distance]
        for coordinate in range(size):
            total = np.float32(0)
            for place in range(rank):
                total += own[place] * values[coordinate * rank + place]
            sums[state, coordinate] = total


def _type_products(  # type: ignore[no-untyped-def]
    typing, lanes, vectors, states, weights, weights_at, biases, biases_at, places, places_at, count, inputs, inputs_at,
    distance, outputs, outputs_at, output_distance, alive, alive_at, relu,
):  # fmt: skip
    """Compute a tile of outputs.

    After the tile come arrays, each followed by where in it to begin: weights (inputs, outputs), biases (outputs), the
    places of the inputs that are not zero, and their number, the states' inputs, and the distance from one state to the
    next, the same of their outputs, an integer for each output that is 0 where it is in all states; and whether there
    is a ReLU.
    """
    tile = literal_tile(lanes, vectors, states)
    if tile is None:
        return None
    at = types.intp
    kinds = (weights, at, biases, at, places, at, at, inputs, at, at, outputs, at, at, alive, at, types.boolean)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        writer = TileWriter(tile, context, builder)

        def array(number: int) -> Any:
            return writer.at(writer.array(signature.args[number], arguments[number]), arguments[number + 1])

        weights, biases, places, inputs, outputs, alive = map(array, (3, 5, 7, 10, 13, 16))
        count, distance, output_distance, relu = (arguments[number] for number in (9, 12, 15, 18))
        sources = [writer.at(inputs, builder.mul(distance, INDEX(state))) for state in range(tile.rows)]
        targets = [writer.at(outputs, builder.mul(output_distance, INDEX(state))) for state in range(tile.rows)]
        start = [writer.load(writer.at(biases, offset)) for offset in writer.offsets]

        def place(term: Any) -> Any:
            return builder.sext(builder.load(writer.at(places, term)), INDEX)

        sums = writer.sums(
            [start] * tile.rows,
            count,
            lambda term: writer.at(weights, builder.mul(place(term), INDEX(tile.columns))),
            lambda state, term: writer.at(sources[state], place(term)),
        )
        floor = builder.select(relu, writer.all_lanes(0.0), writer.all_lanes(float("-inf")))
        for block, offset in enumerate(writer.offsets):
            bits = ir.Constant(writer.flags, [0] * tile.lanes)
            for target, own in zip(targets, sums, strict=True):
                output = writer.at_least(floor, own[block])
                bits = builder.or_(bits, builder.bitcast(output, writer.flags))
                writer.store(output, writer.at(target, offset))
            writer.store(bits, writer.at(alive, offset))
        return context.get_dummy_value()

    return types.void(lanes, vectors, states, *kinds), generate


_products: Any = intrinsic(prefer_literal=True)(_type_products)
