"""The fused engine: the algorithm of the per-sample loop, unchanged, as one compiled loop over the records.

Weights and optimizer state are torch's own, changed in place, so engines may be swapped between two chunks. What a
record does to a matrix is applied while the next record goes forward through it (see ``kernels.dense``); a large first
layer under SGD may do its work in blocks of records, as mini-batches do theirs (see ``kernels.blocks``). Sums are taken
in another order than the reference takes them, and that is all.

Shapes: N records, M questions, K records of a block.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
import pickle
import shutil
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from millstream.contracts import Chunk, Inputs, Outcome, Questions, map_tensors
from millstream.engines import compiling, graph, optimizers, tracing
from millstream.engines import criterion as criteria
from millstream.engines.blocks import Blocks, Call
from millstream.engines.criterion import Criterion
from millstream.engines.kernels import compiled, tables
from millstream.engines.optimizers import Schedule
from millstream.engines.program import Program
from millstream.engines.randomness import keys
from millstream.engines.reference import ReferenceEngine
from millstream.engines.rule import OfOneRule, UpdateRule
from millstream.errors import DataError, ModelError
from millstream.losses import NamedLoss
from millstream.rows import rows_of

__all__ = ["FusedEngine", "make_ready"]

_log = logging.getLogger("millstream")
_MOST_MACHINES = 16  # for inputs of different structures
_BYTES_OF_A_CHUNK = 1e10  # a quarter of a second on the machine that this was measured on: then signals are heard
_FEW = 8  # records for which matrix products of a block do not pay


class FusedEngine(OfOneRule):
    """Updates of one record by a compiled loop; larger ones by the reference engine, as torch is good at them."""

    name = "fused"

    def __init__(self, rule: UpdateRule) -> None:
        found = _graph_of(rule)
        if isinstance(found, str):
            raise ModelError(got=found, wanted="what the fused engine knows", do="leave the engine at 'auto'")
        self.rule, self._graph = rule, found
        self._reference = ReferenceEngine(rule)
        self._parameters = list(rule.model.parameters())
        self._dropouts = [part for part in rule.model.modules() if isinstance(part, nn.Dropout)]
        self._machines: dict[Any, _Machine | str] = {}
        self._hooks = [*tracing.hooks(rule.model), *optimizers.hooks(rule.optimizer)]
        self._owned = [kept for part in rule.model.modules() for kept in (part._modules, part._parameters) if kept]
        self._identities = self._found_identities()
        most = math.log2(_BYTES_OF_A_CHUNK / max(1.0, optimizers.bytes_moved(rule)))
        self._chunk_size = 2 ** min(12, max(3, math.floor(most)))
        make_ready(self._parameters[0].dtype)

    def __getstate__(self) -> UpdateRule:
        """A copy is made anew of a copy of the rule: tables of addresses belong to one engine alone."""
        return self.rule

    def __setstate__(self, rule: UpdateRule) -> None:
        self.__init__(rule)  # type: ignore[misc]

    @staticmethod
    def declines(rule: UpdateRule) -> str:
        """Why this engine does not take the rule; empty if it does."""
        found = _graph_of(rule)
        return found if isinstance(found, str) else ""

    def chunk_size(self, update_size: int) -> int:
        return self._chunk_size if update_size == 1 else self._reference.chunk_size(update_size)

    def predict(self, inputs: Inputs) -> Tensor:
        return self._reference.predict(inputs)

    def learn(self, chunk: Chunk, update_size: int, questions: Questions | None = None) -> Outcome:
        found = self._learn(chunk, update_size, questions)
        if isinstance(found, Outcome):
            return found
        outcome = self._reference.learn(chunk, update_size, questions)
        outcome.by_reference = found
        return outcome

    def _learn(self, chunk: Chunk, update_size: int, questions: Questions | None) -> Outcome | str:
        """What came of the chunk, or why it is left to the reference."""
        if not len(chunk):
            return "no records"
        if update_size > 1:
            return "updates of more than one record are torch's own case"
        if any(self._hooks):
            return "hooks of the model or the optimizer"
        if torch.is_autocast_enabled("cpu"):
            return "torch.autocast is on"
        machine = self._machine(chunk.inputs)
        if isinstance(machine, str):
            return machine
        if questions is not None and _structure(questions.chunk.inputs) != _structure(chunk.inputs):
            return "questions of another shape than the lessons"
        with torch.no_grad():
            return machine.learn(chunk, questions)

    def _found_identities(self) -> list[int]:
        """Of the modules and parameters that the model is made of."""
        return [id(part) for kept in self._owned for part in kept.values()]

    def _machine(self, inputs: Inputs) -> _Machine | str:
        """What runs inputs of this structure by the rule as it is now; made when the two are first seen."""
        rule = self.rule
        if self._found_identities() != self._identities:
            return "a model whose modules or parameters were replaced"
        facts = (
            *(_structure(inputs), rule.scoring, rule.clip_norm, rule.clip_value),
            tuple(part.p for part in self._dropouts),
            tuple((p.shape, p.stride(), p.dtype) for p in self._parameters),
        )
        machine = self._machines.get(facts)
        if machine is None:
            machine = self._made(inputs)
            if isinstance(machine, str):
                _log.warning("engine fused leaves these inputs to the reference: %s", machine)
            if len(self._machines) >= _MOST_MACHINES:
                del self._machines[next(iter(self._machines))]
            self._machines[facts] = machine
        return machine

    def _made(self, inputs: Inputs) -> _Machine | str:
        reason = "inputs of named columns" if _structure(inputs) is None else _refused_parameters(self.rule)
        if reason:
            return reason
        dtype = self._parameters[0].dtype
        self._reference._modes.train()  # what is kept in eval mode stays so, and is read so
        tape = graph.read(self._graph, self.rule.model, _two_records(inputs))
        if isinstance(tape, str):
            return tape
        taken = (dtype, torch.int64, torch.int32)
        strange = [v for v in tape.values.values() if v.path is not None and v.dtype not in taken]
        if strange:
            return f"inputs of {strange[0].dtype}"
        make_ready(dtype)
        criterion = Criterion(self.rule.loss, tape.output.shape, tape.output.size, dtype)  # type: ignore[arg-type]
        return criterion.refused() or _Machine(Program(tape, self.rule, dtype), criterion, self.rule)


def _graph_of(rule: UpdateRule) -> fx.GraphModule | str:
    """The rule's model as a graph of known parts, or why the engine declines."""
    reason = criteria.refused(rule.loss) or optimizers.refused(rule) or _refused_parameters(rule)
    return reason or tracing.trace(rule.model)


