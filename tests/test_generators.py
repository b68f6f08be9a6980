"""Run: pytest tests/test_generators.py"""

from __future__ import annotations

import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream import datasets
from millstream.contracts import Source
from millstream.datasets import GeneratorSource
from millstream.datasets.generators import GENERATORS
from millstream.errors import CheckpointError, SettingError


def table_of(source: Source) -> pa.Table:
    return pa.Table.from_batches([chunk.inputs for chunk in source.read()])


SMALL = {
    "sea": "",
    "hyperplane": ":drift=3000",
    "agrawal": ":drift=700",
    "random-rbf": ":drift=900",
    "led": ":drift=500",
}
GRADUAL = ["sea:drift=3000:width=1000", "agrawal:drift=3000:width=900", "random-rbf:drift=3000:width=500"]
NAMES = [
    *(f"{name}{options}:records=10000" for name, options in SMALL.items()),
    *(f"{n}:records=10000" for n in GRADUAL),
]


def generator(name: str) -> GeneratorSource:
    source = datasets.load(name).train
    assert isinstance(source, GeneratorSource)
    return source


@pytest.mark.parametrize("name", NAMES)
def test_cuts_seeks_and_jumps_give_the_same_records(name: str) -> None:
    source = generator(name)
    whole = table_of(source).combine_chunks()
    assert whole.num_rows == 10_000

    @settings(max_examples=8, deadline=None)
    @given(st.integers(1, 9000), st.integers(0, 10_000), st.lists(st.integers(0, 9_999), max_size=20))
    def check(size: int, start: int, numbers: list[int]) -> None:
        chunks = list(generator(name).read(start, size=size))
        assert all(len(chunk) == size for chunk in chunks[:-1])
        got = pa.Table.from_batches([chunk.inputs for chunk in chunks], schema=source.schema)
        assert got.equals(whole.slice(start))
        for chunk in chunks[:2]:
            assert next(source.read(chunk.after, size=1), None) is None or next(
                source.read(chunk.after, size=1)
            ).inputs.equals(whole.slice(chunk.after, 1).to_batches()[0])
        taken = source.take(np.array(numbers, dtype=np.int64)).inputs
        assert pa.Table.from_batches([taken]).equals(whole.take(pa.array(numbers, pa.int64())))

    check()


@pytest.mark.parametrize("name", NAMES)
def test_records_depend_on_the_seed_and_not_on_how_many_there_are(name: str) -> None:
    first = table_of(generator(name))
    assert table_of(generator(name)).equals(first)
    assert table_of(pickle.loads(pickle.dumps(generator(name)))).equals(first)
    assert table_of(generator(name.replace("10000", "5000"))).equals(first.slice(0, 5000))
    assert not table_of(generator(f"{name}:seed=1")).equals(first)


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_a_generator_without_end_reads_far_away(name: str) -> None:
    source = generator(f"{name}:records=0")
    assert source.num_records is None
    chunk = next(source.read(10**15 + 5, size=3))
    assert chunk.after == 10**15 + 8
    assert chunk.locate is not None and chunk.locate(2) == f"{name}:{10**15 + 7}"
    assert chunk.inputs.equals(source.take(10**15 + np.arange(5, 8)).inputs)


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_the_schema_describes_the_columns(name: str) -> None:
    data = datasets.load(name)
    assert data.train.schema is not None and data.schema.target is not None
    assert [*(field.name for field in data.schema.fields), data.schema.target.name] == data.train.schema.names
    labels = set(map(str, table_of(data.train)["label"].to_pylist()))
    assert labels == set(data.schema.target.classes)
    assert data.train.num_records == data.description.rows == 100_000


def sea_errors(source: GeneratorSource, threshold: float) -> np.ndarray:
    table = table_of(source)
    rule = table["x0"].to_numpy() + table["x1"].to_numpy() <= threshold
    return rule != (table["label"].to_numpy() == 1)


