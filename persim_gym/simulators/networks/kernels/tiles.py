"""Matrix products for numba's kernels, in tiles that stay in the processor's registers.

A sum keeps its place in a register from the first term to the last, which numba's own loops do not achieve; so this is
written in LLVM's language, for compiled functions to call: `multiply` here, and what the kernels of layers and of
shallow networks build on the same writer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

FLOAT, INDEX, FLAG = ir.FloatType(), ir.IntType(64), ir.IntType(32)


@dataclass(frozen=True)
class Tile:
    """What is summed at the same time, in as many registers as the processor has."""

    lanes: int
    """Numbers in a register."""
    vectors: int
    """Registers of a row."""
    rows: int

    @property
    def columns(self) -> int:
        """Numbers of a row."""
        return self.lanes * self.vectors


def best_tile() -> Tile:
    """Return what fills this processor's registers: the sums, and what is loaded of either factor."""
    if binding.get_host_cpu_features().get("avx512f", False):
        return Tile(lanes=16, vectors=2, rows=8)
    return Tile(lanes=8, vectors=3, rows=4)


class TileWriter:
    """Writes what a tile does into a function that is being compiled."""

    def __init__(self, tile: Tile, context: Any, builder: Any) -> None:
        self.tile, self._context, self.builder = tile, context, builder
        self.vector, self.flags = ir.VectorType(FLOAT, tile.lanes), ir.VectorType(FLAG, tile.lanes)
        self.offsets = [INDEX(tile.lanes * place) for place in range(tile.vectors)]

    def array(self, kind: Any, value: Any) -> Any:
        """Return where an array's numbers begin."""
        return cgutils.create_struct_proxy(kind)(self._context, self.builder, value).data

    def at(self, pointer: Any, *offsets: Any) -> Any:
        """Return where something lies that many numbers further."""
        for offset in offsets:
            pointer = self.builder.gep(pointer, [offset])
        return pointer

    def all_lanes(self, number: float) -> Any:
        """Return a vector of one number."""
        return ir.Constant(self.vector, [number] * self.tile.lanes)

    def load(self, pointer: Any) -> Any:
        """Load a vector."""
        vector = self.builder.load(self.builder.bitcast(pointer, self.vector.as_pointer()))
        vector.align = 4
        return vector

    def store(self, vector: Any, pointer: Any) -> None:
        """Store a vector."""
        self.builder.store(vector, self.builder.bitcast(pointer, vector.type.as_pointer())).align = 4

    def to_all_lanes(self, value: Any) -> Any:
        """Return a vector of one number that is computed."""
        undefined = ir.Constant(self.vector, ir.Undefined)
        first = self.builder.insert_element(undefined, value, FLAG(0))
        return self.builder.shuffle_vector(first, undefined, ir.Constant(self.flags, [0] * self.tile.lanes))

    def multiply_add(self, left: Any, right: Any, total: Any) -> Any:
        """Return left · right + total."""
        name, kind = f"llvm.fmuladd.v{self.tile.lanes}f32", ir.FunctionType(self.vector, [self.vector] * 3)
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), [left, right, total])

    def accumulate(
        self,
        start: list[list[Any]],
        stop: Any,
        step: int,
        add: Callable[[Any, list[list[Any]]], list[list[Any]]],
    ) -> list[list[Any]]:
        """Write a loop over 0, ``step``, … below ``stop`` that carries vectors along; return them.

        ``add`` writes what a turn does, and returns the vectors after it.
        """
        builder, before = self.builder, self.builder.block
        head, body, after = (builder.append_basic_block(name) for name in ("accumulate", "turn", "sums"))
        builder.branch(head)
        builder.position_at_end(head)
        place = builder.phi(INDEX)
        carried = [[builder.phi(self.vector) for _ in own] for own in start]
        builder.cbranch(builder.icmp_signed("<", place, stop), body, after)
        builder.position_at_end(body)
        added = add(place, carried)
        for block, number, vectors in (
            (before, INDEX(0), start),
            (builder.block, builder.add(place, INDEX(step)), added),
        ):
            place.add_incoming(number, block)
            for own, incoming in zip(carried, vectors, strict=True):
                for one, vector in zip(own, incoming, strict=True):
                    one.add_incoming(vector, block)
        builder.branch(head)
        builder.position_at_end(after)
        return carried

    def sums(
        self, start: list[list[Any]], count: Any, row: Callable[[Any], Any], number: Callable[[int, Any], Any]
    ) -> list[list[Any]]:
        """Write the loop over ``count`` terms; return the sums, the vectors of every row.

        ``row`` and ``number`` write where a term's row of the right factor lies, and where its number of a row of the
        left one does.
        """

        def add(term: Any, sums: list[list[Any]]) -> list[list[Any]]:
            right = row(term)
            loaded = [self.load(self.at(right, offset)) for offset in self.offsets]
            spread = [self.to_all_lanes(self.builder.load(number(place, term))) for place in range(len(sums))]
            return [
                [self.multiply_add(other, value, one) for one, other in zip(own, loaded, strict=True)]
                for own, value in zip(sums, spread, strict=True)
            ]

        return self.accumulate(start, count, 1, add)

    def at_least(self, floor: Any, vector: Any) -> Any:
        """Return the larger of the two in each lane; what is not a number stays so."""
        return self.builder.select(self.builder.fcmp_ordered(">", floor, vector), floor, vector)


