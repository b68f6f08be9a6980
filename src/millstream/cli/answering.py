"""``millstream predict``, ``evaluate`` and ``export``: what a trained run knows. Nothing in its folder is changed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from safetensors.torch import save_file

from millstream import assembly, checkpoint, engines, evaluation
from millstream.cli.output import print_json, print_table
from millstream.cli.progress import err
from millstream.contracts import Source
from millstream.errors import SettingError
from millstream.storage import storage_errors
from millstream.trainer import Trainer

__all__ = ["evaluate", "export", "predict"]

_FORMATS = (".csv", ".jsonl", ".parquet", ".arrow")


def evaluate(run: str, data: str, fetch: bool, device: str | None, as_json: bool) -> None:
    """Prints the metrics of a run on data."""
    trainer = assembly.snapshot(run, {} if device is None else {"device": device})
    found = trainer.evaluate(_source(trainer, data, fetch))
    if as_json:
        print_json({"run": run, "data": data, "metrics": found})
        return
    num = int(found.pop("count", 0))
    rows = [
        (name.replace("_", " "), "" if value is None else f"{value:.4f}")
        for name, value in found.items()
        if not name.startswith("num_")
    ]
    print_table(rows, (f"{num:,} records", data))
    if found["num_refused"]:
        err.print(f"millstream: {found['num_refused']:,.0f} records were refused, and are not in these figures")


def predict(run: str, data: str, output: str, fetch: bool, device: str | None) -> None:
    """Writes predictions: for classes the name and its probability, for numbers the number."""
    if output != "-" and Path(output).suffix not in _FORMATS:
        raise SettingError(
            got=f"--output {output}", wanted=f"a file name in {', '.join(_FORMATS)}", do="change its ending"
        )
    trainer = assembly.snapshot(run, {} if device is None else {"device": device})
    source = _source(trainer, data, fetch)
    num_refused = 0
    with _writer(output) as write:
        for chunk, outputs in evaluation.predictions(trainer.learner, source):
            num_refused += len(chunk.rejected)
            if len(chunk):
                write(_answers(trainer, outputs, chunk.positions()))
    if num_refused:
        err.print(f"millstream: {num_refused:,} records could not be predicted; their numbers are left out")


def export(run: str, file: str) -> None:
    """Writes the weights alone, under the names of the model's state_dict."""
    state, _, _ = checkpoint.newest(Path(run) / "checkpoints")
    weights = engines.answering(state["learner"]["model"])
    weights = {name: tensor.clone() for name, tensor in weights.items()}  # aliases as well
    with _replacing(Path(file)) as draft:
        save_file(weights, draft)
    print(f"{file}: {len(weights)} tensors, {sum(t.numel() for t in weights.values()):,} numbers")


def _source(trainer: Trainer, name: str, fetch: bool) -> Source:
    features = trainer.learner.features
    return assembly.open_questions(name, None if features is None else features.schema, fetch=fetch)


def _answers(trainer: Trainer, outputs: Any, numbers: Any) -> pa.RecordBatch:
    """One row for each record; ``record`` is its number in the data, from 0."""
    columns: dict[str, Any] = {"record": pa.array(numbers)}
    features, task = trainer.learner.features, trainer.learner.rule.loss.task
    if task == "classes":
        probability, place = outputs.max(-1)
        names = features.classes if features is not None else ()
        columns["prediction"] = pa.array([names[p] if p < len(names) else str(p) for p in place.tolist()])
        columns["probability"] = pa.array(probability.numpy())
    elif task == "binary" and features is not None:
        columns["prediction"] = pa.array([features.classes[int(p > 0.5)] for p in outputs.tolist()])
        columns["probability"] = pa.array(outputs.numpy())
    else:
        columns["prediction"] = pa.array(outputs.reshape(len(outputs), -1)[:, 0].numpy())
    return pa.RecordBatch.from_pydict(columns)


@contextmanager
def _writer(output: str) -> Iterator[Callable[[pa.RecordBatch], None]]:
    """Writes batches of answers as they come, to standard output or to a file that appears when it is whole."""
    if output == "-":
        yield lambda batch: _print_lines(batch, sys.stdout)
        return
    made: list[Any] = []
    with _replacing(Path(output)) as draft:

        def write(batch: pa.RecordBatch) -> None:
            if not made:
                made.append(_opened(Path(output).suffix, draft, batch.schema))
            made[0].write(batch)

        try:
            yield write
        finally:
            for one in made:
                one.close()
        if not made:
            draft.touch()


class _Lines:
    """JSON Lines, written like the other formats."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")

    def write(self, batch: pa.RecordBatch) -> None:
        _print_lines(batch, self._file)

    def close(self) -> None:
        self._file.close()


def _opened(suffix: str, path: Path, schema: pa.Schema) -> Any:
    if suffix == ".csv":
        return pa.csv.CSVWriter(path, schema)
    if suffix == ".parquet":
        return pa.parquet.ParquetWriter(path, schema)
    return pa.ipc.new_file(path, schema) if suffix == ".arrow" else _Lines(path)


def _print_lines(batch: pa.RecordBatch, file: Any) -> None:
    file.write("".join(json.dumps(row) + "\n" for row in batch.to_pylist()))
    file.flush()


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Another name to write under, which becomes ``path`` when all went well."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with storage_errors(path, do="make room, or name another file"):
        try:
            if path.is_dir():
                raise IsADirectoryError(21, "Is a directory")
            yield draft
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
