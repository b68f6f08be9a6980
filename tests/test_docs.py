"""What the documents say is run and checked: code, commands, links, the tree. Run: pytest tests/test_docs.py"""

import doctest
import importlib
import itertools
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import torch
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

import millstream
from millstream.cli import cli

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "millstream"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
RECORDS = sorted((ROOT / "docs" / "decisions").glob("*.md"))
MODULES = sorted(
    path.relative_to(ROOT / "src").with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if path.name != "__main__.py"
)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(autouse=True)
def an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test works in a folder of its own and leaves the user's cache alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "tests"))  # documents import the check kits
    monkeypatch.setenv("MILLSTREAM_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_the_python_blocks_of_a_document_run_one_after_another(path: Path) -> None:
    for example in Sybil([PythonCodeBlockParser()]).parse(path):
        example.evaluate()


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_give_what_they_show(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_relative_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\(<?([^)\s>]+)>?[^)]*\)", text) + re.findall(r'(?:src|href|srcset)="([^"]+)"', text)
    files = [link.partition("#")[0] for link in links if not re.match(r"[a-z]+:", link)]
    assert [file for file in files if file and not (path.parent / file).exists()] == []


def commands(text: str) -> Iterator[list[str]]:
    """The words of each ``millstream COMMAND …`` in a document, after the name; those in Python blocks aside."""
    text = re.sub(r"^```python.*?^```", "", text, flags=re.DOTALL | re.MULTILINE).replace("\\\n", " ")
    for line in re.findall(r"^(?: {4,}|\$ )?((?:[^`\n]*[|&;] *)?millstream [a-z].*)", text, flags=re.MULTILINE):
        words = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        words.whitespace_split = True
        for is_break, group in itertools.groupby(words, lambda word: not set(word) - set("|&;<>")):
            name, *rest = group
            if name == "millstream" and not is_break:
                yield rest


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_commands_and_their_options_exist(path: Path) -> None:
    for words in commands(path.read_text(encoding="utf-8")):
        command: click.Command = cli
        rest = list(words)
        while isinstance(command, click.Group):
            assert rest and rest[0] in command.commands, f"millstream {' '.join(words)}"
            command = command.commands[rest.pop(0)]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        used = {word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
        assert used <= known | {"--help", "-h"}, f"millstream {' '.join(words)}"


def block_after(heading: str) -> list[str]:
    """The lines of the first fenced block below a heading of docs/architecture.md."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    found = re.search(rf"^## {heading}$.*?^```[a-z]*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    assert found, f"no block under {heading!r}"
    return found[1].splitlines()


def test_the_tree_names_every_module_and_no_other() -> None:
    folders: list[str] = []
    named = []
    for line in block_after("The files")[1:]:
        depth, name = (len(line) - len(line.lstrip())) // 2 - 1, line.split()[0]
        folders = [*folders[:depth], name]
        if name.endswith(".py"):
            named.append("".join(folders))
    assert sorted(named) == sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def test_the_layers_are_those_that_the_linter_keeps() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert [line.strip() for line in block_after("The layers")] == settings["tool"]["importlinter"]["contracts"][0][
        "layers"
    ]


def test_decision_records_are_short_and_numbered_without_a_gap() -> None:
    assert [path.name[:4] for path in RECORDS] == [f"{number:04}" for number in range(1, len(RECORDS) + 1)]
    for path in RECORDS:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert lines[0].startswith(f"# {int(path.name[:4])}. ") and len(lines) <= 40, path.name
        assert [line for line in lines if line.startswith("## ")] == ["## Context", "## Decision", "## What we gave up"]


def test_the_change_log_begins_with_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    found = re.search(r"^## (\S+)", text, flags=re.MULTILINE)
    assert found and found[1] == millstream.__version__
