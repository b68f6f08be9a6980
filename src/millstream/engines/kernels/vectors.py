"""Vectors of numbers as LLVM knows them: of 64 bytes where there is AVX-512, of 32 where there is AVX, else of 16.

LLVM makes vectors of most loops by itself. These are for the loops of which it does not, and for short ones: a vector
may be copied where less is meant, if what is written too much is written over afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir  # type: ignore[import-untyped]
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

from millstream.engines.kernels.compiled import compiled

__all__ = [
    *("LINE", "VECTOR_BYTES", "Values", "Vectors", "add_shifted", "address_of", "aligned", "choose", "clear"),
    *("count_tiny_as_zero", "lanes", "move", "prefetch", "restore_tiny", "whole"),
]

LINE = 16  # numbers: no vector is longer
_FEATURES = str(config.CPU_FEATURES or binding.get_host_cpu_features().flatten())
VECTOR_BYTES = 64 if "+avx512f" in _FEATURES else 32 if "+avx" in _FEATURES else 16
_INT = ir.IntType(64)
Values = list[Any]


class Vectors:
    """What all generated code needs: the builder, the type of a number, the type of a vector of them."""

    def __init__(self, context: Any, builder: Any, like: Any) -> None:
        self.builder = builder
        self.number = context.get_value_type(like.dtype)
        self.size = 4 if isinstance(self.number, ir.FloatType) else 8
        self.lanes = VECTOR_BYTES // self.size
        self.vector = ir.VectorType(self.number, self.lanes)

    def pointer(self, address: Any) -> Any:
        return self.builder.inttoptr(address, self.number.as_pointer())

    def at(self, pointer: Any, *offsets: Any, is_vector: bool = True) -> Any:
        for offset in offsets:
            pointer = self.builder.gep(pointer, [offset])
        return self.builder.bitcast(pointer, self.vector.as_pointer()) if is_vector else pointer

    def load(self, pointer: Any, *offsets: Any) -> Any:
        return self.builder.load(self.at(pointer, *offsets), align=self.size)

    def store(self, value: Any, pointer: Any, *offsets: Any) -> None:
        self.builder.store(value, self.at(pointer, *offsets), align=self.size)

    def everywhere(self, value: Any) -> Any:
        """A vector that holds one number (or whole number) in all lanes."""
        none = ir.Constant(ir.VectorType(value.type, self.lanes), ir.Undefined)
        first = self.builder.insert_element(none, value, ir.Constant(ir.IntType(32), 0))
        return self.shuffle(first, first, [0] * self.lanes)

    def shuffle(self, first: Any, second: Any, places: list[int]) -> Any:
        mask = ir.Constant(ir.VectorType(ir.IntType(32), len(places)), places)
        return self.builder.shuffle_vector(first, second, mask)

    def plus_product(self, total: Any, left: Any, right: Any) -> Any:
        flags = ["contract", "reassoc", "nsz"]
        return self.builder.fadd(total, self.builder.fmul(left, right, flags=flags), flags=flags)

    def sums(self, num: int, depth: Any, body: Callable[[Any, Values], Values]) -> Values:
        """``num`` sums in vectors, from 0, over a loop of at least one step."""
        builder = self.builder
        before, loop = builder.block, builder.append_basic_block()
        builder.branch(loop)
        builder.position_at_end(loop)
        step = builder.phi(_INT)
        step.add_incoming(whole(0), before)
        totals = [builder.phi(self.vector) for _ in range(num)]
        found = body(step, totals)
        for phi, value in zip(totals, found, strict=True):
            phi.add_incoming(ir.Constant(self.vector, [0.0] * self.lanes), before)
            phi.add_incoming(value, builder.block)
        following = builder.add(step, whole(1))
        step.add_incoming(following, builder.block)
        after = builder.append_basic_block()
        branch = builder.cbranch(builder.icmp_signed("<", following, depth), loop, after)
        branch.set_metadata("llvm.loop", self._not_unrolled())
        builder.position_at_end(after)
        return found

    def _not_unrolled(self) -> Any:
        """A tile has enough to do in one step; LLVM would make its loop four times as long, and compile that."""
        module = self.builder.module
        wish = module.add_metadata([ir.MetaDataString(module, "llvm.loop.unroll.disable")])
        loop = module.add_metadata([wish])
        loop.operands = (loop, wish)  # LLVM knows a loop by a node that names itself
        return loop

    def reduced(self, vectors: Values) -> Values:
        """The sum over the lanes of each vector, as numbers: they are folded into each other, two by two."""
        found: Values = []
        for first in range(0, len(vectors), self.lanes):
            group = vectors[first : first + self.lanes]
            num = len(group)
            while len(group) & (len(group) - 1):
                group.append(group[0])
            each = self.lanes
            while len(group) > 1:
                group = [self._folded(a, b, each) for a, b in zip(group[::2], group[1::2], strict=True)]
                each //= 2
            while each > 1:
                group = [self._folded(group[0], group[0], each)]
                each //= 2
            found += [self.builder.extract_element(group[0], ir.Constant(ir.IntType(32), i)) for i in range(num)]
        return found

    def _folded(self, first: Any, second: Any, each: int) -> Any:
        """Blocks of ``each`` lanes become half as wide: the blocks of one vector, then those of the other."""
        low = [lane for lane in range(2 * self.lanes) if lane % each < each // 2]
        high = [lane + each // 2 for lane in low]
        flags = ["reassoc", "nsz"]
        halves = self.shuffle(first, second, low), self.shuffle(first, second, high)
        return self.builder.fadd(*halves, flags=flags)


def whole(number: int) -> Any:
    """A whole number of 64 bits, known when the code is made."""
    return ir.Constant(_INT, number)


@intrinsic  # type: ignore[untyped-decorator]
def lanes(_: Any, like: Any) -> Any:
    """How many numbers of the type that ``like`` holds are in a vector."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return whole(Vectors(context, builder, like).lanes)

    return types.int64(like), generate


