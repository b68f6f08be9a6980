"""Compiled loops are loaded by those who run them, never compiled. Run: pytest tests/test_compiling.py"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from millstream.engines import compiling, fused
from millstream.engines.kernels import blocks, compiled

LEARNS = """
import hashlib, torch, millstream
torch.manual_seed(0)
x = torch.randn(600, 7)
model = torch.nn.Sequential(torch.nn.Linear(7, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
millstream.Trainer(model).learn((x, (x.sum(1) > 0).long()))
bits = b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())
print(hashlib.sha256(bits).hexdigest())
"""


def test_what_is_kept_is_loaded_and_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    fused.make_ready(torch.float32)

    def run(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is to be compiled")

    monkeypatch.setattr(subprocess, "run", run)
    fused.make_ready.cache_clear()
    fused.make_ready(torch.float32)


def test_what_is_not_kept_is_not_compiled_where_it_is_used() -> None:
    known = len(blocks.combine.signatures)
    strange = np.zeros((1, 1), np.int16)  # such weights there are none
    assert not compiling.load(lambda: blocks.combine(strange, strange, np.zeros((2, 3))))
    assert len(blocks.combine.signatures) == known


def test_where_no_process_can_be_started_it_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", logger="millstream")
    compiling.compile_apart("millstream.engines.fused", "no_such_name()")
    assert "no_such_name" in caplog.text
    monkeypatch.setattr(sys, "executable", "/no/such/file")
    compiling.compile_apart("millstream.engines.fused", "use_once(torch.float32)")
    assert "/no/such/file" in caplog.text


@pytest.mark.slow
def test_the_process_that_finds_no_loops_learns_the_same_bits_as_the_next(tmp_path: Path) -> None:
    environment = {**os.environ, "MILLSTREAM_CACHE": str(tmp_path)}
    found = [
        subprocess.run([sys.executable, "-c", LEARNS], env=environment, capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert "compiling" in found[0].stderr and "compiling" not in found[1].stderr
    assert len(found[0].stdout.strip()) == hashlib.sha256().digest_size * 2
    assert found[0].stdout == found[1].stdout
    assert (tmp_path / "kernels" / compiled.cache_folder().name).is_dir()
