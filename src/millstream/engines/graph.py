"""Reads a torch model as a tape: the operations that ``torch.fx`` finds in it, in order, with the shapes of a record.

It gives either a ``Tape`` or the reason why there is none. It computes nothing but one prediction, for the shapes.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from millstream.contracts import Inputs
from millstream.engines.arithmetic import SPLITS, taken
from millstream.engines.kernels import layout
from millstream.engines.operations import Found, Unknown, first_argument
from millstream.engines.tracing import CASTS, FUNCTIONS, METHODS, MODULES, RESHAPES, first_line

__all__ = ["Operation", "Tape", "Value", "read", "root_of"]


@dataclasses.dataclass(slots=True)
class Value:
    """A vector per record: computed, a part or another name of one that is (``root``), or an input of the model."""

    name: str
    shape: tuple[int, ...]  # of one record
    root: str = ""  # the value that it lies in, from element ``first`` on
    first: int = 0
    path: tuple[Any, ...] | None = None  # of keys into the inputs, if it is one
    dtype: torch.dtype = torch.float32
    is_sparse: bool = False  # an input of rows that name their columns; how many differs from record to record

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclasses.dataclass(slots=True)
class Operation:
    """One line of the tape; see ``kernels.layout`` for what ``code`` and ``extra`` say."""

    kind: int
    source: str
    output: str
    other: str = ""
    weight: nn.Parameter | None = None
    bias: nn.Parameter | None = None
    code: int = 0
    extra: int = 0
    argument: float = 0.0
    geometry: tuple[int, ...] = ()
    places: Tensor | None = None  # (size of the output,) that elements are taken from


@dataclasses.dataclass(slots=True)
class Tape:
    """A model as operations over values, the last of which is the model's output."""

    operations: list[Operation]
    values: dict[str, Value]
    output: Value


def root_of(values: dict[str, Value], name: str) -> tuple[str, int]:
    """The value whose memory another lies in (itself, if it has its own), and its first element there."""
    value, first = values[name], 0
    while value.root:
        first += value.first
        value = values[value.root]
    return value.name, first


@contextmanager
def _as_found(model: nn.Module) -> Iterator[None]:
    """On leaving, every module is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class _Shapes(fx.Interpreter):
    """Runs a graph once and notes what every node gives."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module, garbage_collect_values=True)
        self.found: dict[str, tuple[torch.Size, torch.dtype] | None] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.found[n.name] = (result.shape, result.dtype) if isinstance(result, Tensor) else None
        return result


def read(graph_module: fx.GraphModule, model: nn.Module, two_records: Inputs) -> Tape | str:
    """The tape for inputs of this structure, or why there is none."""
    shapes = _Shapes(graph_module)
    try:
        with _as_found(model), torch.no_grad():
            model.eval()
            if not _are_equal(shapes.run(two_records), model(two_records)):
                return "the model's forward does other things for such inputs than torch.fx sees"
    except Exception as error:  # a forward that does other things for other kinds of inputs
        return f"the model's forward, as torch.fx sees it, does not take them ({first_line(error)})"
    reader = _Reader(model, shapes.found, two_records)
    try:
        for node in graph_module.graph.nodes:
            reader.take(node)
        return reader.tape()
    except Unknown as unknown:
        return str(unknown)


def _are_equal(one: Any, other: Any) -> bool:
    both = isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape == other.shape
    return both and bool(torch.isclose(one, other, equal_nan=True).all())


