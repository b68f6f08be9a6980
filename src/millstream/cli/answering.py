"""``millstream predict``, ``evaluate`` and ``export``: what a trained run knows."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from safetensors.torch import save_file

from millstream import assembly, checkpoint, datasets, sources
from millstream.cli.progress import table
from millstream.contracts import Source
from millstream.errors import SettingError
from millstream.trainer import Trainer

__all__ = ["evaluate", "export", "predict"]

_FORMATS = (".csv", ".jsonl", ".parquet", ".arrow")


def evaluate(run: str, data: str, fetch: bool, as_json: bool) -> None:
    """Prints the metrics of a run on data."""
    trainer = assembly.load(run)
    found = trainer.evaluate(_source(data, fetch))
    if as_json:
        print(json.dumps({"run": run, "data": data, "metrics": found}))
        return
    table([(name.replace("_", " "), f"{value:.4f}") for name, value in found.items()], ("", data))


def predict(run: str, data: str, output: str, fetch: bool) -> None:
    """Writes predictions: for classes the name and its probability, for numbers the number."""
    if output != "-" and Path(output).suffix not in _FORMATS:
        raise SettingError(
            got=f"--output {output}", wanted=f"a file name in {', '.join(_FORMATS)}", do="change its ending"
        )
    trainer = assembly.load(run)
    source = _source(data, fetch)
    if output == "-":
        first = 0
        for piece in _pieces(source):
            rows = _answers(trainer, piece, first)
            first += len(rows)
            for row in rows.to_pylist():
                sys.stdout.write(json.dumps(row) + "\n")
            sys.stdout.flush()
        return
    answers = _answers(trainer, source, 0)
    with checkpoint.storage_errors(Path(output)):
        _write(answers, Path(output))


def export(run: str, file: str) -> None:
    """Writes the weights alone, under the names of the model's state_dict."""
    trainer = assembly.load(run)
    weights = {n: t.detach().cpu().clone().contiguous() for n, t in trainer.learner.rule.model.state_dict().items()}
    with checkpoint.storage_errors(Path(file)):
        save_file(weights, file)
    print(f"{len(weights)} tensors, {sum(t.numel() for t in weights.values()):,} numbers: {file}")


def _source(name: str, fetch: bool) -> Source:
    """Test records of a public data set, if it has some; else all that the name stands for."""
    if name.partition(":")[0] in datasets.names() and not Path(name).exists():
        known = datasets.load(name, fetch=fetch)
        return known.test or known.train
    return sources.as_source(name) if name == "-" else sources.FileSource(name)


def _pieces(source: Source) -> Any:
    """The source in pieces, so that answers come while it is read."""
    for chunk in source.read(size=1024):
        yield sources.as_source(chunk.inputs)


def _answers(trainer: Trainer, source: Source, first: int) -> pa.Table:
    found = trainer.predict(source)
    columns: dict[str, Any] = {"record": pa.array(range(first, first + len(found)))}
    features = trainer.learner.features
    task = trainer.learner.rule.loss.task
    if task == "classes":
        probability, place = found.max(-1)
        names = features.classes if features is not None else ()
        columns["prediction"] = [names[p] if p < len(names) else str(p) for p in place.tolist()]
        columns["probability"] = probability.numpy()
    elif task == "binary" and features is not None:
        columns["prediction"] = [features.classes[int(p > 0.5)] for p in found.tolist()]
        columns["probability"] = found.numpy()
    else:
        columns["prediction"] = found.reshape(len(found), -1)[:, 0].numpy()
    return pa.table(columns)


def _write(answers: pa.Table, path: Path) -> None:
    if path.suffix == ".csv":
        pa.csv.write_csv(answers, path)
    elif path.suffix == ".parquet":
        pa.parquet.write_table(answers, path)
    elif path.suffix == ".arrow":
        with pa.ipc.new_file(path, answers.schema) as writer:
            writer.write_table(answers)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in answers.to_pylist()), encoding="utf-8")