@intrinsic  # type: ignore[untyped-decorator]
def address_of(_: Any, array: Any) -> Any:
    """Where an array begins."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ptrtoint(context.make_array(array)(context, builder, arguments[0]).data, _INT)

    return types.int64(array), generate


@intrinsic  # type: ignore[untyped-decorator]
def move(_: Any, target: Any, source: Any, vectors: Any, like: Any) -> Any:
    """Copies at least one vector, from the first to the last."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vectors = Vectors(context, builder, like)
        target, source = vectors.pointer(arguments[0]), vectors.pointer(arguments[1])

        def body(step: Any, _: Values) -> Values:
            offset = builder.mul(step, whole(vectors.lanes))
            vectors.store(vectors.load(source, offset), target, offset)
            return []

        vectors.sums(0, arguments[2], body)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, like), generate


@intrinsic  # type: ignore[untyped-decorator]
def clear(_: Any, target: Any, like: Any) -> Any:
    """Writes one vector of zeros."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vectors = Vectors(context, builder, like)
        vectors.store(ir.Constant(vectors.vector, [0.0] * vectors.lanes), vectors.pointer(arguments[0]))
        return context.get_dummy_value()

    return types.void(types.int64, like), generate


@intrinsic  # type: ignore[untyped-decorator]
def add_shifted(
    _: Any, target: Any, source: Any, first: Any, num: Any, shift: Any, distance: Any, rows: Any, like: Any
) -> Any:
    """Adds to a vector that begins at place ``first`` of a line: row k, of ``num`` numbers, begins at place k · shift.

    Row k is read ``k · distance`` after the source. What is read outside of a row is not used.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, source, first, num, shift, distance, rows = arguments[:-1]
        vectors = Vectors(context, builder, like)
        into, source = vectors.pointer(target), vectors.pointer(source)
        short = ir.IntType(32)
        numbers = ir.Constant(ir.VectorType(short, vectors.lanes), list(range(vectors.lanes)))
        most = vectors.everywhere(builder.trunc(num, short))
        nothing = ir.Constant(vectors.vector, [0.0] * vectors.lanes)

        def body(step: Any, totals: Values) -> Values:
            start = builder.sub(first, builder.mul(step, shift))
            places = builder.add(numbers, vectors.everywhere(builder.trunc(start, short)))
            found = vectors.load(source, builder.add(builder.mul(step, distance), start))
            is_inside = builder.icmp_unsigned("<", places, most)  # a place below 0 is a great number
            return [builder.fadd(totals[0], builder.select(is_inside, found, nothing))]

        vectors.store(builder.fadd(vectors.sums(1, rows, body)[0], vectors.load(into)), into)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7, like), generate


@intrinsic  # type: ignore[untyped-decorator]
def choose(_: Any, condition: Any, yes: Any, no: Any) -> Any:
    """One of two numbers without a branch: which one cannot be guessed."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        found = builder.select(*arguments)
        found.set_metadata("unpredictable", builder.module.add_metadata([]))
        return found

    return no(types.boolean, no, no), generate


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(_: Any, address: Any) -> Any:
    """Asks for the line of the cache at an address, which may be any, before it is needed."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte, short = ir.IntType(8).as_pointer(), ir.IntType(32)
        function = _declared(builder, ir.FunctionType(ir.VoidType(), [byte, short, short, short]), "llvm.prefetch.p0")
        to_write, often, data = (ir.Constant(short, number) for number in (1, 3, 1))
        builder.call(function, [builder.inttoptr(arguments[0], byte), to_write, often, data])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def count_tiny_as_zero(_: Any) -> Any:
    """From here on numbers below 1.2e-38 (in float32) are 0: with their few digits left they are many times slower.

    Gives what ``restore_tiny`` wants. Of x86 only; elsewhere nothing changes.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        state = _control(builder, None)
        if state is None:
            return ir.Constant(ir.IntType(32), 0)
        _control(builder, builder.or_(state, ir.Constant(ir.IntType(32), _TINY_IS_ZERO)))
        return state

    return types.int32(), generate


@intrinsic  # type: ignore[untyped-decorator]
def restore_tiny(_: Any, state: Any) -> Any:
    """Tiny numbers are again what they were before ``count_tiny_as_zero``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _control(builder, arguments[0])
        return context.get_dummy_value()

    return types.void(types.int32), generate


_TINY_IS_ZERO = 0x8040  # of MXCSR: results are flushed to zero, operands are taken for zero


def _control(builder: Any, state: Any) -> Any:
    """Reads the control register of floating-point vectors, or sets it; None where it is not an x86."""
    if not binding.get_process_triple().startswith(("x86_64", "i686")):
        return None
    word, byte = ir.IntType(32), ir.IntType(8).as_pointer()
    room = cgutils.alloca_once(builder, word)
    kind = ir.FunctionType(ir.VoidType(), [byte])
    place = builder.bitcast(room, byte)
    if state is None:
        builder.call(_declared(builder, kind, "llvm.x86.sse.stmxcsr"), [place])
        return builder.load(room)
    builder.store(state, room)
    builder.call(_declared(builder, kind, "llvm.x86.sse.ldmxcsr"), [place])
    return state


def _declared(builder: Any, kind: Any, name: str) -> Any:
    module = builder.module
    return module.globals.get(name) or ir.Function(module, kind, name)


@compiled
def aligned(address: Any) -> Any:
    """The first address from here on at which a vector may start without crossing two lines of the cache."""
    return (address + 63) // 64 * 64