def _refused_parameters(rule: UpdateRule) -> str:
    parameters = list(rule.model.parameters())
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in parameters):
        return "parameters whose shape is not known yet"
    if any(p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None) for p in parameters):
        return "hooks of a parameter"
    if any(p.device.type != "cpu" for p in parameters):
        return "parameters that are not on the CPU"
    dtypes = {p.dtype for p in parameters}
    if len(dtypes) != 1 or not dtypes <= {torch.float32, torch.float64}:
        return "parameters that are not all float32 (or all float64)"
    if not all(p.is_contiguous() for p in parameters):
        return "parameters that are not contiguous"
    spans = sorted((p.data_ptr(), p.data_ptr() + p.numel() * p.element_size()) for p in parameters)
    if any(end > start for (_, end), (start, _) in itertools.pairwise(spans)):
        return "parameters that share memory"
    return ""


def _structure(inputs: Inputs) -> Any:
    """What inputs must have in common to be run by the same tables; None for what is no tensor."""
    if isinstance(inputs, Tensor):
        return inputs.shape[1:], inputs.dtype, inputs.layout
    if isinstance(inputs, dict):
        return tuple((name, _structure(value)) for name, value in inputs.items())
    return tuple(_structure(value) for value in inputs) if isinstance(inputs, tuple) else None


def _two_records(inputs: Inputs) -> Inputs:
    """The first record twice: enough to see the shapes."""
    places = torch.zeros(2, dtype=torch.int64)
    twice: Inputs = map_tensors(inputs, lambda part: rows_of(part.detach(), places))
    return twice


def _strange_ids(program: Program, chunk: Chunk) -> DataError:
    """The first id that its table does not hold: torch would come to it when the records before it are learned."""
    found = []
    for op in program.tape.operations:
        value = program.tape.values[op.source]
        if value.path is None or value.dtype.is_floating_point or op.weight is None:
            continue
        part: Any = chunk.inputs
        for key in value.path:
            part = part[key]
        ids = part.reshape(len(part), -1)[:, value.first : value.first + value.size]
        for row, column in ((ids < 0) | (ids >= len(op.weight))).nonzero()[:1].tolist():
            found.append((row, int(ids[row, column]), len(op.weight)))
    row, number, num_rows = min(found)
    return DataError(
        got=f"id {number} at {chunk.where(row)} for a table of {num_rows:,} rows",
        wanted=f"0 to {num_rows - 1}",
        do="correct the id, or give the embedding more rows",
    )


