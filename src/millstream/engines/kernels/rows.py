"""Passes over the rows of a weight matrix, some rows at a time, with every sum in a register.

LLVM makes vectors of such loops by itself, but gives each row its own tests for overlapping memory and leaves what does
not fill a vector to single numbers. Here the last vector of a row is a masked one.

Shapes: O outputs, I inputs of a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from millstream.engines.kernels.compiled import compiled
from millstream.engines.kernels.vectors import VECTOR_BYTES, Values, Vectors, address_of, whole

__all__ = ["backward", "descend_and_forward", "forward"]

# Sums, factors and two inputs of so many rows fit the registers: AVX has 16, AVX-512 and NEON have 32.
_ROWS = (4, 2, 1) if VECTOR_BYTES == 32 else (8, 4, 2, 1)
_MOST = _ROWS[0]


class _Row(Vectors):
    """Vectors of which the last may be masked."""

    def __init__(self, context: Any, builder: Any, like: Any) -> None:
        super().__init__(context, builder, like)
        bits = ir.VectorType(ir.IntType(1), self.lanes)
        name = f"v{self.lanes}f{8 * self.size}.p0"
        pointer, align = self.vector.as_pointer(), ir.IntType(32)
        module, none = builder.module, ir.VoidType()
        load = ir.FunctionType(self.vector, [pointer, align, bits, self.vector])
        store = ir.FunctionType(none, [self.vector, pointer, align, bits])
        self._load = self._declared(module, load, f"llvm.masked.load.{name}")
        self._store = self._declared(module, store, f"llvm.masked.store.{name}")
        self._align = ir.Constant(align, self.size)
        self.zero = ir.Constant(self.vector, [0.0] * self.lanes)

    @staticmethod
    def _declared(module: Any, kind: Any, name: str) -> Any:
        return module.globals.get(name) or ir.Function(module, kind, name)

    def first(self, num: Any) -> Any:
        """A mask of the first ``num`` lanes."""
        builder, short = self.builder, ir.IntType(32)
        numbers = ir.Constant(ir.VectorType(short, self.lanes), list(range(self.lanes)))
        return builder.icmp_signed("<", numbers, self.everywhere(builder.trunc(num, short)))

    def load_masked(self, pointer: Any, offset: Any, mask: Any) -> Any:
        return self.builder.call(self._load, [self.at(pointer, offset), self._align, mask, self.zero])

    def store_masked(self, value: Any, pointer: Any, offset: Any, mask: Any) -> None:
        self.builder.call(self._store, [value, self.at(pointer, offset), self._align, mask])

    def over(self, size: Any, num: int, body: Callable[[Any, Any, Values], Values]) -> Values:
        """``num`` sums over a row of ``size`` numbers: whole vectors, then the rest; ``body`` has offset and mask."""
        builder = self.builder
        num_whole = builder.udiv(size, whole(self.lanes))
        before = builder.block
        loop, after, rest, end = (builder.append_basic_block() for _ in range(4))
        builder.cbranch(builder.icmp_signed(">", num_whole, whole(0)), loop, after)
        builder.position_at_end(loop)
        step = builder.phi(ir.IntType(64))
        step.add_incoming(whole(0), before)
        totals = [builder.phi(self.vector) for _ in range(num)]
        found = body(builder.mul(step, whole(self.lanes)), None, totals)
        following = builder.add(step, whole(1))
        step.add_incoming(following, builder.block)
        for phi, value in zip(totals, found, strict=True):
            phi.add_incoming(self.zero, before)
            phi.add_incoming(value, builder.block)
        ended = builder.block
        branch = builder.cbranch(builder.icmp_signed("<", following, num_whole), loop, after)
        branch.set_metadata("llvm.loop", self._not_unrolled())
        builder.position_at_end(after)
        sums = [self._either(before, self.zero, ended, value) for value in found]
        left = builder.sub(size, builder.mul(num_whole, whole(self.lanes)))
        builder.cbranch(builder.icmp_signed(">", left, whole(0)), rest, end)
        builder.position_at_end(rest)
        more = body(builder.mul(num_whole, whole(self.lanes)), self.first(left), sums)
        last = builder.block
        builder.branch(end)
        builder.position_at_end(end)
        return [self._either(after, a, last, b) for a, b in zip(sums, more, strict=True)]

    def _either(self, one: Any, value: Any, other: Any, second: Any) -> Any:
        phi = self.builder.phi(self.vector)
        phi.add_incoming(value, one)
        phi.add_incoming(second, other)
        return phi

    def read(self, pointer: Any, offset: Any, mask: Any) -> Any:
        return self.load(pointer, offset) if mask is None else self.load_masked(pointer, offset, mask)

    def write(self, value: Any, pointer: Any, offset: Any, mask: Any) -> None:
        if mask is None:
            self.store(value, pointer, offset)
        else:
            self.store_masked(value, pointer, offset, mask)


def _for_rows(builder: Any, rows: Any, case: Callable[[int], None]) -> None:
    """Runs ``case`` of the run-time number of rows, one of ``_ROWS``."""
    end = builder.append_basic_block()
    switch = builder.switch(rows, end)
    for num in _ROWS:
        block = builder.append_basic_block()
        switch.add_case(whole(num), block)
        builder.position_at_end(block)
        case(num)
        builder.branch(end)
    builder.position_at_end(end)


@intrinsic  # type: ignore[untyped-decorator]
def _descend(
    _: Any, rows: Any, size: Any, weights: Any, steps: Any, before: Any, inputs: Any, out: Any, like: Any
) -> Any:
    """w −= step · before, out += w · inputs, for each row w."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        rows, size, *places = arguments[:-1]
        row = _Row(context, builder, like)
        weights, steps, before, inputs, out = (row.pointer(place) for place in places)

        def case(num: int) -> None:
            starts = [row.at(weights, builder.mul(size, whole(r)), is_vector=False) for r in range(num)]
            factors = [
                row.everywhere(builder.fneg(builder.load(row.at(steps, whole(r), is_vector=False)))) for r in range(num)
            ]

            def body(offset: Any, mask: Any, totals: Values) -> Values:
                u, x = row.read(before, offset, mask), row.read(inputs, offset, mask)
                found = []
                for start, factor, total in zip(starts, factors, totals, strict=True):
                    w = row.plus_product(row.read(start, offset, mask), factor, u)
                    row.write(w, start, offset, mask)
                    found.append(row.plus_product(total, w, x))
                return found

            _add_to(row, out, row.reduced(row.over(size, num, body)))

        _for_rows(builder, rows, case)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7, like), generate


