"""One atomic, checksummed commit of all state, and its return. Nothing is ever unpickled.

    checkpoints/00000042/weights.safetensors   every tensor and array of the state, by its path
                         state.json            everything else, with {"$tensor": path} in their places
                         manifest.json         size and SHA-256 of both, and of itself

A commit is written under another name, synced, renamed, and its folder synced: it is there whole or not at all. This
file knows state (nested dicts and lists of JSON values, tensors and arrays), not what it means.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from millstream.contracts import State
from millstream.errors import CheckpointError
from millstream.rows import csr
from millstream.storage import make_folder, storage_errors, sync

__all__ = ["GO_ON", "exists", "newest", "read", "write"]

FORMAT = 1
GO_ON = "free some space or allow writing, then go on with --resume: what was committed before is whole"
_MANIFEST, _STATE, _TENSORS = "manifest.json", "state.json", "weights.safetensors"


def write(folder: Path, state: State, *, keep: int = 3) -> Path:
    """Commits ``state`` as the newest checkpoint in ``folder`` and drops all but the last ``keep``.

    Raises ``StorageError`` when the disk does not take it; what was committed before stays as it was.
    """
    tensors: dict[str, Tensor] = {}
    tree = _flatten(state, "", tensors, {})
    with storage_errors(folder, do=GO_ON):
        number = max((int(path.name) for path in _folders(folder)), default=-1) + 1
        if not number:
            make_folder(folder)
        temporary, final = folder / f".new-{number:08d}", folder / f"{number:08d}"
        for left_over in folder.glob(".new-*"):  # of a process that was killed while it wrote
            _remove(left_over)
        try:
            temporary.mkdir()
            save_file(tensors, temporary / _TENSORS)
            (temporary / _STATE).write_text(json.dumps(tree, allow_nan=False), encoding="utf-8")
            _write_manifest(temporary)
            for path in [*temporary.iterdir(), temporary]:
                sync(path)
            temporary.rename(final)
            sync(folder)
        except BaseException:
            _remove(temporary)
            raise
        for path in sorted(_folders(folder))[:-keep]:
            _remove(path)
    return final


def read(path: Path) -> State:
    """The state in one checkpoint, in fresh memory. Raises ``CheckpointError`` when it is damaged or is none."""
    _verify(path)
    try:
        tree = json.loads((path / _STATE).read_text(encoding="utf-8"))
        # A tensor that is mapped from the file may be unaligned, which changes the bits of later products: copy.
        tensors = {name: torch.empty_like(t).copy_(t) for name, t in load_file(path / _TENSORS).items()}
        state: State = _restore(tree, tensors)
        if not isinstance(state, dict):
            raise TypeError("state is no object")
    except (OSError, SafetensorError) as error:  # a trainer at work has dropped it meanwhile
        raise CheckpointError(
            got=f"a checkpoint that went away: {path}", wanted="one that stays", do="read the newest one again"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:  # sealed, but not by Millstream
        raise CheckpointError(
            got=f"state that cannot be read in {path} ({type(error).__name__})",
            wanted="a checkpoint that Millstream wrote",
            do="use the one before it; a run that is resumed does so by itself",
        ) from error
    return state


def exists(folder: Path) -> bool:
    """Whether anything was ever committed in ``folder``."""
    return bool(_folders(folder))


def newest(folder: Path) -> tuple[State, Path, list[str]]:
    """The state of the newest whole checkpoint, where it is, and what was wrong with those that were passed over."""
    problems: list[str] = []
    for path in sorted(_folders(folder), reverse=True):
        try:
            return read(path), path, problems
        except CheckpointError as error:
            problems.append(f"passed over {error.got}")
    raise CheckpointError(
        got=f"no whole checkpoint in {folder}" + (f" ({'; '.join(problems)})" if problems else ""),
        wanted="a run folder with one",
        do="name the folder that was given with --run, or begin a new run",
    )


def _folders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.isdigit() and path.is_dir()] if folder.is_dir() else []


def _remove(path: Path) -> None:
    """Takes the manifest away first: a half-deleted checkpoint must not look whole."""
    (path / _MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_manifest(folder: Path) -> None:
    files = {n: {"bytes": (folder / n).stat().st_size, "sha256": _digest(folder / n)} for n in (_TENSORS, _STATE)}
    body = {"format": FORMAT, "files": files}
    text = json.dumps({**body, "sha256": _self_digest(body)}, indent=1)
    (folder / _MANIFEST).write_text(text, encoding="utf-8")


def _self_digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _verify(folder: Path) -> None:
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        sealed = manifest.pop("sha256") == _self_digest(manifest)
        if sealed and manifest["format"] != FORMAT:
            raise CheckpointError(
                got=f"a checkpoint of format {manifest['format']} in {folder}",
                wanted=f"format {FORMAT}",
                do="read it with the version of Millstream that wrote it",
            )
        whole = sealed and all(_digest(folder / name) == facts["sha256"] for name, facts in manifest["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        whole = False
    if not whole:
        raise CheckpointError(
            got=f"a torn or damaged checkpoint in {folder}",
            wanted="files that match their manifest",
            do="use the one before it; a run that is resumed does so by itself",
        )


def _flatten(value: Any, path: str, tensors: dict[str, Tensor], seen: dict[tuple[Any, ...], str]) -> Any:
    """``value`` as JSON; its tensors go to ``tensors`` by path, aliases of one memory once."""
    if isinstance(value, Tensor | np.ndarray):
        return _flatten_tensor(value, path, tensors, seen)
    if isinstance(value, dict):
        items = {
            key: _flatten(item, f"{path}.{key}" if path else str(key), tensors, seen) for key, item in value.items()
        }
        if all(isinstance(key, str) and not key.startswith("$") for key in items):
            return items
        return {"$items": [[_flatten(key, path, tensors, seen), item] for key, item in items.items()]}
    if isinstance(value, list | tuple):
        items_list = [_flatten(item, f"{path}.{place}", tensors, seen) for place, item in enumerate(value)]
        return {"$tuple": items_list} if isinstance(value, tuple) else items_list
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": repr(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise CheckpointError(
        got=f"a {type(value).__name__} at {path!r} in the state",
        wanted="tensors, arrays and JSON values; nothing is pickled",
        do="use a part whose state can be named and saved (for LambdaLR: another scheduler)",
    )


def _flatten_tensor(value: Any, path: str, tensors: dict[str, Tensor], seen: dict[tuple[Any, ...], str]) -> Any:
    while path in tensors:  # {"a": {"b": …}, "a.b": …}
        path += "'"
    if isinstance(value, np.ndarray):
        tensors[path] = torch.from_numpy(np.array(value, order="C"))
        return {"$array": path}
    if value.is_sparse:
        raise CheckpointError(got=f"a sparse tensor at {path!r}", wanted="dense ones", do="store it with .to_dense()")
    if value.layout is torch.sparse_csr:  # records whose labels are late
        parts = value.crow_indices(), value.col_indices(), value.values()
        saved = [_flatten(part, f"{path}.{place}", tensors, seen) for place, part in enumerate(parts)]
        return {"$csr": [*saved, value.shape[1]]}
    # Tied weights are one memory. The state holds every tensor, so an address cannot be given out twice meanwhile.
    identity = (value.data_ptr(), tuple(value.shape), value.stride(), value.dtype, value.device)
    first = seen.setdefault(identity, path) if value.numel() else path
    if first == path:
        tensors[path] = value.detach().cpu().contiguous().clone()
    return {"$tensor": first}


def _restore(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, list):
        return [_restore(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    for mark, rebuild in (
        ("$tensor", lambda name: tensors[name]),
        ("$array", lambda name: tensors[name].numpy().copy()),
        ("$csr", lambda parts: csr(*_restore(parts, tensors))),
        ("$tuple", lambda items: tuple(_restore(item, tensors) for item in items)),
        ("$items", lambda items: {_restore(key, tensors): _restore(item, tensors) for key, item in items}),
        ("$float", float),
    ):
        if mark in tree:
            return rebuild(tree[mark])
    return {key: _restore(item, tensors) for key, item in tree.items()}
