"""One atomic, checksummed commit of all state, and its return. Nothing is ever unpickled.

    checkpoints/00000042/weights.safetensors   every tensor and array of the state, by its path
                         state.json            everything else, with {"$tensor": path} in their places
                         manifest.json         size and SHA-256 of both, and of itself

A commit is written under another name, synced, renamed, and its folder synced: it is there whole or not at all. What
is to be written is a snapshot, a copy that nothing else changes, so that a thread may write it while learning goes on.
This file knows state (nested dicts and lists of JSON values, tensors and arrays), not what it means.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from millstream.contracts import State
from millstream.errors import CheckpointError
from millstream.packing import Array, Block, pack, write_pieces
from millstream.rows import csr
from millstream.storage import GO_ON, make_folder, storage_errors, sync

__all__ = [
    "GO_ON",
    "MANIFEST",
    "Block",
    "Snapshot",
    "drop_after",
    "exists",
    "kept",
    "newest",
    "read",
    "store",
    "take",
    "verify",
    "write",
]

FORMAT = 1
MANIFEST, _STATE, _TENSORS = "manifest.json", "state.json", "weights.safetensors"
_FILES = _TENSORS, _STATE  # those that the manifest speaks of
_MALFORMED = (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError)


class Snapshot(NamedTuple):
    """A state as it was, ready to be written: its JSON part, and its tensors as a safetensors file has them."""

    tree: State
    header: bytes
    data: memoryview  # in the block that was given to `take`


def take(state: State, block: Block) -> Snapshot:
    """Copies ``state``, its tensors into ``block``, which must be left alone until the snapshot is written."""
    tensors: dict[str, Array] = {}
    tree = _flatten(state, "", tensors, {})
    return Snapshot(tree, *pack(tensors, block))


def write(folder: Path, state: State, *, keep: int = 3, name: str | None = None) -> Path:
    """Commits ``state`` as the newest checkpoint in ``folder`` and drops all but the last ``keep``.

    Its name is the next number, or ``name``, of digits; what had this name is replaced, if it is not the same.

    Raises ``StorageError`` when the disk does not take it; what was committed before stays as it was.
    """
    return store(folder, take(state, Block()), keep=keep, name=name)


def store(
    folder: Path, snapshot: Snapshot, *, keep: int = 3, name: str | None = None, sync: Callable[[Path], None] = sync
) -> Path:
    """``write`` of a snapshot; ``sync`` makes a file or the names in a folder durable, or raises an ``OSError``."""
    with storage_errors(folder, do=GO_ON):
        before = kept(folder)
        if not before:
            make_folder(folder)
        name = name or f"{int(before[-1].name) + 1 if before else 0:08d}"
        temporary, final = folder / f".new-{name}", folder / name
        for left_over in folder.glob(".new-*"):  # of a process that was killed while it wrote
            _remove(left_over)
        try:
            temporary.mkdir()
            _fill(temporary, snapshot)
            for path in [*(temporary / file for file in _FILES), temporary / MANIFEST, temporary]:
                sync(path)
            if not _is_same(temporary, final):
                if final.exists():
                    _remove(final)
                temporary.rename(final)
                sync(folder)
        finally:
            _remove(temporary)
        for path in kept(folder)[:-keep]:
            _remove(path)
    return final


def read(path: Path) -> State:
    """The state in one checkpoint, in fresh memory. Raises ``CheckpointError`` when it is damaged or is none."""
    tree = verify(path)
    try:
        # A tensor that is mapped from the file may be unaligned, which changes the bits of later products: copy.
        tensors = {name: torch.empty_like(t).copy_(t) for name, t in load_file(path / _TENSORS).items()}
        state: State = _restore(tree, tensors)
    except FileNotFoundError as error:  # a trainer at work has dropped it meanwhile
        raise CheckpointError(
            got=f"a checkpoint that went away: {path}", wanted="one that stays", do="read the newest one again"
        ) from error
    except (
        *_MALFORMED,
        RuntimeError,
        RecursionError,
    ) as error:  # it fits its manifest, which somebody else has written
        raise _damaged(path) from error
    return state


def verify(path: Path) -> State:
    """Reads every byte of a checkpoint: the JSON part of its state, as in state.json, when all fits the manifest.

    Raises ``CheckpointError`` when it is damaged or is none.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        sealed = manifest.pop("sha256") == _self_digest(manifest)
        if sealed and manifest["format"] != FORMAT:
            raise CheckpointError(
                got=f"a checkpoint of format {manifest['format']} in {path}",
                wanted=f"format {FORMAT}",
                do="read it with the version of Millstream that wrote it",
            )
        files = manifest["files"]
        if not sealed or set(files) != set(_FILES) or not all(_fits(path / name, files[name]) for name in _FILES):
            raise _damaged(path)
        tree = json.loads((path / _STATE).read_text(encoding="utf-8"))
        if not isinstance(tree, dict):
            raise _damaged(path)
        return tree
    except CheckpointError:
        raise
    except (*_MALFORMED, RecursionError) as error:
        raise _damaged(path) from error


