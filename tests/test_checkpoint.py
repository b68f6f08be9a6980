"""Run: pytest tests/test_checkpoint.py"""

import errno
import hashlib
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load

from millstream import checkpoint, packing
from millstream.errors import CheckpointError, StorageError
from millstream.packing import Block, pack

scalars = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats() | st.text(max_size=5)
arrays = st.sampled_from(
    [
        *(torch.randn(2, 3), torch.tensor(1.5, dtype=torch.float64), torch.zeros(0, 4)),
        *(
            torch.ones(2, dtype=torch.bfloat16),
            np.arange(5),
            np.array([], dtype=np.float32),
            np.array([True, False]),
            np.array(7),
        ),
    ]
)
states = st.recursive(
    scalars | arrays,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=4) | st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=8,
)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and (a == b or (a != a and b != b))


@settings(max_examples=60, deadline=None)
@given(state=st.dictionaries(st.text(min_size=1, max_size=4), states, max_size=4))
def test_what_is_read_is_what_was_written(state: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = checkpoint.write(tmp_path_factory.mktemp("c"), state)
    assert same(checkpoint.read(path), state)


def test_the_last_three_are_kept_and_the_newest_is_read(tmp_path: Path) -> None:
    for number in range(5):
        checkpoint.write(tmp_path, {"number": number})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000002", "00000003", "00000004"]
    assert checkpoint.newest(tmp_path)[0] == {"number": 4}


@pytest.mark.parametrize("file", ["weights.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "empty"])
def test_a_damaged_one_is_noticed_and_the_one_before_is_used(tmp_path: Path, file: str, damage: str) -> None:
    checkpoint.write(tmp_path, {"number": 1, "tensor": torch.arange(10)})
    path = checkpoint.write(tmp_path, {"number": 2, "tensor": torch.arange(10)}) / file
    content = path.read_bytes()
    if damage == "flip":
        place = len(content) // 2
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    elif damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    state, _, problems = checkpoint.newest(tmp_path)
    assert state["number"] == 1
    assert len(problems) == 1


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    weight = torch.randn(100, 100)
    path = checkpoint.write(tmp_path, {"a": weight, "b": weight})
    assert (path / "weights.safetensors").stat().st_size < 1.2 * weight.numel() * 4
    state = checkpoint.read(path)
    assert torch.equal(state["a"], weight)
    assert torch.equal(state["b"], weight)


def test_many_arrays_made_on_the_way_keep_their_own_values(tmp_path: Path) -> None:
    state = {f"{place}": np.full(4, place) for place in range(200)}
    read = checkpoint.read(checkpoint.write(tmp_path, state))
    assert all((read[name] == int(name)).all() for name in state)


def test_paths_that_look_alike_are_kept_apart(tmp_path: Path) -> None:
    state = {"a": {"b": torch.zeros(2)}, "a.b": torch.ones(2), "a.b'": np.array(3)}
    assert same(checkpoint.read(checkpoint.write(tmp_path, state)), state)


def test_a_view_is_not_its_whole(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    state = checkpoint.read(checkpoint.write(tmp_path, {"t": base.t(), "row": base[1], "base": base}))
    assert torch.equal(state["t"], base.t())
    assert torch.equal(state["row"], base[1])


def test_a_function_in_the_state_is_refused_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'scheduler\.lr_lambdas\.0'.*nothing is pickled"):
        checkpoint.write(tmp_path, {"scheduler": {"lr_lambdas": [lambda step: 1.0]}})
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_what_was_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.write(tmp_path, {"number": 1})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(packing.os, "write", full)
    with pytest.raises(StorageError, match="No space left on device"):
        checkpoint.write(tmp_path, {"number": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["00000000"]
    assert checkpoint.newest(tmp_path)[0] == {"number": 1}


def test_what_is_no_checkpoint_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        checkpoint.newest(tmp_path / "absent")


# ---------------------------------------------------------------- files that somebody made to do harm


def sealed(path: Path) -> None:
    """A manifest that fits whatever the two files are now: what an attacker would write."""
    body: dict[str, Any] = {"format": 1, "files": {}}
    for name in ("weights.safetensors", "state.json"):
        content = (path / name).read_bytes()
        body["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    seal = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps({**body, "sha256": seal}))


def weights(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('it was executed')",)


FOUR = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
EVIL: dict[str, tuple[str, bytes]] = {
    "a header of 2^63 bytes": ("weights.safetensors", weights({}, length=2**63)),
    "a header longer than the file": ("weights.safetensors", weights({}, length=10_000)),
    "tensors that overlap": ("weights.safetensors", weights({"t": FOUR, "u": FOUR}, b"1234")),
    "a hole": ("weights.safetensors", weights({"t": {**FOUR, "data_offsets": [4, 8]}}, b"12345678")),
    "a shape of too many": ("weights.safetensors", weights({"t": {**FOUR, "shape": [2]}}, b"1234")),
    "a shape beyond all numbers": ("weights.safetensors", weights({"t": {**FOUR, "shape": [2**33, 2**33]}}, b"1234")),
    "a negative shape": ("weights.safetensors", weights({"t": {**FOUR, "shape": [-1]}}, b"1234")),
    "a type of nobody": ("weights.safetensors", weights({"t": {**FOUR, "dtype": "OBJ"}}, b"1234")),
    "no header": ("weights.safetensors", weights(b"\xff\xfe")),
    "bytes behind the end": ("weights.safetensors", weights({"t": FOUR}, b"12345")),
    "another tensor": ("weights.safetensors", weights({"u": FOUR}, b"1234")),
    "a pickle as weights": ("weights.safetensors", pickle.dumps(Harmful())),
    "a pickle as state": ("state.json", pickle.dumps(Harmful())),
    "a state that is a list": ("state.json", b"[1]"),
    "a state that is too deep": ("state.json", b"[" * 100_000),
    "rows of no tensor": ("state.json", b'{"a": {"$csr": 7}}'),
    "items of nothing": ("state.json", b'{"a": {"$items": [1]}}'),
    "a number of words": ("state.json", b'{"a": {"$float": "many"}}'),
}


@pytest.mark.parametrize("case", EVIL)
def test_an_evil_one_is_passed_over_and_nothing_is_executed(tmp_path: Path, case: str) -> None:
    checkpoint.write(tmp_path, {"number": 1, "t": torch.ones(1)})
    path = checkpoint.write(tmp_path, {"number": 2, "t": torch.ones(1)})
    name, content = EVIL[case]
    (path / name).write_bytes(content)
    sealed(path)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.read(path)
    state, _, problems = checkpoint.newest(tmp_path)
    assert state["number"] == 1 and len(problems) == 1


def test_an_evil_manifest_reads_no_other_file(tmp_path: Path) -> None:
    path = checkpoint.write(tmp_path, {"number": 1})
    device = path / "state.json"
    device.unlink()
    device.symlink_to("/dev/zero")  # has no end
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.verify(path)
    body: dict[str, Any] = {"format": 1, "files": {"../../../../../etc/passwd": {"bytes": 1, "sha256": ""}}}
    seal = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps({**body, "sha256": seal}))
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.verify(path)


# ---------------------------------------------------------------- snapshots


def test_a_snapshot_is_the_state_as_it_was(tmp_path: Path) -> None:
    weight, array, words = torch.ones(1000), np.ones(5), ["a"]
    snapshot = checkpoint.take({"t": weight, "a": array, "words": words}, Block())
    weight.zero_()
    array[:] = 0
    words.append("b")
    state = checkpoint.read(checkpoint.store(tmp_path, snapshot))
    assert state["t"].sum() == 1000 and state["a"].sum() == 5 and state["words"] == ["a"]


def test_a_block_is_used_again_and_grows_only_when_it_must() -> None:
    block = Block()
    first = block.room(1_000_000).data_ptr()
    assert first % 4096 == 0
    assert block.room(900_000).data_ptr() == first == block.room(1_000_000).data_ptr()
    assert len(block.room(5_000_000)) == 5_000_000


@settings(max_examples=60, deadline=None)
@given(
    types=st.lists(st.sampled_from(sorted(packing._NAMES, key=str)), max_size=8),
    shape=st.lists(st.integers(0, 4), max_size=3),
    used=st.binary(max_size=500),
)
def test_the_library_reads_what_is_packed(types: list[torch.dtype], shape: list[int], used: bytes) -> None:
    block = Block()
    block.room(500)[: len(used)] = torch.tensor(list(used), dtype=torch.uint8)  # of a snapshot before
    tensors = {f"t/{n}.é": torch.randint(0, 2, shape).to(dtype) for n, dtype in enumerate(types)}
    header, data = pack(tensors, block)
    found = load(header + bytes(data))
    assert sorted(found) == sorted(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert found[name].to(torch.complex64).equal(tensor.to(torch.complex64))


def test_strided_reversed_and_read_only_values_are_packed_by_value(tmp_path: Path) -> None:
    frozen = np.arange(6).reshape(2, 3)
    frozen.flags.writeable = False
    parameter = torch.nn.Parameter(torch.arange(4.0))
    state = {"r": np.arange(5)[::-1], "f": frozen.T, "p": parameter, "s": torch.arange(10)[::3], "__metadata__": frozen}
    read = checkpoint.read(checkpoint.write(tmp_path, state))
    assert read["r"].tolist() == [4, 3, 2, 1, 0] and read["f"].tolist() == frozen.T.tolist()
    assert read["p"].tolist() == [0, 1, 2, 3] and not read["p"].requires_grad
    assert read["s"].tolist() == [0, 3, 6, 9] and read["__metadata__"].tolist() == frozen.tolist()


@pytest.mark.parametrize(
    "value", [np.array(["text"]), np.array([None]), np.arange(3, dtype=">i4"), torch.zeros(2, dtype=torch.complex128)]
)
def test_elements_that_the_file_has_no_type_for_are_refused_by_their_place(tmp_path: Path, value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"elements of type .* at 'a.b' in the state"):
        checkpoint.write(tmp_path, {"a": {"b": value}})


def test_a_piece_that_the_system_takes_in_parts_is_written_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, content = os.write, bytes(range(256)) * 50
    monkeypatch.setattr(packing, "_PIECE", 1000)
    monkeypatch.setattr(packing.os, "write", lambda file, piece: whole(file, piece[:37]))
    facts = packing.write_pieces(tmp_path / "x", [content, b"", b"end"])
    assert (tmp_path / "x").read_bytes() == content + b"end"
    assert facts == {"bytes": 12803, "sha256": hashlib.sha256(content + b"end").hexdigest()}


def test_what_is_read_is_in_memory_of_its_own_at_multiples_of_64(tmp_path: Path) -> None:
    tensors = {str(n): torch.ones(n + 1, dtype=torch.uint8 if n % 2 else torch.float32) for n in range(30)}
    read = checkpoint.read(checkpoint.write(tmp_path, tensors))
    for tensor in read.values():
        assert tensor.data_ptr() % 64 == 0
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
        tensor.zero_()  # a mapped file would be written through, or fault
    assert all(tensor.sum() > 0 for tensor in checkpoint.read(tmp_path / "00000000").values())


def test_the_oldest_one_can_be_verified_again(tmp_path: Path) -> None:
    for number in range(4):
        checkpoint.write(tmp_path, {"number": number, "t": torch.ones(3)})
    oldest = checkpoint.kept(tmp_path)[0]
    assert checkpoint.verify(oldest)["number"] == 1
    content = bytearray((oldest / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (oldest / "weights.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.verify(oldest)
