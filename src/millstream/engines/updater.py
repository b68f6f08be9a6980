"""Engines for a loop of one's own: ``compile`` a model once, then give it records, one at a time or many.

    updater = millstream.compile(model, "cross_entropy", optimizer)
    for x, y in records:
        outcome = updater.learn(x, y)   # predicted, scored, then learned

It knows tensors; sources, features, metrics and commits are the trainer's.

Shapes: N records, C outputs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from millstream import losses
from millstream.contracts import Chunk, Engine, Loss, Outcome, map_tensors
from millstream.engines.choice import choose
from millstream.engines.failures import OF_TORCH, failed, num_records, predicted
from millstream.engines.rule import UpdateRule, parameter_of
from millstream.errors import DataError, LearningError, MillstreamError, SettingError
from millstream.rows import by_rows, rows_of

__all__ = ["Updater", "compile"]

_FLOAT32 = np.dtype(np.float32)  # in the order of bytes of this machine
_DENSE = torch.strided
_NUMBERS = frozenset({int, float, bool})
_DO = "check their width and type; one record has no dimension of records (one=True), and a y that is a number"


def compile(
    model: nn.Module,
    loss: str | Loss | Callable[[Any, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    class_weights: Tensor | Sequence[float] | None = None,
    scheduler: LRScheduler | None = None,
    clip_norm: float | None = None,
    clip_value: float | None = None,
    scoring: Literal["eval", "train"] = "eval",
    seed: int = 0,
    engine: str = "auto",
) -> Updater:
    """The updates of a model as one call, by the fastest engine that takes it.

    ``model`` and ``optimizer`` stay the person's own and are changed in place. ``loss`` is a name (``losses.NAMES``)
    or a callable that gives one value per record. ``scheduler`` steps after every update. ``clip_norm`` and
    ``clip_value`` bound an update's gradient. ``scoring`` is the mode in which a record is predicted before its
    update. ``seed`` is the key of dropout, with the position of the record. Raises ``SettingError`` and ``ModelError``.

    >>> model = nn.Linear(3, 2)
    >>> updater = compile(model, "cross_entropy", torch.optim.SGD(model.parameters(), lr=0.1))
    >>> updater.learn(torch.ones(3), 1).outputs.shape
    torch.Size([1, 2])
    >>> updater.learn(torch.ones(5, 3), torch.tensor([0, 1, 1, 0, 1])).num_updates
    5
    >>> updater.position
    6
    """
    if scoring not in ("eval", "train"):
        raise SettingError(got=f"scoring={scoring!r}", wanted="eval or train", do="leave it out for eval")
    if isinstance(scheduler, ReduceLROnPlateau):
        raise SettingError(
            got="a scheduler that waits for a loss", wanted="one that steps after every update", do="step it yourself"
        )
    resolved = losses.resolve(loss, class_weights, parameter_of(model))
    rule = UpdateRule(model, resolved, optimizer, scheduler, clip_norm, clip_value, scoring, seed)
    return Updater(rule, choose(engine, rule))


class Updater:
    """Learns records as they are handed over: one, or many, ``update_size`` of them an update.

    ``position`` is the run position of the next record: it counts on, and with the seed is the key of all that is
    random in an update. Set it to go on where another process stood; weights and optimizer state are torch's own.
    """

    def __init__(self, rule: UpdateRule, engine: Engine) -> None:
        self.rule = rule
        self.position = 0
        self._engine = engine
        like = parameter_of(rule.model)
        self._device, self._number = like.device, like.dtype
        self._is_elsewhere = self._device.type != "cpu"
        self._is_plain = not self._is_elsewhere and self._number == torch.float32
        self._label = self._number if rule.loss.task in ("binary", "number") else torch.int64  # of whole numbers
        self._shape: tuple[int, ...] | None = None  # of the outputs for one record, once it was looked at
        self._by_reference = ""

    @property
    def engine(self) -> str:
        """Which engine computed the last updates; ``Outcome.by_reference`` says why where it is another than before."""
        return "reference" if self._by_reference else self._engine.name

    def learn(self, x: Any, y: Any, weights: Any = None, *, update_size: int = 1) -> Outcome:
        """Predicts, scores, then learns; the outcome is of *before* the update.

        ``y`` says how many records there are. If it is a number (or has no dimension) there is one: ``x`` has no
        dimension of records, and ``weights`` is a number. Else there are N: ``x`` is (N, …), ``y`` (N,) or (N, C),
        ``weights`` (N,). ``x`` is a tensor or an array, or a tuple or dict of them; floats of NumPy get the model's
        type; a tensor may be sparse rows (N, S), CSR or COO. Raises ``DataError`` for labels and lengths that do not
        fit, ``ModelError`` where the model fails.
        """
        is_one = type(y) in _NUMBERS or getattr(y, "ndim", 1) == 0
        inputs = self._one(x) if is_one else _each(x, self._tensor)
        shape = self._look(inputs) if self._shape is None else self._shape
        targets = self._one_label(y) if is_one else self._tensor(y, "y")
        chunk = Chunk(inputs, targets, None, start=self.position)
        chunk.targets = losses.fitting_labels(self.rule.loss, chunk, shape, self._number)
        self._shape = shape
        if weights is not None:
            chunk.weights = self._weights(weights, is_one)
        if not is_one or update_size != 1:
            self._check(chunk, update_size)
        try:
            outcome = self._engine.learn(chunk, update_size)
        except LearningError as error:
            self.position += error.num_learned
            raise
        except MillstreamError:
            raise
        except OF_TORCH as error:
            raise failed(error, inputs, _DO) from error
        self.position += chunk.span
        self._by_reference = outcome.by_reference
        return outcome

    def predict(self, x: Any, *, one: bool = False) -> Tensor:
        """(N, …) raw outputs of N records in eval mode; with ``one`` those of one, without a dimension of records."""
        inputs = self._one(x) if one else _each(x, self._tensor)
        outputs = predicted(self._engine, inputs, _DO)
        return outputs[0] if one else outputs

    def _look(self, inputs: Any) -> tuple[int, ...]:
        """Predicts the first record that comes: a model that does not fit is refused before it has learned anything."""
        if not num_records(inputs):
            raise DataError(got="no records", wanted="at least one", do="leave the call out")
        return tuple(self.predict(_each(inputs, lambda part: rows_of(part, slice(0, 1)))).shape[1:])

    def _one(self, x: Any) -> Any:
        """The tensors of one record, with a dimension of records."""
        is_elsewhere = self._is_elsewhere
        if type(x) is Tensor and x.layout is _DENSE and not (x.requires_grad or is_elsewhere):  # what is often given
            return x[None]
        if type(x) is np.ndarray and x.dtype == _FLOAT32 and x.flags.carray and self._is_plain:
            return torch.from_numpy(x)[None]
        return _each(x, lambda part: _one_row(self._any_tensor(part, "x")))

    def _one_label(self, y: Any) -> Tensor:
        """(1,) the label of one record."""
        if type(y) not in _NUMBERS:
            y = y.item()
        dtype = self._number if type(y) is float else self._label
        return torch.full((1,), y, dtype=dtype, device=self._device)

    def _weights(self, weights: Any, is_one: bool) -> Tensor:
        if is_one and type(weights) in _NUMBERS:
            return torch.full((1,), weights, dtype=self._number, device=self._device)
        tensor = self._tensor(weights, "weights").to(self._number)
        if tensor.ndim != (not is_one):
            shape = tuple(tensor.shape)
            raise DataError(got=f"weights of shape {shape}", wanted="one for each record", do="flatten them")
        return tensor.reshape(-1)

    def _check(self, chunk: Chunk, update_size: int) -> None:
        if type(update_size) is not int or update_size < 1:
            raise SettingError(got=f"update_size={update_size!r}", wanted="a whole number, 1 or more", do="try 1")
        num = len(chunk)
        _each(chunk.inputs, lambda part: _same_length(part, "x", num))
        for name, part in (("y", chunk.targets), ("weights", chunk.weights)):
            if part is not None:
                _same_length(part, name, num)
        if not num:
            raise DataError(got="no records", wanted="at least one", do="leave the call out")

    def _tensor(self, value: Any, name: str = "x") -> Tensor:
        return by_rows(self._any_tensor(value, name), name)

    def _any_tensor(self, value: Any, name: str) -> Tensor:
        if isinstance(value, Tensor):
            tensor = value.detach()
        else:
            tensor = _of_array(value, name)
            tensor = tensor.to(self._number) if tensor.is_floating_point() else tensor
        return tensor.to(self._device) if self._is_elsewhere else tensor


def _one_row(tensor: Tensor) -> Tensor:
    """One record with a dimension of records."""
    if tensor.layout is torch.sparse_csr:  # which torch has for matrices only
        shape = tuple(tensor.shape)
        raise DataError(got=f"sparse rows {shape} for one label", wanted="a label each", do="give y as a tensor, (N,)")
    return by_rows(tensor[None])


def _of_array(value: Any, name: str) -> Tensor:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise DataError(got=f"{name} of unequal rows", wanted="rows of one length", do="pad or cut them") from error
    if array.dtype.kind not in "biuf":
        raise DataError(got=f"{name} of type {array.dtype}", wanted="numbers", do="convert it to numbers first")
    if array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    elif array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(array.shape)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # it is only read
        return torch.from_numpy(array)


def _each(inputs: Any, function: Callable[[Any], Any]) -> Any:
    """A function of each tensor of the inputs, in the same form."""
    if isinstance(inputs, dict | tuple) and not inputs:
        raise DataError(got="inputs without a tensor", wanted="at least one", do="check how x was made")
    return map_tensors(inputs, function)


def _same_length(part: Tensor, name: str, num: int) -> None:
    if not part.ndim or len(part) != num:
        found = len(part) if part.ndim else "one number"
        raise DataError(
            got=f"{found} in {name} for {num} records in x",
            wanted="one for each record",
            do="give x and y the same length, or one record without a dimension of records and a y that is a number",
        )
