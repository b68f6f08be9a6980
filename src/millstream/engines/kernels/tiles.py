"""Matrix products by tiles of sums that stay in the registers of the machine.

LLVM does not keep a tile of sums in registers over the loop around them, so these loops are given to it as vectors.
Matrices are addresses and distances between rows, counted in numbers. Nothing here knows where a matrix ends.

Shapes: R rows, K the depth (the length of the sums), Q columns, V vectors of columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import types
from numba.extending import intrinsic

from millstream.engines.kernels.compiled import compiled
from millstream.engines.kernels.vectors import VECTOR_BYTES, Values, Vectors, lanes, whole

__all__ = ["inner_products", "product"]

# The sums of a tile and one row of factors must fit: AVX has 16 registers, AVX-512 and NEON have 32.
_MOST_ROWS, _MOST_VECTORS, _MOST_DOTS = (6, 2, 3) if VECTOR_BYTES == 32 else (4, 4, 4)


def _choose(builder: Any, rows: Any, columns: Any, most: tuple[int, int], case: Callable[[int, int], None]) -> None:
    """Runs ``case(rows, columns)`` of the two run-time numbers, each in 1 … most."""
    end = builder.append_basic_block()
    key = builder.add(builder.mul(rows, whole(16)), columns)
    switch = builder.switch(key, end)
    for num_rows in range(1, most[0] + 1):
        for num_columns in range(1, most[1] + 1):
            block = builder.append_basic_block()
            switch.add_case(whole(16 * num_rows + num_columns), block)
            builder.position_at_end(block)
            case(num_rows, num_columns)
            builder.branch(end)
    builder.position_at_end(end)


@intrinsic  # type: ignore[untyped-decorator]
def _product_tile(
    _: Any,
    rows: Any,
    vectors: Any,
    left: Any,
    left_row: Any,
    left_step: Any,
    right: Any,
    right_row: Any,
    out: Any,
    out_row: Any,
    depth: Any,
    like: Any,
) -> Any:
    """out[r, v] = Σ_k left[r, k] · right[k, v], where v are vectors."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        num_rows, num_vectors, left, left_row, left_step, right, right_row, out, out_row, depth = arguments[:-1]
        tile = Vectors(context, builder, like)
        left, right, out = tile.pointer(left), tile.pointer(right), tile.pointer(out)

        def case(most_rows: int, most_vectors: int) -> None:
            starts = [tile.at(left, builder.mul(left_row, whole(r)), is_vector=False) for r in range(most_rows)]
            places = [whole(v * tile.lanes) for v in range(most_vectors)]

            def body(step: Any, totals: Values) -> Values:
                offset = builder.mul(step, right_row)
                columns = [tile.load(right, offset, place) for place in places]
                offset = builder.mul(step, left_step)
                found: Values = []
                for r, start in enumerate(starts):
                    number = builder.load(tile.at(start, offset, is_vector=False), align=tile.size)
                    factor = tile.everywhere(number)
                    row = totals[r * most_vectors : (r + 1) * most_vectors]
                    found += [
                        tile.plus_product(total, factor, column) for total, column in zip(row, columns, strict=True)
                    ]
                return found

            found = tile.sums(most_rows * most_vectors, depth, body)
            for r in range(most_rows):
                for v, place in enumerate(places):
                    tile.store(found[r * most_vectors + v], out, builder.mul(out_row, whole(r)), place)

        _choose(builder, num_rows, num_vectors, (_MOST_ROWS, _MOST_VECTORS), case)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 10, like), generate


@intrinsic  # type: ignore[untyped-decorator]
def _inner_tile(
    _: Any,
    rows: Any,
    columns: Any,
    left: Any,
    left_row: Any,
    right: Any,
    right_row: Any,
    out: Any,
    out_row: Any,
    vectors: Any,
    like: Any,
) -> Any:
    """out[r, q] = Σ_p left[r, p] · right[q, p], where p are whole vectors."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        num_rows, num_columns, left, left_row, right, right_row, out, out_row, num_vectors = arguments[:-1]
        tile = Vectors(context, builder, like)
        left, right, out = tile.pointer(left), tile.pointer(right), tile.pointer(out)

        def case(most_rows: int, most_columns: int) -> None:
            lefts = [tile.at(left, builder.mul(left_row, whole(r)), is_vector=False) for r in range(most_rows)]
            rights = [tile.at(right, builder.mul(right_row, whole(q)), is_vector=False) for q in range(most_columns)]

            def body(step: Any, totals: Values) -> Values:
                offset = builder.mul(step, whole(tile.lanes))
                columns = [tile.load(pointer, offset) for pointer in rights]
                found: Values = []
                for r, pointer in enumerate(lefts):
                    row = tile.load(pointer, offset)
                    found += [
                        tile.plus_product(totals[r * most_columns + q], row, column) for q, column in enumerate(columns)
                    ]
                return found

            found = tile.reduced(tile.sums(most_rows * most_columns, num_vectors, body))
            for place, value in enumerate(found):
                r, q = divmod(place, most_columns)
                offsets = builder.mul(out_row, whole(r)), whole(q)
                builder.store(value, tile.at(out, *offsets, is_vector=False), align=tile.size)

        _choose(builder, num_rows, num_columns, (_MOST_DOTS, _MOST_DOTS), case)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 9, like), generate


@compiled
def product(
    rows: Any,
    columns: Any,
    depth: Any,
    left: Any,
    left_row: Any,
    left_step: Any,
    right: Any,
    right_row: Any,
    out: Any,
    out_row: Any,
    like: Any,
) -> Any:
    """out = left · right, (R, K) by (K, Q), all at addresses; left[r, k] is at r · left_row + k · left_step.

    Columns are read and written in whole vectors. K is at least 1.
    """
    size, width = like.itemsize, lanes(like)
    num_vectors = (columns + width - 1) // width
    panels, bands = (num_vectors + _MOST_VECTORS - 1) // _MOST_VECTORS, (rows + _MOST_ROWS - 1) // _MOST_ROWS
    for panel in range(panels):
        first, last = num_vectors * panel // panels, num_vectors * (panel + 1) // panels
        shift = size * first * width
        for band in range(bands):
            row, end = rows * band // bands, rows * (band + 1) // bands
            _product_tile(
                end - row,
                last - first,
                left + size * row * left_row,
                left_row,
                left_step,
                right + shift,
                right_row,
                out + size * row * out_row + shift,
                out_row,
                depth,
                like,
            )


@compiled
def inner_products(
    rows: Any,
    columns: Any,
    depth: Any,
    left: Any,
    left_row: Any,
    right: Any,
    right_row: Any,
    out: Any,
    out_row: Any,
    like: Any,
) -> Any:
    """out = left · rightᵀ, (R, K) by (Q, K), all at addresses; rows are 0 from K to the next whole vector."""
    size, width = like.itemsize, lanes(like)
    num_vectors = (depth + width - 1) // width
    bands, panels = (rows + _MOST_DOTS - 1) // _MOST_DOTS, (columns + _MOST_DOTS - 1) // _MOST_DOTS
    for panel in range(panels):
        column, last = columns * panel // panels, columns * (panel + 1) // panels
        for band in range(bands):
            row, end = rows * band // bands, rows * (band + 1) // bands
            _inner_tile(
                end - row,
                last - column,
                left + size * row * left_row,
                left_row,
                right + size * column * right_row,
                right_row,
                out + size * (row * out_row + column),
                out_row,
                num_vectors,
                like,
            )