def literal_tile(*numbers: Any) -> Tile | None:
    """Return the tile of types that are literal integers, None if they are not: numba asks with these next."""
    if not all(isinstance(number, types.IntegerLiteral) for number in numbers):
        return None
    return Tile(*(number.literal_value for number in numbers))


def _type_multiply(  # type: ignore[no-untyped-def]
    typing, lanes, vectors, tile_rows, rows, columns, count, left, row_step, term_step, right, right_step, into,
    into_step, add, relu,
):  # fmt: skip
    """Compute into[r, c] = Σ_k left[r, k]·right[k, c], or add that to it; then zero what is below zero, if ``relu``.

    After the tile, whose rows and columns divide those of the result, and the number of terms come C-contiguous arrays
    with their steps from one row to the next (and from one term to the next) in numbers; ``add`` and ``relu`` are 0 or
    1, known when compiled.
    """
    tile = literal_tile(lanes, vectors, tile_rows)
    if tile is None or not isinstance(add, types.IntegerLiteral) or not isinstance(relu, types.IntegerLiteral):
        return None
    at = types.intp
    kinds = (lanes, vectors, tile_rows, at, at, at, left, at, at, right, at, into, at, add, relu)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        writer = TileWriter(tile, context, builder)
        _, _, _, rows, columns, count, _, row_step, term_step, _, right_step, _, into_step, _, _ = arguments
        lefts, rights, intos = (writer.array(signature.args[place], arguments[place]) for place in (6, 9, 11))
        zero, adding = writer.all_lanes(0.0), bool(add.literal_value)
        column_range = cgutils.for_range_slice(builder, INDEX(0), columns, INDEX(tile.columns), INDEX)
        with column_range as (column, _):
            row_range = cgutils.for_range_slice(builder, INDEX(0), rows, INDEX(tile.rows), INDEX)
            with row_range as (first, _):
                places = [builder.add(first, INDEX(row)) for row in range(tile.rows)]
                targets = [writer.at(intos, builder.mul(place, into_step), column) for place in places]
                sources = [writer.at(lefts, builder.mul(place, row_step)) for place in places]
                begin = writer.at(rights, column)
                sums = writer.sums(
                    [[writer.load(writer.at(one, by)) if adding else zero for by in writer.offsets] for one in targets],
                    count,
                    lambda term: writer.at(begin, builder.mul(term, right_step)),
                    lambda row, term: writer.at(sources[row], builder.mul(term, term_step)),
                )
                for target, own in zip(targets, sums, strict=True):
                    for offset, one in zip(writer.offsets, own, strict=True):
                        result = writer.at_least(zero, one) if relu.literal_value else one
                        writer.store(result, writer.at(target, offset))
        return context.get_dummy_value()

    return types.void(*kinds), generate


multiply: Any = intrinsic(prefer_literal=True)(_type_multiply)