def kept(folder: Path) -> list[Path]:
    """The checkpoints in ``folder``, the oldest first; whether they are whole, ``verify`` tells."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.name.isdecimal() and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name))


def exists(folder: Path) -> bool:
    """Whether anything was ever committed in ``folder``."""
    return bool(kept(folder))


def newest(folder: Path) -> tuple[State, Path, list[str]]:
    """The state of the newest whole checkpoint, where it is, and what was wrong with those that were passed over."""
    problems: list[str] = []
    for path in reversed(kept(folder)):
        try:
            return read(path), path, problems
        except CheckpointError as error:
            problems.append(f"passed over {error.got}")
    raise CheckpointError(
        got=f"no whole checkpoint in {folder}" + (f" ({'; '.join(problems)})" if problems else ""),
        wanted="a run folder with one",
        do="name the folder that was given with --run, or begin a new run",
    )


def drop_after(folder: Path, number: str) -> None:
    """Takes all checkpoints away that are newer than this one, the newest first."""
    for path in reversed(kept(folder)):
        if int(path.name) > int(number):
            _remove(path)
    sync(folder)


def _is_same(made: Path, there: Path) -> bool:
    """Whether what is there already is whole, and what was made now."""
    try:
        verify(there)
        return (made / MANIFEST).read_bytes() == (there / MANIFEST).read_bytes()
    except (CheckpointError, OSError):
        return False


def _remove(path: Path) -> None:
    """Takes the manifest away first: a half-deleted checkpoint must not look whole."""
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def _fill(folder: Path, snapshot: Snapshot) -> None:
    """The files, the manifest last; each is hashed as it is written."""
    text = json.dumps(snapshot.tree, allow_nan=False).encode()
    weights = write_pieces(folder / _TENSORS, [snapshot.header, snapshot.data])
    body = {"format": FORMAT, "files": {_TENSORS: weights, _STATE: write_pieces(folder / _STATE, [text])}}
    sealed = json.dumps({**body, "sha256": _self_digest(body)}, indent=1)
    write_pieces(folder / MANIFEST, [sealed.encode()])


def _self_digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _fits(path: Path, facts: dict[str, Any]) -> bool:
    """Whether a file is what the manifest says. Its kind and size come first: a device has no end."""
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode) or found.st_size != facts["bytes"]:
        return False
    with path.open("rb") as file:
        return bool(hashlib.file_digest(file, "sha256").hexdigest() == facts["sha256"])


def _damaged(folder: Path) -> CheckpointError:
    return CheckpointError(
        got=f"a torn or damaged checkpoint in {folder}",
        wanted="files that match their manifest",
        do="use the one before it; a run that is resumed does so by itself",
    )


def _flatten(value: Any, path: str, tensors: dict[str, Array], seen: dict[tuple[Any, ...], str]) -> Any:
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


def _flatten_tensor(value: Any, path: str, tensors: dict[str, Array], seen: dict[tuple[Any, ...], str]) -> Any:
    while path in tensors or path == "__metadata__":  # {"a": {"b": …}, "a.b": …}; a name that the file format keeps
        path += "'"
    if isinstance(value, np.ndarray):
        tensors[path] = value
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
        tensors[path] = value
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
