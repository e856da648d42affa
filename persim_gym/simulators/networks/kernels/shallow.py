"""The kernels of `CompiledShallowNetwork` and `CompiledMeanStepper`: one hidden layer and the outputs of one action."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from persim_gym.simulators.networks.kernels.jit import SOURCES, compile_for
from persim_gym.simulators.networks.kernels.tiles import FLOAT, INDEX, Tile, TileWriter, best_tile

LANES = best_tile().lanes
"""Hidden units that are computed together."""


@cache
def step_kernel(size: int) -> Callable[..., None]:
    """Return the compiled step for states of so many coordinates; loops over them are unrolled.

    It takes layers (M, D + 1, W), whose last row is the bias, heads (M, A, D, W) and their biases (M, A, D); columns
    (D + 1, n), the actions (n,) and where each member's columns end, and the first member; the bounds (D,) of states;
    and the next states to fill, columns too. W is a multiple of `LANES`.
    """
    # Few enough for all sums and states to stay in registers.
    together, sources = 4 if size <= 2 else 2, SOURCES

    def step(
        layers: Any, heads: Any, biases: Any, states: Any, actions: Any, stops: Any, member: int, low: Any, high: Any,
        following: Any,
    ) -> None:  # fmt: skip
        _ = sources
        units, count = layers.shape[2], states.shape[1]
        flat_states, flat_layers, flat_heads = states.reshape(-1), layers.reshape(-1), heads.reshape(-1)
        own, head_at = np.empty(together, np.int64), np.empty(together, np.int64)
        changes = np.empty(together * size, np.float32)
        left = 0
        for stop in stops:
            for start in range(left, stop, together):
                for place in range(together):  # where fewer are left, the last is computed again
                    own[place] = min(start + place, stop - 1)
                    head_at[place] = (member * heads.shape[1] + actions[own[place]]) * size * units
                _changes(
                    LANES, together, size, units, flat_layers, member * (size + 1) * units, flat_states, count, own,
                    flat_heads, head_at, changes,
                )  # fmt: skip
                for place in range(together):
                    column = own[place]
                    for coordinate in range(size):
                        change = changes[place * size + coordinate] + biases[member, actions[column], coordinate]
                        value = states[coordinate, column] + change
                        value = low[coordinate] if value < low[coordinate] else value
                        following[coordinate, column] = high[coordinate] if value > high[coordinate] else value
            left, member = stop, member + 1

    floats, indices = numba.float32, numba.int64
    signature = numba.void(
        floats[:, :, ::1], floats[:, :, :, ::1], floats[:, :, ::1], floats[:, ::1], indices[::1], indices[::1], indices,
        floats[::1], floats[::1], floats[:, ::1],
    )  # fmt: skip
    return compile_for(signature, step)


@cache
def mean_kernel(size: int) -> Callable[..., None]:
    """Return the compiled step of one state by all members, for states of so many coordinates.

    It takes layers, heads and biases, as `step_kernel` has them, in one array, M, A and W; the state (D,) and the
    action; and what to fill with the mean next state and the members' standard deviation (2·D,).
    """
    sources = SOURCES

    def mean_step(
        weights: Any, members: int, num_actions: int, units: int, state: Any, action: int, outputs: Any
    ) -> None:
        _ = sources
        heads_at = members * (size + 1) * units
        biases_at = heads_at + members * num_actions * size * units
        own, head_at = np.zeros(1, np.int64), np.empty(1, np.int64)
        following, changes = np.empty((members, size), np.float32), np.empty(size, np.float32)
        for member in range(members):
            row = (member * num_actions + action) * size
            head_at[0] = heads_at + row * units
            _changes(
                LANES, 1, size, units, weights, member * (size + 1) * units, state, 1, own, weights, head_at, changes
            )
            for coordinate in range(size):
                change = changes[coordinate] + weights[biases_at + row + coordinate]
                following[member, coordinate] = state[coordinate] + change
        for coordinate in range(size):
            total = squares = 0.0
            for member in range(members):
                total += following[member, coordinate]
            mean = total / members
            for member in range(members):
                squares += (following[member, coordinate] - mean) ** 2
            outputs[coordinate], outputs[size + coordinate] = mean, np.sqrt(squares / members)

    floats, indices = numba.float32, numba.int64
    signature = numba.void(floats[::1], indices, indices, indices, floats[::1], indices, floats[::1])
    return compile_for(signature, mean_step)


def _type_changes(  # type: ignore[no-untyped-def]
    typing, lanes, states, size, units, layers, layer_at, columns, stride, own, heads, head_at, changes
):
    """Fill the changes (states · size,) of a few states, without the head's bias.

    After numbers that are known when compiled, and the number of units, come the layers and where this one begins; the
    coordinates, and how far one is from the next, and which columns are meant; the heads and where each state's begins.
    """
    if not all(isinstance(number, types.IntegerLiteral) for number in (lanes, states, size)):
        return None
    tile = Tile(lanes.literal_value, 1, states.literal_value)
    at, coordinates = types.intp, range(size.literal_value)
    kinds = (lanes, states, size, at, layers, at, columns, at, own, heads, head_at, changes)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        writer, places = TileWriter(tile, context, builder), range(tile.rows)
        units, layer_at, stride = (arguments[number] for number in (3, 5, 7))
        layers, columns, own, heads, head_at, changes = (
            writer.array(signature.args[number], arguments[number]) for number in (4, 6, 8, 9, 10, 11)
        )
        layer, zero = writer.at(layers, layer_at), writer.all_lanes(0.0)
        rows = [writer.at(layer, builder.mul(units, INDEX(row))) for row in range(len(coordinates) + 1)]
        spread, targets = [], []
        for place in places:
            column = writer.at(columns, builder.load(writer.at(own, INDEX(place))))
            numbers = [writer.at(column, builder.mul(stride, INDEX(coordinate))) for coordinate in coordinates]
            spread.append([writer.to_all_lanes(builder.load(number)) for number in numbers])
            head = writer.at(heads, builder.load(writer.at(head_at, INDEX(place))))
            targets.append([writer.at(head, builder.mul(units, INDEX(coordinate))) for coordinate in coordinates])

        def add(unit: Any, sums: list[list[Any]]) -> list[list[Any]]:
            *weights, bias = [writer.load(writer.at(row, unit)) for row in rows]
            added = []
            for place in places:
                hidden = bias
                for weight, number in zip(weights, spread[place], strict=True):
                    hidden = writer.multiply_add(weight, number, hidden)
                hidden = writer.at_least(zero, hidden)
                heads = [writer.load(writer.at(target, unit)) for target in targets[place]]
                pairs = zip(sums[place], heads, strict=True)
                added.append([writer.multiply_add(head, hidden, one) for one, head in pairs])
            return added

        sums = writer.accumulate([[zero for _ in coordinates] for _ in places], units, tile.lanes, add)
        add_lanes = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(FLOAT, [FLOAT, writer.vector]), f"llvm.vector.reduce.fadd.v{tile.lanes}f32"
        )
        for place in places:
            for coordinate in coordinates:
                total = builder.call(add_lanes, [FLOAT(0.0), sums[place][coordinate]], fastmath=("reassoc",))
                builder.store(total, writer.at(changes, INDEX(place * len(coordinates) + coordinate)))
        return context.get_dummy_value()

    return types.void(*kinds), generate


_changes: Any = intrinsic(prefer_literal=True)(_type_changes)
