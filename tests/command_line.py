"""Runs the command line in this process, which spares every test the start of torch, and makes small files for it."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from millstream.cli import main

CLASSES = "--column=label=class:classes=high|low|middle"


class Answer(NamedTuple):
    """What a command gave."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Standard output, which must be one JSON object in one line, without the numbers that JSON does not have."""
        assert self.out.count("\n") == 1 and self.out.endswith("\n"), self.out
        found: dict[str, Any] = json.loads(self.out, parse_constant=lambda text: 1 / 0)
        return found


def run(*words: str | Path, stdin: bytes | None = None) -> Answer:
    """``millstream WORDS`` in this process."""
    out, err = io.StringIO(), io.StringIO()
    given = types.SimpleNamespace(buffer=io.BytesIO(stdin or b""))
    with (
        mock.patch.object(sys, "argv", ["millstream", *map(str, words)]),
        mock.patch.object(sys, "stdin", given),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = main()
    return Answer(code, out.getvalue(), err.getvalue())


def train(kind: str, data: str | Path, *words: str | Path, stdin: bytes | None = None) -> Answer:
    """``fit`` or ``learn`` with a small model, as JSON; fails unless it is done."""
    answer = run(kind, data, "--model", "linear", "--engine", "reference", "--json", *words, stdin=stdin)
    assert answer.code == 0, answer.err
    return answer


def refusal(answer: Answer) -> str:
    """The one line that a refused command says; fails when it says more, less, or in another way."""
    assert answer.code == 2, answer
    assert "Traceback" not in answer.err
    lines = [line for line in answer.err.splitlines() if line.startswith("millstream:")]
    assert len(lines) == 1 and answer.err.splitlines()[-1] == lines[0], answer.err
    assert re.fullmatch(r"millstream: got .+; wanted .+; .+", lines[0]), lines[0]
    return lines[0]


def rows(num: int = 300, seed: int = 0) -> list[tuple[float, float, str, str]]:
    """Records of two numbers, a category, and a label that depends on them."""
    rng = np.random.default_rng(seed)
    a, b, kind = rng.normal(5, 3, num), rng.exponential(2, num), rng.choice(["x", "y", "z"], num)
    label = np.where(a + b + (kind == "x") * 4 > 9, "high", np.where(b > 2, "middle", "low"))
    return [(float(w), float(x), str(y), str(z)) for w, x, y, z in zip(a, b, kind, label, strict=True)]


def csv_text(records: Sequence[Sequence[Any]], header: str = "a,b,kind,label") -> str:
    return "\n".join([header, *(",".join(map(str, record)) for record in records)]) + "\n"


def jsonl_text(records: Sequence[Sequence[Any]], names: Sequence[str] = ("a", "b", "kind", "label")) -> str:
    return "".join(json.dumps(dict(zip(names, record, strict=True))) + "\n" for record in records)


def letters(folder: str | Path) -> list[dict[str, Any]]:
    """The dead letters of a run."""
    return [json.loads(line) for line in (Path(folder) / "dead_letters.jsonl").read_text(encoding="utf-8").splitlines()]