class _Machine:
    """A program and a criterion, and the calls of the kernels."""

    def __init__(self, program: Program, criterion: Criterion, rule: UpdateRule) -> None:
        self._program, self._criterion, self._rule = program, criterion, rule
        self._clip_norm = math.inf if rule.clip_norm is None else float(rule.clip_norm)
        self._numbers = float(criterion.loss.parameter or 0.0), float(criterion.loss.label_smoothing)
        self._class_weights = criterion.class_weights
        network = program.network
        network[tables.LOSS], network[tables.SCORES_IN_TRAINING] = criterion.kind, rule.scoring == "train"
        network[tables.CLASS_WEIGHTS] = self._class_weights.data_ptr()
        network[tables.NUM_CLASS_WEIGHTS] = len(self._class_weights)

    def learn(self, chunk: Chunk, questions: Questions | None) -> Outcome | str:
        """What came of the chunk, or why torch should look at it."""
        call = self._call(chunk)
        asked = None if questions is None else self._call(questions.chunk)
        for made in (call, asked):
            if isinstance(made, str):
                return made
        reason = self._program.refresh()
        if reason:
            return reason
        try:
            return self._learn(call, asked, questions)  # type: ignore[arg-type]
        finally:
            self._program.state.give_back()

    def _learn(self, call: Call, asked: Call | None, questions: Questions | None) -> Outcome | str:
        num = len(call.losses)
        schedule = None if self._rule.scheduler is None else Schedule(self._rule, self._program.state)
        dials = self._program.dials if schedule is None else schedule.dials(num)
        if dials is None:
            return "a schedule that ends, or turns momentum or decay on or off"
        if self._criterion.loss.class_weights is not None:  # which may have been changed in place
            self._class_weights.copy_(self._criterion.loss.class_weights)
        if questions is None or asked is None:
            answered, applied = call, self._run(call, 0, num, dials)
        else:
            answered, applied = asked, self._between(call, asked, questions.learned_before, dials)
        if schedule is not None:
            schedule.advance(applied)
        places = tuple(call.skipped.nonzero()[:, 0].tolist()) if applied < num else ()
        return Outcome(answered.outputs.view(-1, *self._criterion.shape), answered.losses, applied, places)

    def _call(self, chunk: Chunk) -> Call | str:
        num, dtype = len(chunk), self._criterion.dtype
        inputs, labels = self._program.tensors(chunk.inputs, num), self._criterion.labels(chunk)
        if inputs is None:
            raise _strange_ids(self._program, chunk)
        if labels is None:
            return f"labels that only torch takes for {self._criterion.loss.name} (-100, NaN, another shape)"
        if any(len(part) != num for part in labels if part is not None):
            return "inputs, labels and weights of unequal lengths"
        draws = None
        if self._program.is_random:
            draws = torch.from_numpy(keys(self._rule.seed, chunk.positions()).astype(np.int64))
        outputs, losses_N = torch.empty(num, self._criterion.size, dtype=dtype), torch.empty(num, dtype=dtype)
        skipped = torch.zeros(num, dtype=torch.bool)
        return Call(self._program, inputs, labels, draws, outputs, losses_N, skipped, self._numbers, self._clip_norm)

    def _between(self, call: Call, asked: Call, before: npt.NDArray[np.int64], dials: npt.NDArray[np.float64]) -> int:
        """Answers each question once exactly the records before it were learned."""
        learned = first = applied = 0
        while first < len(before):
            due = int(before[first])
            last = int(np.searchsorted(before, due, side="right"))
            applied += self._run(call, learned, due, dials[min(applied, len(dials) - 1) :])
            asked.answer(first, last)
            learned, first = max(learned, due), last
        return applied + self._run(call, learned, len(call.losses), dials[min(applied, len(dials) - 1) :])

    def _run(self, call: Call, first: int, last: int, dials: npt.NDArray[np.float64]) -> int:
        """Learns records ``first`` to ``last`` of a call; gives the number of updates."""
        if last <= first:
            return 0
        blocks = Blocks.pay(self._program) if last - first >= _FEW else None
        return call.learn(first, last, dials) if blocks is None else blocks.learn(call, first, last, dials)


@functools.cache
def make_ready(dtype: torch.dtype) -> None:
    """Loads the compiled loops for this type of number, or has them compiled, before anybody takes the time."""
    use = functools.partial(use_once, dtype)
    if not compiling.load(use):
        _log.warning("compiling the loops of the fused engine; this takes half a minute, once")
        compiling.compile_apart(__name__, f"use_once({dtype})")
        use()


def use_once(dtype: torch.dtype) -> None:
    """Answers and learns one record, so that all loops are there: always in this order."""
    model = nn.Linear(1, 1, dtype=dtype)
    rule = UpdateRule(model, NamedLoss("mse"), torch.optim.SGD(model.parameters(), lr=0.0))
    inputs = torch.zeros(1, 1, dtype=dtype)
    tape = graph.read(fx.GraphModule(model, fx.Tracer().trace(model)), model, inputs.repeat(2, 1))
    assert isinstance(tape, graph.Tape)
    machine = _Machine(Program(tape, rule, dtype), Criterion(NamedLoss("mse"), (1,), 1, dtype), rule)
    chunk = Chunk(inputs, inputs)
    questions = Questions(chunk, np.zeros(1, np.int64))
    with torch.no_grad():
        try:
            machine.learn(chunk, questions)
        except (pickle.UnpicklingError, EOFError):  # a cache that was cut short, as by a full disk
            shutil.rmtree(compiled.cache_folder(), ignore_errors=True)
            machine.learn(chunk, questions)
