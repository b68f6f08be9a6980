"""The file of settings that ``tune`` writes and ``fit`` and ``learn`` take: JSON, by the names of options."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from millstream.errors import SettingError
from millstream.storage import replace, storage_errors

__all__ = ["NAME", "applied", "write"]

NAME = "tuned.json"
_VERSION = 1


def write(folder: Path, kind: str, settings: Mapping[str, Any], facts: Mapping[str, Any]) -> Path:
    """Writes the settings of ``fit`` or ``learn``; ``facts`` say how they were found."""
    path = folder / NAME
    with storage_errors(path, do="name another folder with --run"):
        replace(path, json.dumps({"version": _VERSION, "for": kind, "settings": dict(settings), **facts}, indent=1))
    return path


def applied(kind: str, options: dict[str, Any], given: set[str]) -> tuple[dict[str, Any], set[str]]:
    """The options with the settings of ``--tuned`` where none is on the command line, and which are stated now.

    A rate belongs to its optimizer: that of the file is left out where another optimizer is asked for.
    """
    name = options["tuned"]
    if name is None:
        return options, given
    if options["origin"]:
        raise SettingError(got="--tuned beside --from", wanted="one of the two", do="leave one out")
    settings = _settings(Path(name), kind)
    if "optimizer" in given and options["optimizer"] != settings.get("optimizer"):
        settings.pop("learning_rate", None)
    unknown = sorted(settings.keys() - options.keys())
    if unknown:
        raise SettingError(
            got=f"{name} with {', '.join(unknown)}", wanted=f"options of {kind}", do="tune with this Millstream"
        )
    settings = {name: value for name, value in settings.items() if name not in given}
    return {**options, **settings}, given | settings.keys()


def _settings(path: Path, kind: str) -> dict[str, Any]:
    path = path / NAME if path.is_dir() else path
    with storage_errors(path, wanted="to read settings", do="name a file that `millstream tune` has written"):
        text = path.read_text(encoding="utf-8")
    try:
        found = json.loads(text)
        was, settings = found["for"], dict(found["settings"])
        is_known = found["version"] == _VERSION
    except (ValueError, KeyError, TypeError) as error:
        raise SettingError(
            got=f"{path}, which holds no settings", wanted="a file of `millstream tune`", do="name another one"
        ) from error
    if not is_known or was != kind:
        raise SettingError(
            got=f"settings for {was} in {path}",
            wanted=f"settings for {kind}",
            do=f"find them by millstream tune {'--batch' if kind == 'fit' else '--online'}",
        )
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
