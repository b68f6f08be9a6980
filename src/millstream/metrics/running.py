"""Metrics: takes up outputs, targets and losses as they come, and reports.

Updates are kept until some thousand records are together, or somebody asks, and taken up at once, so that a record
costs a few vectorised passes. When they are taken up changes no bit of any result.

Shapes: N records, C classes, K outputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from millstream.contracts import State
from millstream.errors import CheckpointError, DataError, SettingError
from millstream.metrics.baselines import Given
from millstream.metrics.classes import ClassMeasures
from millstream.metrics.folds import as_array
from millstream.metrics.loss import LossMeasures
from millstream.metrics.numbers import NumberMeasures

__all__ = ["Metrics"]

_VERSION = 1
_MAX_RECORDS = 8192  # kept before they are taken up,
_RECORDS_OF_CALL = 7  # where a call counts for a few more, as its tensors are objects,
_MAX_OUTPUTS = 1 << 20  # and fewer if they hold more numbers than this

_Piece: TypeAlias = "tuple[Tensor, Tensor, Tensor, npt.NDArray[Any] | None, npt.NDArray[Any] | None]"


class Measures(Protocol):
    """What a task is measured by."""

    @property
    def headline(self) -> tuple[str, str | None]: ...
    def fold(
        self, outputs: Tensor, targets: Tensor, losses: npt.NDArray[np.float64], given: Given, guessed: Given
    ) -> None: ...
    def report(self) -> dict[str, float | None]: ...
    def window_headline(self) -> tuple[float, float | None] | None: ...
    def window_values(self, name: str) -> npt.NDArray[np.float64] | None: ...
    def state_dict(self) -> State: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Metrics:
    """Running measures of a task: since the start in constant memory, and exactly over the last ``window`` records.

    Names in a report; each is also there over the window, as ``window_…``, but ``num_nonfinite``:

    - any task: ``count``, ``loss`` (the mean training loss), ``num_nonfinite`` (records with an output, target or loss
      that is not finite; they are left out of all else, but their labels count as known to the baselines)
    - ``classes`` and ``binary``: ``accuracy``, ``balanced_accuracy`` (mean recall), ``macro_f1``, ``kappa`` (Cohen),
      ``log_loss`` (mean −log p of the true class in nats, whatever the training loss), ``normalised_entropy`` (log loss
      over the entropy of the class frequencies), ``calibration`` (expected calibration error: 15 bins of equal width of
      the predicted class's probability), ``roc_auc`` and ``pr_auc`` (average precision; for 3 to 20 classes the mean of
      each against the rest; exact over the window and up to its size, then from bins: see ``curves``)
    - their baselines: ``no_change_accuracy`` (predict the label known last), ``kappa_temporal`` (accuracy beyond that)
      and ``majority_accuracy`` (predict the class known most often); they are wrong where nothing is known yet
    - ``number``: ``mae``, ``rmse``, ``r2``, ``pinball`` (of ``quantile``), and the baselines ``no_change_mae``,
      ``no_change_rmse`` and ``mean_mae`` (predict the mean of the labels known), over the records with a known label
    - ``other``: nothing else; outputs and targets are not looked at

    A measure that is not defined yet is left out. ``log_rate`` says that outputs are logarithms of the predicted
    number, as the poisson loss has it. Late labels: see ``update``.

    >>> metrics = Metrics("classes", 3)
    >>> metrics.update(torch.eye(3), torch.tensor([0, 1, 1]), torch.ones(3))
    >>> round(metrics.report()["accuracy"], 3), metrics.window_headline()
    (0.667, (0.6666666666666666, 0.3333333333333333))
    """

    def __init__(
        self, task: str, num_outputs: int, *, window: int = 1000, quantile: float = 0.5, log_rate: bool = False
    ) -> None:
        if num_outputs < 1:
            raise SettingError(got=f"{num_outputs} outputs", wanted="1 or more", do="give the model an output")
        if not 0 <= quantile <= 1:
            raise SettingError(got=f"the quantile {quantile}", wanted="one from 0 to 1", do="try 0.5, the median")
        self._settings = {
            "task": task,
            "num_outputs": num_outputs,
            "window": window,
            "quantile": quantile,
            "log_rate": log_rate,
        }
        self._measures = _measures(task, num_outputs, window, quantile, log_rate)
        self._keeps_outputs = task != "other"
        self._limit = max(1, min(_MAX_RECORDS, _MAX_OUTPUTS // num_outputs))
        self._pending: list[_Piece] = []
        self._num_pending = 0

    @property
    def headline(self) -> tuple[str, str | None]:
        """The name of the measure that matters most, and of the baseline beside it."""
        return self._measures.headline

    def update(
        self,
        outputs: Tensor,
        targets: Tensor,
        losses: Tensor,
        known: npt.NDArray[Any] | None = None,
        guesses: npt.NDArray[Any] | None = None,
    ) -> None:
        """Take up N records that were predicted before their update. The tensors must not be changed afterwards.

        ``outputs``: (N, C) logits, (N,) or (N, 1) logits of class 1 for ``binary``, or (N,) or (N, K) numbers.
        ``targets``: (N,) classes, or numbers shaped as the outputs. ``losses``: (N,). ``known``: (N,) for labels that
        come late, the latest label that was known when each record was predicted, NaN (or −1 for a class) if none; None
        says that it was the label of the record before. The majority and the mean are those of ``known`` so far, one
        value per record, or (N,) ``guesses`` where labels come in another order than their records. Of K numbers all
        (N, K) are needed; the baselines are left out where only (N,) is given.

        >>> metrics = Metrics("number", 1)
        >>> metrics.update(torch.tensor([2.0, 2.0]), torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0]))
        >>> metrics.report()["mae"]
        0.5
        """
        num_records = losses.shape[0]
        if self._keeps_outputs:
            if outputs.shape[0] != num_records or targets.shape[0] != num_records:
                raise _lengths_differ(outputs, targets, losses)
            if outputs.requires_grad:
                outputs = outputs.detach()
        else:
            outputs = targets = losses
        if known is not None and len(known) != num_records:
            raise DataError(got=f"{len(known)} known labels", wanted=f"{num_records}", do="give one for each record")
        self._pending.append((outputs, targets, losses.detach() if losses.requires_grad else losses, known, guesses))
        self._num_pending += num_records + _RECORDS_OF_CALL
        if self._num_pending >= self._limit:
            self._fold()

    def report(self) -> dict[str, float]:
        """Every measure that is defined, by name, since the start and (``window_…``) over the window.

        >>> Metrics("classes", 3).report()
        {'count': 0.0, 'num_nonfinite': 0.0}
        """
        self._fold()
        return {name: float(value) for name, value in self._measures.report().items() if value is not None}

    def window_headline(self) -> tuple[float, float | None] | None:
        """The headline over the window and its baseline, if it has one; None before the first record. Cheap."""
        self._fold()
        return self._measures.window_headline()

    def window_values(self, name: str) -> npt.NDArray[np.float64] | None:
        """What the mean of a measure over the window is taken of, a value for each record; None if it is no such mean.

        Measures of one window are in the same order; NaN where a baseline knew nothing.

        >>> metrics = Metrics("number", 1)
        >>> metrics.update(torch.tensor([2.0, 2.0]), torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0]))
        >>> metrics.window_values("mae")
        array([1., 0.])
        """
        self._fold()
        return self._measures.window_values(name)

    def state_dict(self) -> State:
        """Everything that the next record adds to, the window included."""
        self._fold()
        return {"version": _VERSION, "settings": dict(self._settings), "measures": self._measures.state_dict()}

    def load_state_dict(self, state: State) -> None:
        """Go on from what was saved; CheckpointError if it is of another version or other settings."""
        if state.get("version") != _VERSION or state.get("settings") != self._settings:
            raise CheckpointError(
                got=f"metrics of version {state.get('version')}, {state.get('settings')}",
                wanted=f"version {_VERSION}, {self._settings}",
                do="resume with the settings that the checkpoint was made with",
            )
        self._pending, self._num_pending = [], 0
        self._measures.load_state_dict(state.get("measures", {}))

    def _fold(self) -> None:
        pending, self._pending, self._num_pending = self._pending, [], 0
        # Joining unlike tensors would promote some of them, and so make their bits depend on their company.
        for _, pieces in itertools.groupby(pending, key=_likeness):
            _fold_alike(self._measures, list(pieces))


def _measures(task: str, num_outputs: int, window: int, quantile: float, log_rate: bool) -> Measures:
    if task in ("classes", "binary"):
        return ClassMeasures(2 if task == "binary" else num_outputs, window)
    if task == "number":
        return NumberMeasures(num_outputs, window, quantile, log_rate)
    if task == "other":
        return LossMeasures(window)
    raise SettingError(
        got=f"the task {task!r}", wanted="classes, binary, number or other", do="take it from the loss: loss.task"
    )


def _fold_alike(measures: Measures, pieces: Sequence[_Piece]) -> None:
    """Take up pieces whose tensors can be joined."""
    lengths = [losses.shape[0] for _, _, losses, *_ in pieces]
    firsts = itertools.accumulate(lengths, initial=0)
    starts = list(firsts)
    given = _given(starts, [known for _, _, _, known, _ in pieces])
    guessed = _given(starts, [guesses for *_, guesses in pieces])
    if not sum(lengths):
        return
    outputs = _joined([outputs for outputs, *_ in pieces])
    targets = _joined([targets for _, targets, *_ in pieces])
    losses = _joined([losses for _, _, losses, *_ in pieces])
    measures.fold(outputs, targets, as_array(losses).astype(np.float64).reshape(-1), given, guessed)


def _given(starts: Sequence[int], values: Sequence[npt.NDArray[Any] | None]) -> Given:
    """What was said of pieces that begin at these records, as one where it was said of all."""
    given = [(first, each) for first, each in zip(starts, values, strict=False) if each is not None]
    return given if len(given) < len(values) else [(0, np.concatenate([each for _, each in given]))]


def _joined(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _likeness(piece: _Piece) -> tuple[object, ...]:
    outputs, targets, losses, *_ = piece
    return outputs.dtype, outputs.device, outputs.ndim, targets.dtype, targets.device, targets.ndim, losses.device


def _lengths_differ(outputs: Tensor, targets: Tensor, losses: Tensor) -> DataError:
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (outputs, targets, losses))
    return DataError(
        got=f"outputs, targets and losses of shapes {shapes}",
        wanted="as many records in each",
        do="give one output, target and loss for each record",
    )