def test_sea_follows_its_thresholds_and_drift_points() -> None:
    source = generator("sea:drift=2000:noise=0:records=9000")
    assert list(source.drift_points) == [2000, 4000, 6000, 8000]
    for epoch, threshold in enumerate([8, 9, 7, 9.5, 8]):
        errors = sea_errors(source, threshold)[2000 * epoch : 2000 * (epoch + 1)]
        assert not errors.any()
        other = sea_errors(source, threshold + 1)[2000 * epoch : 2000 * (epoch + 1)]
        assert other.mean() > 0.05
    assert 0.08 < sea_errors(generator("sea:drift=0:records=10000"), 8).mean() < 0.12


def test_a_gradual_drift_is_half_done_at_its_point() -> None:
    source = generator("sea:drift=20000:width=8000:noise=0:records=40000")
    # Between the thresholds 8 and 9, the label tells which concept a record follows.
    table = table_of(source)
    total = table["x0"].to_numpy() + table["x1"].to_numpy()
    telling = (total > 8) & (total <= 9)
    share = [table["label"].to_numpy()[start : start + 2000][telling[start : start + 2000]].mean() for start in
             (2000, 19_000, 28_000)]  # fmt: skip
    assert share[0] < 0.02 and 0.35 < share[1] < 0.65 and share[2] > 0.9


def test_the_hyperplane_turns_steadily() -> None:
    source = generator("hyperplane:drift=10000:noise=0:features=4:moving=4:records=20001")
    table = table_of(source)
    x = np.stack([table[f"x{number}"].to_numpy() for number in range(4)], axis=1) - 0.5
    y = 2.0 * table["label"].to_numpy() - 1

    def direction(start: int) -> np.ndarray:
        weights = np.linalg.lstsq(x[start : start + 500], y[start : start + 500], rcond=None)[0]
        return weights / np.linalg.norm(weights)

    near = direction(4000) @ direction(5000)
    assert near > 0.97
    assert direction(0) @ direction(9500) < near


def agrawal_table(function: int, records: int = 3000) -> dict[str, np.ndarray]:
    source = GeneratorSource("agrawal", drift=10_000, num_records=None, noise=0)
    batch = source.take(np.arange(records) + 10_000 * (function - 1)).inputs
    return {name: batch[name].to_numpy() for name in batch.schema.names}


def agrawal_one(p: dict[str, float]) -> bool:
    return p["age"] < 40 or p["age"] >= 60


def agrawal_four(p: dict[str, float]) -> bool:
    if p["age"] < 40:
        band = (25, 75) if p["elevel"] in (0, 1) else (50, 100)
    elif p["age"] < 60:
        band = (50, 100) if p["elevel"] in (1, 2, 3) else (75, 125)
    else:
        band = (50, 100) if p["elevel"] in (2, 3, 4) else (25, 75)
    return band[0] <= p["salary"] / 1000 <= band[1]


def agrawal_five(p: dict[str, float]) -> bool:
    salary, loan = p["salary"] / 1000, p["loan"] / 1000
    if p["age"] < 40:
        band = (100, 300) if 50 <= salary <= 100 else (200, 400)
    elif p["age"] < 60:
        band = (200, 400) if 75 <= salary <= 125 else (300, 500)
    else:
        band = (300, 500) if 25 <= salary <= 75 else (100, 300)
    return band[0] <= loan <= band[1]


def agrawal_ten(p: dict[str, float]) -> bool:
    equity = 0 if p["hyears"] < 20 else 0.1 * p["hvalue"] * (p["hyears"] - 20)
    return 0.67 * (p["salary"] + p["commission"]) - 5000 * p["elevel"] + 0.2 * equity - 10_000 > 0


