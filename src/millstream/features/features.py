"""Named columns to tensors, record by record as the stream goes: what a model is given, and what it is to predict.

This file holds the order of things for one chunk: look through it, leave out what cannot be used, then learn the
statistics and make the tensors. It knows Arrow record batches and the schema; it knows no source and no model.

Shapes: N records, D dense columns, K ids a record.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from millstream.contracts import Chunk, Events, Inputs, State
from millstream.errors import CheckpointError, DataError, SettingError
from millstream.features.blocks import NonFinite, list_block, number_block
from millstream.features.categories import hashed_ids, vocabulary_ids
from millstream.features.columns import find, is_text, microseconds, near, plain_text
from millstream.features.events import id_texts, instants, look
from millstream.features.labels import ClassNames, check_labels, number_labels
from millstream.features.layout import Layout
from millstream.features.numbers import Standardizer
from millstream.features.refusals import Refusals
from millstream.features.roles import seconds, weights
from millstream.features.text import word_ids
from millstream.features.time import circles
from millstream.schema import Field, Schema

__all__ = ["Features"]

_VERSION = 1


@dataclasses.dataclass(slots=True)
class _Parts:
    """A chunk as it was read, before anything is learned from it."""

    numbers_DN: npt.NDArray[np.float64]
    valid_DN: npt.NDArray[np.bool_] | None
    times: list[npt.NDArray[np.float32]]
    arrays: list[npt.NDArray[np.float32]]
    weights: npt.NDArray[np.float32] | None
    known: npt.NDArray[np.float64] | None
    label_known: npt.NDArray[np.float64] | None


class Features:
    """Turns the columns that a schema names into tensors; its statistics follow the stream.

    ``on_error`` says what a record that cannot be used does: ``stop`` the run with a DataError, or go to ``quarantine``
    (a hole, and a Rejection). ``nonfinite`` is for NaN and infinities in features: an ``error``, ``skip`` the record,
    or ``impute`` as if it were missing. What is missing is always imputed with the mean so far, which is 0.

    >>> from millstream.schema import Target
    >>> features = Features(Schema((Field("a", "number"),), Target("y", "class", ("no", "yes"))))
    >>> chunk = Chunk(pa.RecordBatch.from_pydict({"a": [1, 3, 5], "y": ["no", "yes", "no"]}))
    >>> features.transform(chunk, learn=True).inputs.flatten().tolist()
    [0.0, 0.0, 3.0]
    """

    def __init__(
        self,
        schema: Schema,
        *,
        on_error: Literal["stop", "quarantine"] = "stop",
        nonfinite: NonFinite = "error",
        clip: float = 10.0,
    ) -> None:
        _check_choice("on_error", on_error, ("stop", "quarantine"))
        _check_choice("nonfinite", nonfinite, ("error", "skip", "impute"))
        if not clip > 0:
            raise SettingError(got=f"clip={clip}", wanted="a positive number", do="leave it at 10")
        self.schema, self.on_error, self.nonfinite = schema, on_error, nonfinite
        self._layout = Layout(schema)
        self._standardizer = Standardizer(len(self._layout.numbers), clip=clip)
        target = schema.target
        self._classes = ClassNames(target) if target and target.kind == "class" else None
        self._target_scale = Standardizer(1, clip=clip) if target and target.kind == "number" else None

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns that a source has to read."""
        return self._layout.columns

    @property
    def num_dense(self) -> int:
        return len(self._layout.dense_names)

    @property
    def dense_names(self) -> tuple[str, ...]:
        return self._layout.dense_names

    @property
    def num_ids(self) -> int:
        """The size of the id space, the 0 of absence included; 0 when there are no categories and no texts."""
        return self._layout.num_ids

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one record's dense input: (D,), or the shape of the array that is the only field."""
        return self._layout.input_shape

    @property
    def num_outputs(self) -> int:
        """How many outputs a model needs; 0 without a target."""
        return self.schema.target.num_outputs if self.schema.target else 0

    @property
    def task(self) -> Literal["class", "number"] | None:
        return self.schema.target.kind if self.schema.target else None

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes so far, in the order of their numbers."""
        return tuple(self._classes.names) if self._classes else ()

    @property
    def scales_targets(self) -> bool:
        return self._target_scale is not None

    def transform(self, chunk: Chunk, *, learn: bool) -> Chunk:
        """The chunk as tensors. Each record is scaled with what was known before it; ``learn`` then takes it in.

        ``inputs`` is (N, D) float32; or {"dense": (N, D) float32, "ids": (N, K) int64} when there are categories or
        texts, without "dense" when D is 0; or (N, *shape) float32 when one array is all there is. ``targets`` are (N,)
        int64 class numbers, or (N,) float32 in their own units, or None when the target's column is not there. A class
        that is new under ``learn=False`` gets the number it would get, and is not remembered. Raises DataError.
        """
        batch = _record_batch(chunk)
        labelled = self._is_labelled(batch, learn)
        parts = self._read(batch, labelled, refusals := Refusals())
        if refusals:
            chunk = self._refuse(chunk, refusals)
            parts = self._read(_record_batch(chunk), labelled, Refusals())
        targets, added, refusals = self._targets(chunk, labelled)
        if refusals:
            chunk = self._refuse(chunk, refusals)
            parts = self._read(_record_batch(chunk), labelled, Refusals())
            targets, added, _ = self._targets(chunk, labelled)
        ids = self._ids(_record_batch(chunk))
        inputs = self._inputs(parts, ids, learn)
        if learn and self._classes:
            self._classes.remember(added)
        return dataclasses.replace(
            chunk,
            inputs=inputs,
            targets=chunk.targets if targets is None else targets,
            weights=chunk.weights if parts.weights is None else torch.from_numpy(parts.weights),
            times=chunk.times if parts.known is None else parts.known,
            label_times=chunk.label_times if parts.label_known is None else parts.label_known,
            ids=self._names(_record_batch(chunk)),
        )

    def transform_events(
        self, chunk: Chunk, admit: Callable[[Events], dict[int, tuple[str, str]]], *, learn: bool
    ) -> Chunk:
        """The questions among the events of a chunk, as ``transform`` makes them, without their labels.

        ``admit`` is told of all events that can be used, and says which of them are refused nevertheless: what was got
        and what was wanted. Those are never learned from, and stop no run. It is called last, once nothing can fail.
        """
        parsed, refusals = self._parse(chunk)
        while refusals:
            chunk = self._refuse(chunk, refusals)
            parsed, refusals = self._parse(chunk)
        events, parts, coded, added = parsed
        refused = admit(events)
        for row, (got, wanted) in refused.items():
            refusals.add(np.array([row]), lambda _, got=got: got, wanted=wanted, do="", stops=False)  # type: ignore[misc]
        rejected = refusals.apply(chunk).rejected
        asks = events.asks.copy()
        asks[list(refused)] = False
        asked = chunk.select(np.flatnonzero(asks))
        if refused:
            parts = self._read(_record_batch(asked), False, Refusals(), asked=True)
            coded = None if coded is None else coded[torch.from_numpy(asks[events.asks])]
        inputs = self._inputs(parts, coded, learn)
        if learn and self._classes:
            self._classes.remember(added)
        weighs = None if parts.weights is None else torch.from_numpy(parts.weights)
        made: dict[str, Any] = {"inputs": inputs, "weights": weighs, "times": parts.known, "rejected": rejected}
        return dataclasses.replace(asked, **made, ids=self._names(_record_batch(asked)))

    def label_of(self, text: str, *, learn: bool) -> float:
        """The number that a label stands for, given as a text; of a class that may be new it is the next one."""
        target, refusals = self.schema.target, Refusals()
        column = pa.array([text])
        if target is not None and self._classes is None:
            check_labels(column, target, refusals)
            found = float(number_labels(column, target)[0])
        else:
            assert self._classes is not None
            labels, added = self._classes.encode(column, refusals)
            found = float(labels[0])
            if learn and not refusals:
                self._classes.remember(added)
        if refusals:
            raise SettingError(
                got=f"default label {text!r}", wanted="a label that the target can have", do="mend --default-label"
            )
        return found

    def scale_targets(
        self, targets: Tensor, *, learn: bool
    ) -> tuple[Tensor, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """(N,) number targets, each scaled with what was known before it, and the (N + 1,) shift and scale.

        Entry k is what was known after k of these targets; outputs become numbers by ``output * scale + shift``. A
        target is 0 while no spread is known, and clipped like the features.
        """
        if self._target_scale is None:
            raise SettingError(got="scale_targets without a number target", wanted="one", do="ask scales_targets first")
        scaled, shift, scale = self._target_scale.follow(targets.detach().cpu().numpy().astype(np.float64), learn=learn)
        return torch.from_numpy(scaled).to(torch.float32), shift, scale

    def state_dict(self) -> State:
        return {
            "version": _VERSION,
            "schema": self.schema.to_json(),
            "numbers": self._standardizer.state_dict(),
            "target": self._target_scale.state_dict() if self._target_scale else None,
            "classes": list(self.classes),
        }

    def load_state_dict(self, state: State) -> None:
        """Go on from a saved state; CheckpointError when it is of another schema or version."""
        if state.get("version") != _VERSION:
            raise CheckpointError(
                got=f"features of version {state.get('version')!r}",
                wanted=f"version {_VERSION}",
                do="use the version of Millstream that wrote the checkpoint, or start a new run",
            )
        _refuse_other_schema(Schema.from_json(state["schema"]), self.schema)
        self._standardizer.load_state_dict(state["numbers"])
        if self._target_scale:
            self._target_scale.load_state_dict(state["target"])
        if self._classes:
            self._classes.names = [str(name) for name in state["classes"]]

    def _is_labelled(self, batch: pa.RecordBatch, learn: bool) -> bool:
        target = self.schema.target
        if target is None:
            return True
        if learn and target.name not in batch.schema.names:
            find(batch, target.name)
        return target.name in batch.schema.names

    def _read(self, batch: pa.RecordBatch, labelled: bool, refusals: Refusals, *, asked: bool = False) -> _Parts:
        """The dense columns and all that goes with the label (unless ``asked`` without); bad rows go to refusals."""
        layout, nonfinite = self._layout, self.nonfinite
        values, valid = number_block(batch, layout.numbers, nonfinite, refusals)
        times = []
        for field in layout.times:
            instants, there = microseconds(find(batch, field.name), field.name, refusals, local=True)
            times.append(circles(instants, there, field.parts))
        arrays = []
        for field in layout.arrays:
            size = int(np.prod(field.shape))
            arrays.append(list_block(find(batch, field.name), field.name, size, field.scale, nonfinite, refusals))
        if labelled and self.schema.target:
            check_labels(find(batch, self.schema.target.name), self.schema.target, refusals)
        schema = self.schema
        return _Parts(
            values,
            valid,
            times,
            arrays,
            weights(batch, schema.weight, labelled, refusals),
            seconds(batch, schema.time, labelled, refusals),
            None if asked else seconds(batch, schema.label_time, labelled, refusals),
        )

    def _parse(self, chunk: Chunk) -> tuple[tuple[Events, _Parts, Tensor | None, list[str]], Refusals]:
        """The events of a chunk, the parts of its questions and their ids, and the classes that are new."""
        batch, target, refusals = _record_batch(chunk), self.schema.target, Refusals()
        rows = look(batch, self.schema, refusals)
        asked, labelled = np.flatnonzero(rows.asks), np.flatnonzero(rows.answers)
        times = instants(batch, self.schema, rows.asks, refusals)
        questions = batch.take(pa.array(asked))
        parts = self._read(questions, False, found := Refusals(), asked=True)
        refusals.merge(found, asked)
        assert target is not None
        column, labels = find(batch, target.name).take(pa.array(labelled)), np.full(len(batch), np.nan)
        added: list[str] = []
        check_labels(column, target, found := Refusals())
        if not found and self._classes is not None:
            labels[labelled], added = self._classes.encode(column, found)
        elif not found:
            labels[labelled] = number_labels(column, target)
        refusals.merge(found, labelled)
        coded = None if refusals else self._ids(questions)
        places = np.arange(len(chunk)) if chunk.offsets is None else chunk.offsets
        facts = rows.asks, labels, times, places, chunk.span, self._classes is not None
        return (Events(rows.ids.to_pylist(), *facts), parts, coded, added), refusals

    def _names(self, batch: pa.RecordBatch) -> pa.Array | None:
        name = self.schema.id
        return id_texts(batch, name) if name is not None and name in batch.schema.names else None

    def _targets(self, chunk: Chunk, labelled: bool) -> tuple[Tensor | None, list[str], Refusals]:
        refusals = Refusals()
        target = self.schema.target
        if target is None or not labelled:
            return None, [], refusals
        column = find(_record_batch(chunk), target.name)
        if self._classes is None:
            return torch.from_numpy(number_labels(column, target)), [], refusals
        labels, added = self._classes.encode(column, refusals)
        return torch.from_numpy(labels), added, refusals

    def _refuse(self, chunk: Chunk, refusals: Refusals) -> Chunk:
        if self.on_error == "stop":
            refusals.raise_first(chunk)
        return refusals.apply(chunk)

    def _ids(self, batch: pa.RecordBatch) -> Tensor | None:
        coded = [self._field_ids(batch, field) for field in self._layout.coded]
        return torch.from_numpy(np.concatenate(coded, axis=1)) if coded else None

    def _field_ids(self, batch: pa.RecordBatch, field: Field) -> npt.NDArray[np.int64]:
        name, first = field.name, self._layout.first_ids[field.name]
        column, seed = find(batch, name), self._layout.seeds[name]
        if field.kind == "text":
            texts = _texts(column, name)
            return word_ids(
                texts, slots=field.slots, ngrams=field.ngrams, max_tokens=field.max_tokens, seed=seed, first=first
            )
        if field.values:
            return vocabulary_ids(column, name, field.values, first)[:, None]
        return hashed_ids(column, name, slots=field.slots, seed=seed, first=first)[:, None]

    def _inputs(self, parts: _Parts, ids: Tensor | None, learn: bool) -> Inputs:
        dense = [torch.from_numpy(block) for block in (*parts.times, *parts.arrays)]
        if self._layout.numbers:
            dense.insert(0, self._standardizer.transform(parts.numbers_DN, parts.valid_DN, learn=learn))
        if self._layout.single:
            return dense[0].reshape(len(dense[0]), *self._layout.single.shape)
        joined = dense[0] if len(dense) == 1 else torch.cat(dense, 1) if dense else None
        if ids is None:
            assert joined is not None, "the layout has refused a schema without inputs"
            return joined
        return {"ids": ids} if joined is None else {"dense": joined, "ids": ids}


def _record_batch(chunk: Chunk) -> pa.RecordBatch:
    if not isinstance(chunk.inputs, pa.RecordBatch):
        raise DataError(
            got=f"a chunk of {type(chunk.inputs).__name__}",
            wanted="named columns (a pyarrow.RecordBatch)",
            do="leave the features out for tensors, or give the source named columns",
        )
    return chunk.inputs


def _texts(column: pa.Array, name: str) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        return _texts(column.dictionary_decode(), name)
    if pa.types.is_null(column.type):
        return column.cast(pa.string())
    if not is_text(column.type):
        raise DataError(
            got=f"column {name!r} of type {column.type}", wanted="texts", do=f"declare it otherwise ({name}=category)"
        )
    return plain_text(column)


def _check_choice(setting: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise SettingError(
            got=f"{setting}={value!r}", wanted=f"one of {', '.join(choices)}", do=f"try {near(value, choices)}"
        )


def _refuse_other_schema(got: Schema, wanted: Schema) -> None:
    if got == wanted:
        return
    differing: list[tuple[Any, Any]] = [
        (getattr(got, field.name), getattr(wanted, field.name)) for field in dataclasses.fields(Schema)
    ]
    pairs = [(a, b) for a, b in differing if a != b]
    if isinstance(pairs[0][0], tuple) and len(pairs[0][0]) == len(pairs[0][1]):
        pairs = [(a, b) for a, b in zip(*pairs[0], strict=True) if a != b]
    raise CheckpointError(
        got=f"a checkpoint of another schema, with {_brief(pairs[0][0])}",
        wanted=f"{_brief(pairs[0][1])}",
        do="build the features with the checkpoint's schema, or start a new run",
    )


def _brief(value: Any) -> str:
    return f"{len(value)} fields" if isinstance(value, tuple) else repr(value)
