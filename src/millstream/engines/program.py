"""A tape as the tables that the kernels run: numbers for names, addresses for tensors, room for what is computed.

Shapes: P operations, V values, Q parameters, J inputs.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from millstream.contracts import Inputs
from millstream.engines.graph import Operation, Tape, Value, root_of
from millstream.engines.kernels import convolution, dense, layout, steps, tables
from millstream.engines.optimizers import OptimizerState, tables_by_rows, takes_rows
from millstream.engines.randomness import scale_of
from millstream.engines.rule import UpdateRule

__all__ = ["ALIGNMENT", "Bound", "Program"]

ALIGNMENT = 64  # bytes of a cache line and of the widest vector


class Bound(NamedTuple):
    """An input as the tables want it: (N, ·); or what all sparse rows hold in a line, and where each row begins."""

    tensor: Tensor
    edges: Tensor | None = None  # (N + 1,)


class Program:
    """The tables of one model and its optimizer, for inputs of one structure."""

    def __init__(self, tape: Tape, rule: UpdateRule, dtype: torch.dtype) -> None:
        self.tape, self._rule, self._dtype = tape, rule, dtype
        found = {id(p): p for op in tape.operations for p in (op.weight, op.bias) if p is not None}
        self.parameters = list(found.values())
        self._number = {key: number for number, key in enumerate(found)}
        self._index = {name: place for place, name in enumerate(tape.values)}
        self._rooms: list[Tensor] = []  # whatever the tables point to
        self._gradients: dict[int, Tensor] = {}
        self._by_rows = tables_by_rows(rule.model)
        values = list(tape.values.values())
        read = {name for op in tape.operations for name in (op.source, op.other)}
        self.input_values = [value for value in values if value.path is not None and value.name in read]
        sizes = np.array([0 if value.is_sparse else value.size for value in values], np.int64)
        sparse = {id(op.weight) for op in tape.operations if op.kind == layout.LINEAR_OF_COLUMNS}
        of_rows = [4 * p.numel() // len(p) for p in self.parameters if p.ndim > 1 and id(p) not in sparse]
        self._room = self._allot(2 * (max(dense.GROUP, int(sizes.max()), *of_rows) + 16)).numpy().reshape(2, -1)
        self._terms = np.zeros(steps.NUM_TERMS)
        self._values, self._slopes = self._places(values)
        self._inputs = np.zeros((len(self.input_values), tables.NUM_INPUT_COLUMNS), np.int64)
        self._inputs[:, 0] = [self._index[value.name] for value in self.input_values]
        self._table = np.zeros((len(self.parameters), layout.NUM_PARAMETER_COLUMNS), np.int64)
        self._settle()
        self._geometry = np.array(
            [op.geometry or (0,) * convolution.NUM_GEOMETRY for op in tape.operations], np.int64
        )  # a row for each operation, so that none is looked up
        self._operations_table = self._operations()
        self._arguments = np.array([self._argument(op) for op in tape.operations], np.float64)
        self._sizes = sizes
        self._mark_slopes(self._operations_table)
        self.network = self._tables()
        random = [p for p, op in enumerate(tape.operations) if op.kind == layout.DROPOUT]
        self.network[tables.FIRST_RANDOM] = random[0] if random else -1
        self.is_random = bool(random)
        self.network[tables.HAS_ROWS] = bool(sparse) or any(op.kind == layout.EMBEDDING for op in tape.operations)
        self.like = np.zeros(1, np.float32 if dtype == torch.float32 else np.float64)  # tells the kernels the type

    def refresh(self) -> str:
        """Addresses, dials and state as they are now; why they cannot be used, if they cannot."""
        if any(p._backward_hooks or p._post_accumulate_grad_hooks for p in self.parameters):
            return "hooks of a parameter"
        if self._facts != self._found_now():
            self._settle()
            self._mark_slopes(self._operations_table)
        self._table[:, layout.PLACE] = [p.data_ptr() for p in self.parameters]
        self.network[tables.OPTIMIZER] = self.state.kind
        self.network[tables.COUNTS], self.network[tables.DIALS] = self.state.counts.ctypes.data, self.dials.ctypes.data
        places = self._table[:, layout.FIRST : layout.THIRD + 1]
        places[:] = self._table[:, layout.PLACE, None]
        return "" if self.state.take_up(places) else "optimizer state that is not laid out as its parameter"

    def _tables(self) -> npt.NDArray[np.int64]:
        """Where the kernels find it all."""
        made = np.zeros(tables.NUM_TABLES, np.int64)
        for place, array in (
            (tables.OPERATIONS, self._operations_table),
            (tables.ARGUMENTS, self._arguments),
            (tables.GEOMETRY, self._geometry),
            (tables.PARAMETERS, self._table),
            (tables.VALUES, self._values),
            (tables.SLOPES, self._slopes),
            (tables.SIZES, self._sizes),
            (tables.INPUTS, self._inputs),
            (tables.TERMS, self._terms),
            (tables.ROOM, self._room),
        ):
            made[place] = array.ctypes.data
        made[tables.NUM_OPERATIONS], made[tables.NUM_PARAMETERS] = len(self._operations_table), len(self._table)
        made[tables.NUM_VALUES], made[tables.NUM_INPUTS] = len(self._sizes), len(self._inputs)
        made[tables.ROOM_WIDTH] = self._room.shape[1]
        return made

    def number(self, parameter: nn.Parameter) -> int:
        """The row of a parameter in the table."""
        return self._number[id(parameter)]

    def takes_blocks(self, parameter: nn.Parameter) -> bool:
        """Whether a block of steps of this parameter is a sum of outer products: SGD, its gradient not cut off."""
        is_outer = self._table[self.number(parameter), layout.FORM] == layout.OUTER
        return bool(is_outer) and self.state.kind == steps.SGD and self._rule.clip_value is None

    def buffer(self, parameter: nn.Parameter) -> Tensor:
        """The momentum buffer of a parameter whose state is taken up."""
        found: Tensor = self._rule.optimizer.state[parameter]["momentum_buffer"]
        return found

    def tensors(self, inputs: Inputs, num: int) -> list[Bound] | None:
        """The inputs of N records as the tables want them; None for what torch should look at."""
        found = []
        sparse: dict[tuple[Any, ...], Tensor | None] = {}
        for value in self.input_values:
            part: Any = inputs
            for key in value.path or ():
                part = part[key]
            if len(part) != num:
                return None
            if value.is_sparse:
                path = value.path or ()
                rows = sparse[path] = sparse[path] if path in sparse else _distinct(part)
                if rows is None:
                    return None
                found.append(_bound(rows, of_columns=not value.dtype.is_floating_point))
                continue
            part = part.detach().reshape(num, math.prod(part.shape[1:])).contiguous()
            if not value.dtype.is_floating_point:
                part = part.long()
                if not self._are_ids(value, part[:, value.first : value.first + value.size]):
                    return None
            found.append(Bound(part))
        return found

    def _are_ids(self, value: Value, ids: Tensor) -> bool:
        tables = [op.weight for op in self.tape.operations if op.source == value.name and op.weight is not None]
        numbers = ids.numpy()  # torch would ask all its threads
        return bool(numbers.min(initial=0) >= 0) and bool(numbers.max(initial=0) < min(len(table) for table in tables))

    def look_at(self, inputs: list[Bound], first: int) -> None:
        """The inputs of the next call begin at record ``first``, in the order of ``input_values``."""
        for row, value, (tensor, edges) in zip(self._inputs, self.input_values, inputs, strict=True):
            item = tensor.element_size()
            if edges is not None:
                row[1:] = tensor.data_ptr(), item, edges.data_ptr() + first * edges.element_size()
            else:
                stride = tensor.shape[1] * item
                row[1:] = tensor.data_ptr() + first * stride + value.first * item, stride, 0

    def _settle(self) -> None:
        """Which parameters are trained, by what form of gradient, and the dials."""
        self.state = OptimizerState(self._rule, self.parameters)
        self._facts = self._found_now()
        self.dials = self.state.dials().reshape(1, -1)
        self.gathers = (
            self.state.kind != steps.SGD or self._rule.clip_norm is not None or self._rule.clip_value is not None
        )
        uses = Counter(id(p) for op in self.tape.operations for p in (op.weight, op.bias) if p is not None)
        for number, parameter in enumerate(self.parameters):
            row = self._table[number]
            row[layout.ROWS] = len(parameter) if parameter.ndim > 1 else 1
            row[layout.COLUMNS] = parameter.numel() // row[layout.ROWS]
            row[layout.FORM] = self._form(number, uses[id(parameter)])
            row[layout.GRADIENT] = self._gradient_of(number) if row[layout.FORM] == layout.DENSE else 0

    def _gradient_of(self, number: int) -> int:
        """The address of room for a dense gradient."""
        if number not in self._gradients:
            self._gradients[number] = self._allot(self.parameters[number].numel())
        return self._gradients[number].data_ptr()

    def _found_now(self) -> tuple[Any, ...]:
        """What the forms and the dials follow from."""
        return self.state.signature(), tuple(p.requires_grad for p in self.parameters)

    def _form(self, number: int, num_uses: int) -> int:
        parameter = self.parameters[number]
        if number not in self.state.trained:
            return layout.FROZEN
        readers = [op for op in self.tape.operations if op.weight is parameter or op.bias is parameter]
        kinds = {op.kind for op in readers}
        group = self.state.groups[number]
        assert group is not None
        if (
            kinds == {layout.EMBEDDING}
            and takes_rows(self._rule.optimizer, group, is_sparse=id(parameter) in self._by_rows)
            and (num_uses == 1 or not self.gathers)
        ):
            return layout.SPARSE
        if kinds <= {layout.LINEAR, layout.LINEAR_OF_COLUMNS} and num_uses == 1:
            if readers[0].bias is parameter:
                return layout.VECTOR
            if kinds == {layout.LINEAR}:
                return layout.OUTER
            by_columns = takes_rows(self._rule.optimizer, group, is_sparse=False)
            return layout.SPARSE if by_columns else layout.DENSE
        return layout.DENSE

    def _allot(self, size: int, dtype: torch.dtype | None = None) -> Tensor:
        """Room for so many numbers, at an address that vectors like."""
        dtype = dtype or self._dtype
        spare = ALIGNMENT // dtype.itemsize
        room = torch.zeros(size + spare, dtype=dtype)
        first = -room.data_ptr() % ALIGNMENT // dtype.itemsize
        self._rooms.append(room)
        return room[first : first + size]

    def _places(self, values: list[Value]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(2, V) addresses of values and of their slopes; those of inputs are set record by record."""
        found = np.zeros((2, 2, len(values)), np.int64)  # values and slopes, two turns each
        roots = {value.name for value in values if not value.root and value.path is None}
        for place in (found[kind, turn] for kind in range(2) for turn in range(2)):
            for value in values:
                if value.name in roots:
                    place[self._index[value.name]] = self._allot(value.size).data_ptr()
            for value in values:
                if value.root:
                    root, first = root_of(self.tape.values, value.name)
                    place[self._index[value.name]] = place[self._index[root]] + first * self._dtype.itemsize
        return np.ascontiguousarray(found[0]), np.ascontiguousarray(found[1])

    def _operations(self) -> npt.NDArray[np.int64]:
        table = np.full((len(self.tape.operations), layout.NUM_OPERATION_COLUMNS), -1, np.int64)
        for row, op in zip(table, self.tape.operations, strict=True):
            row[layout.KIND], row[layout.CODE], row[layout.EXTRA] = op.kind, op.code, op.extra
            row[layout.INPUT], row[layout.OUTPUT] = self._index[op.source], self._index[op.output]
            row[layout.OTHER] = self._index[op.other] if op.other else -1
            row[layout.WEIGHT] = -1 if op.weight is None else self._number[id(op.weight)]
            row[layout.BIAS] = -1 if op.bias is None else self._number[id(op.bias)]
            self._scratch(row, op)
        return table

    def _scratch(self, row: npt.NDArray[np.int64], op: Operation) -> None:
        """Room that an operation keeps from its forward to its backward pass."""
        size = self.tape.values[op.output].size
        if op.kind == layout.LINEAR and self.state.kind == steps.FACTORED:
            row[layout.SCRATCH] = self._allot(size).data_ptr()
            row[layout.SECOND_SCRATCH] = self._allot(self.tape.values[op.source].size).data_ptr()
        elif op.kind == layout.DROPOUT:
            row[layout.SCRATCH] = self._allot(size).data_ptr()
        elif op.kind in (layout.LAYER_NORM, layout.RMS_NORM):
            row[layout.SCRATCH] = self._allot(op.code).data_ptr()
            row[layout.SECOND_SCRATCH] = self._allot(size).data_ptr()
        elif op.places is not None:
            row[layout.SCRATCH] = self._allot(size, torch.int64).copy_(op.places).data_ptr()
        elif op.kind == layout.EMBEDDING:
            row[layout.SCRATCH] = int(self.gathers)
        elif op.kind == layout.CONVOLUTION:
            geometry = np.array(op.geometry, np.int64)
            row[layout.SCRATCH] = self._allot(convolution.num_columns(geometry)).data_ptr()
            row[layout.SECOND_SCRATCH] = self._allot(convolution.num_scratch(geometry)).data_ptr()
        elif op.kind == layout.MAX_POOL:
            row[layout.SCRATCH] = self._allot(size, torch.int64).data_ptr()

    def _argument(self, op: Operation) -> float:
        number = np.float32 if self._dtype == torch.float32 else np.float64
        return scale_of(op.argument, number) if op.kind == layout.DROPOUT else op.argument

    def _mark_slopes(self, table: npt.NDArray[np.int64]) -> None:
        """Which slopes are wanted, and whether an operation is the first to write one when going backward."""
        wanted = self._wanted()
        table[:, [layout.INPUT_SLOPE, layout.OTHER_SLOPE]] = layout.UNWANTED
        written: set[str] = set()
        for row, op in reversed(list(zip(table, self.tape.operations, strict=True))):
            for name, column in ((op.source, layout.INPUT_SLOPE), (op.other, layout.OTHER_SLOPE)):
                root = self._root(name) if name else ""
                if name and root in wanted:
                    row[column] = layout.ADDS if root in written else layout.OVERWRITES
                    written.add(root)

    def _wanted(self) -> set[str]:
        """The values that depend on a trained parameter."""
        found: set[str] = set()
        for op in self.tape.operations:
            own = [self._number[id(p)] for p in (op.weight, op.bias) if p is not None]
            if set(own) & set(self.state.trained) or {self._root(n) for n in (op.source, op.other) if n} & found:
                found.add(self._root(op.output))
        return found

    def _root(self, name: str) -> str:
        return root_of(self.tape.values, name)[0]


