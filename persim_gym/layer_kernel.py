"""The kernel of `persim_gym.compiled_layers`: layers with ReLU between them. Imported only where numba is installed.

A tile of outputs of a few states is summed over the inputs that are not zero in all of them. A unit's sum keeps its
place in a register from the first term to the last, which numba's own loops do not achieve; so the innermost loop,
`_products`, is written in LLVM's language.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numba
import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from persim_gym.jit import compile_for, fast

STATES_AT_ONCE = 256
"""Go through one layer after the other: what stays in the second-level cache."""


@dataclass(frozen=True)
class Tile:
    """What is summed at the same time, in as many registers as the processor has."""

    lanes: int
    """Numbers in a register."""
    vectors: int
    """Registers of outputs."""
    states: int
    """That share what is loaded of the weights, and the list of units that are not zero."""

    @property
    def outputs(self) -> int:
        """How many outputs of a state."""
        return self.lanes * self.vectors


def best_tile() -> Tile:
    """Return what fills this processor's registers: the sums, and what is loaded of weights and inputs."""
    if binding.get_host_cpu_features().get("avx512f", False):
        return Tile(lanes=16, vectors=2, states=8)
    return Tile(lanes=8, vectors=3, states=4)


@cache
def layers_kernel(tile: Tile) -> Callable[..., None]:
    """Return the compiled layers.

    They take weights (M, ·) and biases (M, ·), every layer's as `persim_gym.compiled_layers` packs them; the sizes of
    inputs and layers, and the same with padding; rows (M, B, I), B a multiple of the tile's states; outputs (M, B, O
    with padding) to fill, or factors (M, b, r) and sums (M, b, D) to fill with Σ_l factors[:, :, l]·outputs[:, :, d, l]
    of the first b rows; and which rows to begin and to end with, multiples of the tile's states.
    """
    # Integers: what was compiled for them is found again by their values.
    lanes, vectors, states = tile.lanes, tile.vectors, tile.states

    def layers(
        weights: Any, biases: Any, sizes: Any, padded: Any, rows: Any, outputs: Any, factors: Any, sums: Any,
        start: int, stop: int,
    ) -> None:  # fmt: skip
        width = 0
        for layer in range(1, len(sizes)):
            width = max(width, padded[layer])
        panel, groups_at_once, longest, last = (
            lanes * vectors,
            STATES_AT_ONCE // states,
            width + sizes[0],
            len(sizes) - 2,
        )
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
    if not isinstance(lanes, types.IntegerLiteral):
        return None  # numba asks with the values next
    tile, at = Tile(lanes.literal_value, vectors.literal_value, states.literal_value), types.intp
    kinds = (weights, at, biases, at, places, at, at, inputs, at, at, outputs, at, at, alive, at, types.boolean)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _write_products(tile, context, builder, signature.args[3:], arguments[3:])
        return context.get_dummy_value()

    return types.void(lanes, vectors, states, *kinds), generate


_products: Any = intrinsic(prefer_literal=True)(_type_products)


def _write_products(tile: Tile, context: Any, builder: Any, kinds: Any, arguments: Any) -> None:
    """Write the loop of `_products`, whose arguments of these kinds are those after the tile."""
    number, index, flag = ir.FloatType(), ir.IntType(64), ir.IntType(32)
    lanes = tile.lanes
    vector, flags = ir.VectorType(number, lanes), ir.VectorType(flag, lanes)
    undefined, zero = ir.Constant(vector, ir.Undefined), ir.Constant(vector, [0.0] * lanes)
    lowest, to_all_lanes = ir.Constant(vector, [float("-inf")] * lanes), ir.Constant(flags, [0] * lanes)

    def pointer(array: int, offset: Any) -> Any:
        struct = cgutils.create_struct_proxy(kinds[array])(context, builder, arguments[array])
        return builder.gep(struct.data, [offset])

    def moved(base: Any, offset: Any, kind: Any = vector) -> Any:
        return builder.bitcast(builder.gep(base, [offset]), kind.as_pointer())

    def load(base: Any, offset: Any) -> Any:
        loaded = builder.load(moved(base, offset))
        loaded.align = 4
        return loaded

    weights, biases, places = (pointer(array, arguments[array + 1]) for array in (0, 2, 4))
    count, inputs, distance = arguments[6], pointer(7, arguments[8]), arguments[9]
    outputs, output_distance = pointer(10, arguments[11]), arguments[12]
    alive, relu = pointer(13, arguments[14]), arguments[15]
    rows = [builder.gep(inputs, [builder.mul(distance, index(state))]) for state in range(tile.states)]
    multiply_add = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.v{lanes}f32"
    )
    offsets = [index(lanes * block) for block in range(tile.vectors)]
    start = [load(biases, offset) for offset in offsets]
    before = builder.block
    head, body, after = (builder.append_basic_block(name) for name in ("products", "term", "sums"))
    builder.branch(head)

    builder.position_at_end(head)
    position = builder.phi(index)
    position.add_incoming(index(0), before)
    sums = [[builder.phi(vector) for _ in offsets] for _ in rows]
    for own in sums:
        for one, bias in zip(own, start, strict=True):
            one.add_incoming(bias, before)
    builder.cbranch(builder.icmp_signed("<", position, count), body, after)

    builder.position_at_end(body)
    place = builder.sext(builder.load(builder.gep(places, [position])), index)
    block_row = builder.gep(weights, [builder.mul(place, index(tile.outputs))])
    loaded = [load(block_row, offset) for offset in offsets]
    for row, own in zip(rows, sums, strict=True):
        value = builder.insert_element(undefined, builder.load(builder.gep(row, [place])), flag(0))
        spread = builder.shuffle_vector(value, undefined, to_all_lanes)
        for one, weight in zip(own, loaded, strict=True):
            one.add_incoming(builder.call(multiply_add, [weight, spread, one]), body)
    position.add_incoming(builder.add(position, index(1)), body)
    builder.branch(head)

    builder.position_at_end(after)
    floor = builder.select(relu, zero, lowest)
    for block, offset in enumerate(offsets):
        bits = ir.Constant(flags, [0] * lanes)
        for state, own in enumerate(sums):
            # What is not a number is not below zero either, and stays.
            output = builder.select(builder.fcmp_ordered(">", floor, own[block]), floor, own[block])
            bits = builder.or_(bits, builder.bitcast(output, flags))
            at = builder.add(builder.mul(output_distance, index(state)), offset)
            builder.store(output, moved(outputs, at)).align = 4
        builder.store(bits, moved(alive, offset, flags)).align = 4