@pytest.mark.parametrize(
    ("function", "rule"), [(1, agrawal_one), (4, agrawal_four), (5, agrawal_five), (10, agrawal_ten)]
)
def test_agrawal_equals_its_functions_written_out(function: int, rule) -> None:  # type: ignore[no-untyped-def]
    table = agrawal_table(function)
    people = [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
    assert [rule(person) for person in people] == [person["label"] == 1 for person in people]


def test_agrawal_columns_keep_their_ranges() -> None:
    table = agrawal_table(1, 20_000)
    assert table["age"].min() == 20 and table["age"].max() == 80
    assert (table["commission"][table["salary"] >= 75_000] == 0).all()
    assert set(table["car"].tolist()) == set(range(1, 21))
    noisy = table_of(GeneratorSource("agrawal", num_records=20_000, noise=0.5))
    assert pc.min(noisy["salary"]).as_py() >= 20_000 and pc.max(noisy["loan"]).as_py() <= 500_000


def test_centroids_move_and_stay_in_the_cube() -> None:
    source = GeneratorSource("random-rbf", num_records=None, features=2, classes=2, centroids=2, speed=0.001, drift=0)

    def middle(start: int) -> np.ndarray:
        batch = source.take(np.arange(start, start + 100)).inputs
        rows = batch["label"].to_numpy() == 0
        return np.median(np.stack([batch["x0"].to_numpy(), batch["x1"].to_numpy()], axis=1)[rows], axis=0)

    middles = np.stack([middle(start) for start in range(0, 20_000, 500)])
    steps = np.linalg.norm(np.diff(middles, axis=0), axis=1)
    assert 0.2 < np.median(steps) < 0.6  # 500 records at 0.001 are 0.5, less where it bounces
    assert middles.min() > -0.3 and middles.max() < 1.3


def test_led_shows_digits_and_hides_them_after_a_drift() -> None:
    source = GeneratorSource("led", num_records=4000, drift=2000, noise=0)
    table = table_of(source)
    lights = np.stack([table[f"light{number}"].to_numpy() for number in range(24)], axis=1)
    digits = table["label"].to_numpy()
    shown = {digit: {tuple(row) for row in lights[:2000][digits[:2000] == digit, :7].tolist()} for digit in range(10)}
    assert all(len(rows) == 1 for rows in shown.values())
    assert len({next(iter(rows)) for rows in shown.values()}) == 10
    assert next(iter(shown[8])) == (1,) * 7 and sum(next(iter(shown[1]))) == 2
    later = {tuple(row) for row in lights[2000:][digits[2000:] == 8, :7].tolist()}
    assert len(later) > 1
    constant = lights[2000:][digits[2000:] == 8].min(axis=0)
    assert constant.sum() == 7 and constant[:7].sum() < 7


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sea:speed=1", "option 'speed'"),
        ("sea:drift=often", "OPTION=NUMBER"),
        ("sea:drift=10.5", "whole number"),
        ("sea:noise=2", "noise=2"),
        ("sea:noise=nan", "noise=nan"),
        ("sea:seed=inf", "whole number"),
        ("sea:drift=100:width=80", "width=80"),
        ("sea:seed=1:seed=2", "seed twice"),
        ("sea:records=-5", "num_records=-5"),
        ("hyperplane:width=10", "width=10"),
        ("hyperplane:moving=11", "moving=11"),
        ("random-rbf:classes=60", "classes=60"),
        ("led:moving=8", "moving=8"),
    ],
)
def test_a_bad_option_is_refused(name: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        datasets.load(name)


def test_a_large_seed_keeps_its_digits() -> None:
    assert generator("sea:seed=9007199254740993").fingerprint()["seed"] == 2**53 + 1


def test_a_foreign_position_and_a_missing_record_are_refused() -> None:
    source = generator("sea:records=100")
    for position in (101, -1, "3", True):
        with pytest.raises(CheckpointError, match="position"):
            next(source.read(position))
    with pytest.raises(SettingError, match="0 to 99"):
        source.take(np.array([100]))
    with pytest.raises(SettingError, match="size=0"):
        next(source.read(size=0))


def test_the_fingerprint_tells_streams_apart() -> None:
    prints = [json.dumps(generator(name).fingerprint(), sort_keys=True) for name in (*NAMES, f"{NAMES[0]}:seed=3")]
    assert len(set(prints)) == len(prints)