@intrinsic  # type: ignore[untyped-decorator]
def _multiply(_: Any, rows: Any, size: Any, weights: Any, inputs: Any, out: Any, like: Any) -> Any:
    """out += w · inputs, for each row w."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        rows, size, *places = arguments[:-1]
        row = _Row(context, builder, like)
        weights, inputs, out = (row.pointer(place) for place in places)

        def case(num: int) -> None:
            starts = [row.at(weights, builder.mul(size, whole(r)), is_vector=False) for r in range(num)]

            def body(offset: Any, mask: Any, totals: Values) -> Values:
                x = row.read(inputs, offset, mask)
                return [
                    row.plus_product(total, row.read(start, offset, mask), x)
                    for start, total in zip(starts, totals, strict=True)
                ]

            _add_to(row, out, row.reduced(row.over(size, num, body)))

        _for_rows(builder, rows, case)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5, like), generate


@intrinsic  # type: ignore[untyped-decorator]
def _spread(_: Any, rows: Any, size: Any, weights: Any, delta: Any, out: Any, adds: Any, like: Any) -> Any:
    """out = Σ δ w over the rows w, or out += the same."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        rows, size, *places, adds = arguments[:-1]
        row = _Row(context, builder, like)
        weights, delta, out = (row.pointer(place) for place in places)

        def case(num: int) -> None:
            starts = [row.at(weights, builder.mul(size, whole(r)), is_vector=False) for r in range(num)]
            factors = [row.everywhere(builder.load(row.at(delta, whole(r), is_vector=False))) for r in range(num)]

            def body(offset: Any, mask: Any, _: Values) -> Values:
                total = builder.select(builder.trunc(adds, ir.IntType(1)), row.read(out, offset, mask), row.zero)
                for start, factor in zip(starts, factors, strict=True):
                    total = row.plus_product(total, factor, row.read(start, offset, mask))
                row.write(total, out, offset, mask)
                return []

            row.over(size, 0, body)

        _for_rows(builder, rows, case)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6, like), generate


def _add_to(row: _Row, out: Any, sums: Values) -> None:
    for place, value in enumerate(sums):
        pointer = row.at(out, whole(place), is_vector=False)
        row.builder.store(row.builder.fadd(row.builder.load(pointer), value), pointer)


@compiled
def forward(weights: Any, inputs_I: Any, out_O: Any) -> Any:
    """out += W x, where W lies at an address."""
    num_out, size, item = out_O.shape[0], inputs_I.shape[0], out_O.itemsize
    inputs, out = address_of(inputs_I), address_of(out_O)
    row, most = 0, _MOST
    while row < num_out:
        while row + most > num_out:
            most //= 2
        _multiply(most, size, weights + row * size * item, inputs, out + row * item, out_O)
        row += most


@compiled
def descend_and_forward(weights: Any, steps_O: Any, before_I: Any, inputs_I: Any, out_O: Any) -> Any:
    """W −= steps · beforeᵀ, then out += W x, in one pass over W, which lies at an address."""
    num_out, size, item = out_O.shape[0], inputs_I.shape[0], out_O.itemsize
    steps, before, inputs, out = address_of(steps_O), address_of(before_I), address_of(inputs_I), address_of(out_O)
    row, most = 0, _MOST
    while row < num_out:
        while row + most > num_out:
            most //= 2
        place = row * item
        _descend(most, size, weights + size * place, steps + place, before, inputs, out + place, out_O)
        row += most


@compiled
def backward(weights: Any, delta_O: Any, out_I: Any, adds: Any) -> Any:
    """out = Wᵀ δ, or out += Wᵀ δ; W lies at an address."""
    num_out, size, item = delta_O.shape[0], out_I.shape[0], out_I.itemsize
    delta, out = address_of(delta_O), address_of(out_I)
    row, most = 0, _MOST
    while row < num_out:
        while row + most > num_out:
            most //= 2
        keeps = 1 if adds or row > 0 else 0
        _spread(most, size, weights + row * size * item, delta + row * item, out, keeps, out_I)
        row += most
