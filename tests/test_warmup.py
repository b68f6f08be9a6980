"""``millstream warmup`` fills the cache of compiled loops. Run: pytest tests/test_warmup.py"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import run
from millstream.engines import fused
from millstream.engines.kernels import compiled

DOCUMENT = Path(__file__).parent.parent / "docs" / "commands.md"


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The types of number that were made ready; each leaves a file in the cache, unless that is a file itself."""
    asked: list[Any] = []

    def make_ready(number: Any) -> None:
        asked.append(number)
        folder = compiled.cache_folder()
        if not folder.parent.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"loop-{number}.nbc").touch()

    monkeypatch.setattr(compiled, "cache_folder", lambda: tmp_path / "kernels" / "abc")
    monkeypatch.setattr(fused, "make_ready", make_ready)
    return asked


def test_it_compiles_for_both_types_of_number_and_says_where(made: list[Any], tmp_path: Path) -> None:
    answer = run("warmup")
    assert answer.code == 0 and made == [torch.float32, torch.float64]
    assert answer.out.startswith("compiled in ") and str(tmp_path / "kernels" / "abc") in answer.out
    assert run("warmup").out.startswith("nothing to compile")


def test_its_json(made: list[Any], tmp_path: Path) -> None:
    first, second = run("warmup", "--json").json, run("warmup", "--json").json
    text = DOCUMENT.read_text(encoding="utf-8").partition("### Keys of warmup\n")[2].partition("###")[0]
    assert first.keys() == set(re.findall(r"^\| `(\w+)`", text, flags=re.MULTILINE)) and first["seconds"] >= 0
    assert (first["folder"], first["kept"]) == (str(tmp_path / "kernels" / "abc"), True)
    assert (first["compiled"], second["compiled"]) == (2, 0)


def test_a_folder_that_cannot_be_written_is_no_error(made: list[Any], tmp_path: Path) -> None:
    (tmp_path / "kernels").touch()  # a file, where root could write into any folder
    answer = run("warmup")
    assert answer.code == 0 and "cannot be written" in answer.out and len(made) == 2
    assert run("warmup", "--json").json["kept"] is False


@pytest.mark.slow
def test_the_second_process_has_nothing_to_compile(tmp_path: Path) -> None:
    environment = {**os.environ, "MILLSTREAM_CACHE": str(tmp_path)}
    command = [sys.executable, "-m", "millstream", "warmup", "--json"]
    found = [
        json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
        for _ in range(2)
    ]
    assert found[0]["compiled"] > 0 == found[1]["compiled"]
    assert found[1]["kept"] and found[1]["folder"].startswith(str(tmp_path))


@pytest.mark.slow
def test_a_process_without_a_cache_compiles_and_learns(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    environment = {**os.environ, "MILLSTREAM_CACHE": str(tmp_path / "file")}
    done = subprocess.run(
        [sys.executable, "-m", "millstream", "warmup"], env=environment, capture_output=True, text=True, check=True
    )
    assert "cannot be written" in done.stdout