def _distinct(rows: Tensor) -> Tensor | None:
    """Sparse rows in which no column is named twice: torch takes such numbers for their sum. None for rows that are
    none, as torch does not look at them.
    """
    edges, columns = rows.crow_indices(), rows.col_indices()
    edges_N, columns_K = edges.numpy(), columns.numpy()  # torch would ask all its threads
    if columns_K.min(initial=0) < 0 or columns_K.max(initial=0) >= rows.shape[1]:
        return None
    if edges_N[0] != 0 or edges_N[-1] != len(columns_K) or (np.diff(edges_N) < 0).any():
        return None
    rises, inner = np.diff(columns_K) > 0, edges_N[1:-1]
    rises[inner[(inner > 0) & (inner < len(columns_K))] - 1] = True  # from one row to the next
    if rises.all():
        return rows
    numbers_K = np.sort(np.repeat(np.arange(len(rows)), np.diff(edges_N)) * rows.shape[1] + columns_K)
    if (np.diff(numbers_K) > 0).all():
        return rows
    places = torch.stack([torch.repeat_interleave(edges.diff()).to(columns.dtype), columns])
    added = torch.sparse_coo_tensor(places, rows.values().detach(), rows.shape, check_invariants=False)
    return added.coalesce().to_sparse_csr()


def _bound(rows: Tensor, *, of_columns: bool) -> Bound:
    """The columns or the numbers of sparse rows."""
    edges = rows.crow_indices().long().contiguous()
    held = rows.col_indices().long() if of_columns else rows.values().detach()
    return Bound(held.contiguous(), edges)
