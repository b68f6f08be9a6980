"""Run: pytest tests/test_sources.py"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from millstream.errors import DataError, SettingError, StorageError
from millstream.sources import (
    CachedSource,
    FileSource,
    Mixed,
    Repeated,
    Shuffled,
    Subset,
    TableSource,
    TensorSource,
    as_source,
    cached,
    hold_out,
)
from millstream.sources.draws import hash_column, key_of, permute, uniform
from source_checks import check_source, places_of

RNG = np.random.default_rng(3)
X = RNG.normal(size=(41, 4))
Y = RNG.integers(0, 3, 41)
TABLE = pa.table(
    {"number": pa.array([None if k % 7 == 0 else k / 4 for k in range(41)]), "word": [f"w{k % 5}" for k in range(41)]}
)


class Squares(Dataset):
    def __len__(self) -> int:
        return 23

    def __getitem__(self, number: int) -> Any:
        if not 0 <= number < 23:
            raise IndexError(number)
        return np.array([number, number**2], dtype=np.float64), number % 2


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        return ((torch.full((2, 3), float(k)), float(k)) for k in range(23))


MEMORY = {
    "arrays": lambda: as_source((X, Y)),
    "weights": lambda: as_source(X, Y, weights=np.ones(41)),
    "tuple": lambda: as_source((torch.arange(41), torch.ones(41, 2)), Y),
    "dict": lambda: as_source({"a": torch.arange(41), "b": torch.ones(41, 2, 3)}, Y.astype(float)),
    "tensors": lambda: as_source(TensorDataset(torch.ones(41, 2), torch.arange(41))),
    "arrow": lambda: as_source(TABLE),
    "pandas": lambda: as_source(TABLE.to_pandas()),
    "polars": lambda: as_source(pl.from_arrow(TABLE), Y),
    "columns": lambda: as_source({"a": list(range(9)), "b": np.array(["x"] * 9)}),
    "dataset": lambda: as_source(Squares()),
    "records": lambda: as_source([{"a": k, "b": None if k % 3 else str(k)} for k in range(40)]),
    "pairs": lambda: as_source([(torch.full((2,), float(k)), k) for k in range(40)]),
    "shuffled": lambda: Shuffled(as_source((X, Y)), 1, 2),
    "shuffled table": lambda: Shuffled(as_source(TABLE), 1, 2),
    "subset": lambda: Subset(as_source((X, Y)), [3, 1, 40, 1]),
    "repeated": lambda: Repeated(as_source((X, Y)), 3),
    "mixed": lambda: Mixed([(as_source((X, Y)), 1), (Repeated(as_source((X + 9, Y)), 2), 2)], seed=4),
    "train": lambda: hold_out(as_source((X, Y)), 0.3)[0],
    "last": lambda: hold_out(as_source(TABLE), 0.3, by="time")[1],
    "by word": lambda: hold_out(as_source(TABLE), 0.5, column="word")[0],
    "by word, repeated": lambda: Repeated(hold_out(as_source(TABLE), 0.5, column="word")[0], 2),
}


@pytest.mark.parametrize("name", MEMORY)
def test_contract(name: str) -> None:
    check_source(MEMORY[name])


@pytest.mark.parametrize("data", [Stream(), DataLoader(Squares(), batch_size=5)], ids=["iterable", "loader"])
def test_contract_of_what_only_reads(data: Any, tmp_path: Path) -> None:
    whole = check_source(lambda: as_source(data))
    assert len(whole) == 23
    copy = cached(as_source(data), tmp_path)
    assert isinstance(copy, CachedSource)
    assert check_source(lambda: copy) == whole


@pytest.mark.parametrize("name", ["dict", "tuple", "weights", "by word"])
def test_cache_gives_the_same_records(name: str, tmp_path: Path) -> None:
    source = MEMORY[name]()
    source.can_jump = False  # so that there is something to import
    whole = places_of(MEMORY[name]().read())
    assert check_source(lambda: cached(source, tmp_path)) == whole


def test_types_of_arrays() -> None:
    source = as_source((X, Y.astype(np.int32)))
    chunk = next(source.read())
    assert (chunk.inputs.dtype, chunk.targets.dtype) == (torch.float32, torch.int64)
    chunk = next(as_source((torch.ones(3, dtype=torch.float64), [[1], [0], [1]])).read())
    assert chunk.inputs.dtype == torch.float64
    assert chunk.targets.tolist() == [1, 0, 1]
    assert next(as_source(np.ones((3, 2), np.uint8), np.ones(3)).read()).inputs.dtype == torch.uint8
    frozen = np.ones((3, 2), np.float32)
    frozen.flags.writeable = False
    assert next(as_source(frozen).read()).inputs.tolist() == [[1, 1]] * 3


def test_dataset_items_become_single_precision() -> None:
    chunk = next(as_source(Squares()).read(size=3))
    assert chunk.inputs.dtype == torch.float32
    assert chunk.targets.tolist() == [0, 1, 0]
    named = [{"pixels": torch.ones(2, 2), "label": torch.tensor(k)} for k in range(4)]
    chunk = next(as_source(named, "label").read())
    assert list(chunk.inputs) == ["pixels"]
    assert chunk.targets.tolist() == [0, 1, 2, 3]


def test_pandas_missing_values_are_null_and_an_index_is_no_column() -> None:
    frame = pd.DataFrame({"a": [1.0, np.nan, 3.0], "b": pd.Categorical(["x", "y", None])})[lambda f: f.index != 2]
    source = as_source(frame, pd.Series([0, 1], name="label"))
    assert next(source.read()).inputs.to_pydict() == {"a": [1.0, None], "b": ["x", "y"], "label": [0, 1]}
    assert source.schema == pa.schema([("a", pa.float64()), ("b", pa.string()), ("label", pa.int64())])
    assert as_source((frame, [0, 1])).schema.names == ["a", "b", "target"]


def test_one_shot_iterator_goes_on_where_it_stands() -> None:
    source = as_source({"a": k} for k in itertools.count())
    assert not source.can_seek
    assert next(source.read(size=2)).inputs.to_pydict() == {"a": [0, 1]}
    chunk = next(source.read(size=2))
    assert (chunk.inputs.to_pydict(), chunk.after) == ({"a": [2, 3]}, 4)
    with pytest.raises(DataError, match="one-shot"):
        next(source.read(2))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: as_source(X, Y[:-1]), "unequal lengths: inputs has 41, targets has 40"),
        (lambda: as_source(np.empty((0, 3))), "without records"),
        (lambda: as_source(np.array([["a"]])), "type <U1"),
        (lambda: as_source(np.array([{}, None])), "type object"),
        (lambda: as_source(pd.DataFrame({"a": ["x", 1]})), "Arrow cannot hold"),
        (lambda: as_source(pd.DataFrame({"a": []})), "0 records"),
        (lambda: as_source([{"a": 1}, {"a": "x"}]), "record 1 of list with 'x' under 'a'"),
        (lambda: as_source(TABLE, Y[:-1]), "40 targets for 41 records"),
        (lambda: as_source(iter([])), "without records"),
        (lambda: as_source(TensorSource(torch.ones(3)), Y), "targets="),
        (lambda: as_source([{"a": 1}], "a"), "beside named columns"),
        (lambda: as_source(5), "type int"),
        (lambda: next(as_source(X).read(42)), "position 42"),
        (lambda: next(as_source(X).read({"row": 1})), "position"),
        (lambda: next(as_source(X).read(size=0)), "size=0"),
        (lambda: as_source(X).take(np.array([41])), "record 41"),
        (lambda: Subset(as_source(X), [-1]), "record -1"),
        (lambda: Shuffled(as_source(Stream())), "cached"),
        (lambda: hold_out(as_source(Stream()), 0.1, by="time"), "not known"),
        (lambda: hold_out(as_source(TABLE), 0.1, column="wrd"), "try 'word'"),
        (lambda: hold_out(as_source(X[:2]), 1e-9), "0 of the 2 records"),
        (lambda: Mixed([(as_source(X), 0.0)]), "above 0"),
        (lambda: list(Repeated(as_source(iter([(1.0, 1)])), 2).read()), "read again"),
        (lambda: list(Mixed([(as_source(X), 1), (as_source(X[:, :2]), 1)]).read()), "different shapes"),
    ],
)
def test_mistakes_are_one_line(call: Any, words: str) -> None:
    with pytest.raises((DataError, SettingError)) as caught:
        call()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_record_that_does_not_fit_is_named() -> None:
    source = as_source({"a": k if k < 150 else "x"} for k in range(200))
    with pytest.raises(DataError, match=r"record 150 .*'x' under 'a'; wanted int64"):
        list(source.read(size=40))


@given(st.integers(1, 3000), st.integers(0, 2**40), st.integers(0, 10))
@settings(max_examples=60, deadline=None)
def test_permutation_is_one(length: int, seed: int, epoch: int) -> None:
    places = np.arange(length)
    numbers = permute(key_of(seed, epoch), places, length)
    assert sorted(numbers.tolist()) == places.tolist()
    assert permute(key_of(seed, epoch), places[length // 2 :], length).tolist() == numbers[length // 2 :].tolist()


@pytest.mark.parametrize("length", [2, 3, 17])
def test_permutation_prefers_no_place(length: int) -> None:
    counts = np.zeros((length, length))
    rounds = 1000
    for epoch in range(rounds):
        counts[np.arange(length), permute(key_of(0, epoch), np.arange(length), length)] += 1
    expected = rounds / length
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = (length - 1) ** 2
    assert chi_square < freedom + 5 * np.sqrt(2 * freedom)


def test_orders_differ_by_seed_and_epoch() -> None:
    source = as_source(np.arange(100.0))
    orders = {tuple(places_of(Shuffled(source, seed, epoch).read())) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_uniform_draws_are_pinned() -> None:
    """Runs of long ago must find the same records held out."""
    assert uniform(key_of(7), np.arange(3)).round(12).tolist() == [0.75828719243, 0.826552692653, 0.978196919247]
    assert permute(key_of(7, 1), np.arange(6), 6).tolist() == [5, 0, 4, 3, 1, 2]


def test_mixed_keeps_the_weights() -> None:
    parts = [(Repeated(as_source(np.full(100, float(k)))), k + 1.0) for k in range(3)]
    chunk = next(Mixed(parts, seed=1).read(size=60_000))
    share = torch.bincount(chunk.inputs.long()) / 60_000
    assert torch.allclose(share, torch.tensor([1, 2, 3]) / 6, atol=0.01)


@pytest.mark.parametrize("options", [{}, {"by": "time"}, {"seed": 5}, {"column": "word"}])
def test_hold_out_is_a_partition(options: dict[str, Any]) -> None:
    table = pa.table({"place": range(2000), "word": [f"user {k % 97}" for k in range(2000)]})
    sources = [TableSource(table), as_source(dict(row) for row in table.to_pylist())]
    if options.get("by") == "time":
        sources.pop()
    for source in sources:
        train, held = hold_out(source, 0.2, **options)
        if source.can_seek:
            parts = [places_of(train.read()), places_of(held.read())]
        else:  # a one-shot iterator has room for one reading
            again = as_source(dict(row) for row in table.to_pylist())
            parts = [places_of(train.read()), places_of(hold_out(again, 0.2, **options)[1].read())]
        assert sorted(row["place"] for part in parts for row in part) == list(range(2000))
        assert 0.1 < len(parts[1]) / 2000 < 0.3
        if "column" in options:
            assert not {row["word"] for row in parts[0]} & {row["word"] for row in parts[1]}
        if options.get("by") == "time":
            assert [row["place"] for row in parts[1]] == list(range(1600, 2000))


@given(st.lists(st.none() | st.text(max_size=5), min_size=1, max_size=30), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_hash_depends_on_the_value_only(values: list[str | None], skip: int) -> None:
    whole = hash_column(pa.array(values, pa.string())).tolist()
    part = hash_column(pa.array(values, pa.string()).slice(skip)).tolist()
    assert part == whole[skip:]
    texts = [value or "" for value in values]
    assert len(set(whole)) == len(set(texts))
    assert len(set(zip(texts, whole, strict=True))) == len(set(texts))


def test_cache_is_made_once_and_a_torn_one_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1,x\nbad,y\n3,z\n" + "4,w\n" * 100)

    def make() -> FileSource:
        return FileSource(path, schema={"a": pa.int64()}, on_error="quarantine")

    steps: list[int] = []
    copy = cached(make(), tmp_path / "cache", progress=steps.append)
    assert steps == [102]
    assert isinstance(copy, CachedSource)
    assert (copy.num_records, copy.num_rejected) == (102, 1)
    assert copy.rejected[0].where.endswith("a.csv:3")
    check_source(lambda: cached(make(), tmp_path / "cache", progress=steps.append))
    assert steps == [102]
    (file,) = (tmp_path / "cache").glob("*.arrow")
    file.write_bytes(file.read_bytes()[:-20])
    assert cached(make(), tmp_path / "cache", progress=steps.append).num_records == 102
    assert steps == [102, 102]
    path.write_text(path.read_text().replace("4,w", "5,w"))
    assert next(cached(make(), tmp_path / "cache").read()).inputs.to_pylist()[-1] == {"a": 5, "b": "w"}
    assert not list((tmp_path / "cache").glob("*.part"))


def test_an_import_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    def stop(num_records: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(as_source(Stream()), tmp_path, progress=stop)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="choose another folder"):
        cached(as_source(Stream()), tmp_path / "file" / "cache")


def test_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLSTREAM_CACHE", str(tmp_path / "here"))
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1,x\n2,y\n")
    cached(as_source(path))
    assert len(list((tmp_path / "here").glob("*.arrow"))) == 1


def test_a_copy_that_nobody_could_find_again_leaves_nothing_behind(tmp_path: Path) -> None:
    copy = cached(as_source(iter([{"a": 1}, {"a": 2}, {"a": 3}])), tmp_path)
    assert not list(tmp_path.iterdir())
    assert copy.take(np.array([2, 0])).inputs.to_pydict() == {"a": [3, 1]}


def test_a_cached_record_knows_where_it_came_from(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1,x\nbad,x\n\n" + "".join(f"{number},y\n" for number in range(2, 70_000)))
    source = FileSource(path, schema={"a": pa.int64()}, on_error="quarantine")
    copy = cached(source, tmp_path / "cache")
    chunk = copy.take(np.array([65_600, 0, 1]))
    assert chunk.locate is not None
    assert [chunk.locate(place) for place in range(3)] == [f"{path}:65604", f"{path}:2", f"{path}:5"]
    assert copy.rejected[0].where == f"{path}:3"


def test_a_cached_tensor_can_be_changed_in_place(tmp_path: Path) -> None:
    copy = cached(as_source(Stream()), tmp_path)
    next(copy.read()).inputs.add_(1)  # a read-only map would end the process here
    assert next(cached(copy, tmp_path).read()).inputs[0, 0, 0] == 1
