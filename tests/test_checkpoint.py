"""Run: pytest tests/test_checkpoint.py"""

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream import checkpoint, packing
from millstream.errors import CheckpointError, StorageError

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