class _Reader:
    """Takes one node of the graph after another."""

    def __init__(self, model: nn.Module, shapes: dict[str, Any], inputs: Inputs) -> None:
        self._model, self._shapes = model, shapes
        self._inputs: dict[str, tuple[Any, tuple[Any, ...]]] = {}  # what a node is of the inputs, and the path to it
        self._whole = inputs
        self._values: dict[str, Value] = {}
        self._parameters: dict[str, nn.Parameter] = {}
        self._operations: list[Operation] = []
        self._output = ""
        self._num_draws = 0
        self._renamed: set[str] = set()

    def take(self, node: fx.Node) -> None:
        match node.op:
            case "placeholder":
                self._take_input(node, self._whole, ())
            case "get_attr":
                self._parameters[node.name] = self._parameter(str(node.target))
            case "output":
                self._output = self._name(node.args[0])
            case "call_module":
                module = self._model.get_submodule(str(node.target))
                if isinstance(module, nn.Identity | nn.Flatten | nn.Unflatten) or self._drops_nothing(module):
                    self._rename(node)
                else:
                    self._add(node, MODULES[type(module)](module, node, self))
            case _:
                self._call(node)

    def _drops_nothing(self, module: nn.Module) -> bool:
        if not isinstance(module, nn.Dropout) or (module.training and module.p > 0):
            return False
        if module.training:
            self.count_draw()  # it counts, though it draws nothing
        return True

    def _call(self, node: fx.Node) -> None:
        target = node.target
        if self._shapes[node.name] is None and not self._leads_into_inputs(node):
            return  # a size, for a reshape; or a split, whose parts are taken one by one
        if target in (operator.getitem, "get"):
            self._index(node)
        elif target in CASTS:
            self._cast(node)
        elif target is torch.flatten or target in RESHAPES:
            self._rename(node)
        elif target is torch.cat:
            self._concatenate(node)
        elif target is getattr:
            raise Unknown(f"{node.name}, an attribute of a tensor")
        else:
            table: dict[Any, Callable[..., Found]] = FUNCTIONS if node.op == "call_function" else METHODS
            self._add(node, table[target](node, self))

    def tape(self) -> Tape:
        if not self._operations:
            raise Unknown("the model computes nothing")
        self._refuse_what_is_not_used()
        output = self._values[self._output]
        last = self._values[self._operations[-1].output]
        if (self._root(output.name), output.size) != (self._root(last.name), last.size):
            end = self._new("the output", output.shape)
            self._operations.append(Operation(layout.COPY, output.name, end.name))
            last = end
        return Tape(self._operations, self._values, dataclasses.replace(last, shape=output.shape))

    def _refuse_what_is_not_used(self) -> None:
        """Torch gives no gradient, and so no step, to what does not reach the output."""
        needed = {self._root(self._output)}
        for operation in reversed(self._operations):
            if self._root(operation.output) not in needed:
                raise Unknown(f"{operation.output} is computed and not used")
            needed |= {self._root(name) for name in (operation.source, operation.other) if name}

    # What the readers of single operations ask.

    def value(self, node: Any) -> Value:
        """The value that a node stands for, of numbers to compute with."""
        found = self.ids(node)
        if not found.dtype.is_floating_point:
            raise Unknown(f"{node} are whole numbers that are computed with")
        if found.is_sparse:
            raise Unknown(f"{node} is sparse, and read by something else than a Linear")
        return found

    def numbers_and_columns(self, sparse: Value) -> tuple[str, str]:
        """The names of the numbers and of the columns of a sparse input, as values of their own."""
        names = f"{sparse.name} numbers", f"{sparse.name} columns"
        for name, dtype in zip(names, (sparse.dtype, torch.int64), strict=True):
            self._values[name] = dataclasses.replace(sparse, name=name, shape=(0,), dtype=dtype)
        return names

    def ids(self, node: Any) -> Value:
        """The value that a node stands for, whatever it holds."""
        return self._values[self._name(node)]

    def parameter(self, node: Any) -> nn.Parameter:
        if not isinstance(node, fx.Node) or node.name not in self._parameters:
            raise Unknown("a weight that is computed")
        return self._parameters[node.name]

    def is_parameter(self, node: Any) -> bool:
        return isinstance(node, fx.Node) and node.name in self._parameters

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """The shape that a node gives for one record."""
        found = self._shapes[node.name]
        if found is None or not found[0] or found[0][0] != 2:
            raise Unknown(f"{node.name} does not keep records apart")
        return tuple(found[0][1:])

    def count_draw(self) -> int:
        """The number of this dropout call, from 0."""
        self._num_draws += 1
        return self._num_draws - 1

    def is_last_use(self, node: fx.Node, of: Any) -> bool:
        """Whether nothing but this node reads another, or what that is a view of: what works in place must be sure."""
        while isinstance(of, fx.Node):
            if any(user is not node for user in of.users):
                return False
            if of.name not in self._renamed:
                return True
            node, of = of, first_argument(of)  # what is renamed is the same memory
        return True

    def _parameter(self, path: str) -> nn.Parameter:
        found: Any = self._model
        for part in path.split("."):
            found = getattr(found, part)
        if not isinstance(found, nn.Parameter):
            raise Unknown(f"the model's forward uses {path}, which is not a parameter")
        return found

    def _name(self, node: Any) -> str:
        if not isinstance(node, fx.Node) or node.name not in self._values:
            raise Unknown(f"{node} is not a value of a record")
        return node.name

    def _root(self, name: str) -> str:
        return root_of(self._values, name)[0]

    def _new(self, name: str, shape: tuple[int, ...], root: str = "", first: int = 0) -> Value:
        self._values[name] = Value(name, shape, root, first)
        found = self._shapes.get(name)
        if found is not None:
            self._values[name].dtype = found[1]
        return self._values[name]

    def more(self, shape: tuple[int, ...], **found: Any) -> str:
        """A line of the tape beside the one that a node becomes; the name of its value."""
        name = f"line {len(self._operations)}"
        self._new(name, shape)
        self._operations.append(Operation(output=name, **found))
        return name

    def _add(self, node: fx.Node, found: Found) -> None:
        self._new(node.name, self.shape(node))
        if found["kind"] == layout.TAKE:
            self._renamed.add(node.name)  # torch has a view of the same memory
        self._operations.append(Operation(output=node.name, **found))

    def _rename(self, node: fx.Node) -> None:
        value, shape = self.ids(first_argument(node)), self.shape(node)
        self._renamed.add(node.name)
        if math.prod(shape) != value.size:
            raise Unknown(f"{node.name} changes the number of elements")
        if value.path is not None:
            self._values[node.name] = dataclasses.replace(value, name=node.name, shape=shape)
        else:
            self._new(node.name, shape, value.name)

    def _cast(self, node: fx.Node) -> None:
        value = self.ids(first_argument(node))
        if CASTS[str(node.target)] != value.dtype:
            raise Unknown(f"{node.name} changes the type of numbers")
        self._rename(node)

    def _leads_into_inputs(self, node: fx.Node) -> bool:
        return bool(node.args) and isinstance(node.args[0], fx.Node) and node.args[0].name in self._inputs

    def _take_input(self, node: fx.Node, found: Any, path: tuple[Any, ...]) -> None:
        if isinstance(found, Tensor):
            is_sparse = found.layout is torch.sparse_csr
            shape = tuple(found.shape[1:])
            self._values[node.name] = Value(node.name, shape, path=path, dtype=found.dtype, is_sparse=is_sparse)
        else:
            self._inputs[node.name] = (found, path)

    def _index(self, node: fx.Node) -> None:
        source, key = node.args[0], node.args[1]
        if isinstance(source, fx.Node) and source.name in self._inputs:
            found, path = self._inputs[source.name]
            if isinstance(key, fx.Node) or len(node.args) > 2:
                raise Unknown("a key of the inputs that is computed")
            self._take_input(node, found[key], (*path, key))
            return
        if isinstance(source, fx.Node) and source.target in SPLITS:
            self._add(node, taken(node, self))
            return
        value, shape = self.ids(source), self.shape(node)
        columns = key[1] if isinstance(key, tuple) and len(key) == 2 and key[0] == slice(None) else None
        if value.path is None or len(value.shape) != 1 or not isinstance(columns, int | slice):
            self._add(node, taken(node, self))
            return
        if isinstance(columns, slice):
            first, stop, step = columns.indices(value.size)
            if step != 1 or stop <= first:
                raise Unknown(f"{node.name} takes columns that do not follow each other")
        else:
            first = columns % value.size
        self._values[node.name] = dataclasses.replace(value, name=node.name, shape=shape, first=value.first + first)

    def _concatenate(self, node: fx.Node) -> None:
        """Each part is computed where it belongs, or copied there if others read it too."""
        parts = first_argument(node)
        dimension = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        shape = self.shape(node)
        if not isinstance(parts, list | tuple) or dimension not in (1, -len(shape)):
            raise Unknown(f"{node.name} joins values in a way that is not known")
        self._new(node.name, shape)
        first = 0
        for number, part in enumerate(parts):
            value = self.value(part)
            computed = value.path is None and not value.root
            if computed and len(part.users) == 1 and parts.count(part) == 1:
                value.root, value.first = node.name, first
            else:
                place = self._new(f"{node.name} {number}", value.shape, node.name, first)
                self._operations.append(Operation(layout.COPY, value.name, place.name))
            first += value.size
