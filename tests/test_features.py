"""Run: pytest tests/test_features.py"""

from __future__ import annotations

import datetime as dt
import decimal
import itertools
import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.contracts import Chunk
from millstream.errors import CheckpointError, DataError, SettingError
from millstream.features import Features, infer
from millstream.schema import Field, Schema, Target

Y = Target("y", "class", ("no", "yes"))


def chunk_of(**columns):
    start = columns.pop("start", 0)
    return Chunk(pa.RecordBatch.from_pydict(columns), start=start, locate=lambda offset: f"data.csv:{offset + 2}")


def numbers_and(*fields, target=Y, **roles):
    return Schema((Field("a", "number"), *fields), target, **roles)


# What comes out


def test_numbers_categories_and_texts_make_dense_columns_and_ids_that_do_not_overlap():
    schema = numbers_and(
        Field("color", "category", values=("red", "blue")),
        Field("when", "time", parts=("hour",)),
        Field("zip", "category", slots=100),
        Field("note", "text", slots=50, max_tokens=3),
        Field("junk", "ignore"),
    )
    features = Features(schema)
    chunk = chunk_of(
        a=[1, 3, 5],
        color=["blue", "green", None],
        when=[dt.datetime(2020, 1, 1, 6), dt.datetime(2020, 1, 1, 12), None],
        zip=[8001, 8002, 8001],
        note=["Hello world", "", None],
        y=["no", "yes", "no"],
    )
    result = features.transform(chunk, learn=True)
    dense, ids = result.inputs["dense"], result.inputs["ids"]
    assert (dense.dtype, ids.dtype, tuple(dense.shape), tuple(ids.shape)) == (
        torch.float32,
        torch.int64,
        (3, 3),
        (3, 5),
    )
    assert features.dense_names == ("a", "when.hour.sin", "when.hour.cos")
    assert dense.round(decimals=5).tolist() == [[0, 1, 0], [0, 0, -1], [3, 0, 0]]
    assert ids[:, 0].tolist() == [2, 3, 0]
    assert ((ids[:, 1] >= 4) & (ids[:, 1] < 104)).all() and ids[0, 1] == ids[2, 1] != ids[1, 1]
    assert (ids[0, 2:4] >= 104).all() and ids[0, 4] == 0 and not ids[1:, 2:].any()
    assert features.num_ids == 154 > int(ids.max())
    assert result.targets.tolist() == [0, 1, 0]
    assert features.columns == ("a", "color", "when", "zip", "note", "y")
    assert (features.num_dense, features.num_outputs, features.input_shape) == (3, 2, (3,))


def test_ids_alone_leave_dense_out():
    result = Features(Schema((Field("k", "category"),))).transform(chunk_of(k=["a", "b"]), learn=True)
    assert list(result.inputs) == ["ids"]
    assert result.targets is None


def test_one_array_keeps_its_shape_and_beside_others_it_is_flattened():
    pixels = pa.FixedSizeListArray.from_arrays(pa.array(range(8), pa.uint8()), 4)
    image = Field("x", "array", shape=(2, 2), scale=0.5)
    alone = Features(Schema((image,)))
    assert alone.transform(chunk_of(x=pixels), learn=True).inputs.tolist() == [
        [[0, 0.5], [1, 1.5]],
        [[2, 2.5], [3, 3.5]],
    ]
    assert (alone.input_shape, alone.num_dense) == ((2, 2), 4)
    both = Features(numbers_and(image, target=None))
    assert both.transform(chunk_of(a=[1, 2], x=pixels), learn=True).inputs.tolist() == [
        [0, 0, 0.5, 1, 1.5],
        [0, 2, 2.5, 3, 3.5],
    ]


def test_the_rest_of_the_chunk_is_kept_and_roles_are_read():
    schema = numbers_and(weight="w", time="t", label_time="late", target=Target("y", "number"))
    batch = pa.RecordBatch.from_pydict(
        {"a": [1, 2], "y": [1.5, 2.5], "w": [1, 2], "t": ["1970-01-01T00:00:10Z", "1970-01-02"], "late": [20, 86400.5]}
    )
    chunk = Chunk(batch, after={"row": 7}, start=5, span=4, offsets=np.array([1, 3]))
    result = Features(schema).transform(chunk, learn=True)
    assert (result.after, result.start, result.span, result.offsets.tolist()) == ({"row": 7}, 5, 4, [1, 3])
    assert (result.weights.tolist(), result.weights.dtype) == ([1, 2], torch.float32)
    assert result.times.tolist() == [10, 86400]
    assert result.label_times.tolist() == [20, 86400.5]
    assert (result.targets.dtype, result.targets.tolist()) == (torch.float32, [1.5, 2.5])


def test_unlabelled_records_can_be_predicted_but_not_learned():
    features = Features(numbers_and(weight="w"))
    assert features.transform(chunk_of(a=[1]), learn=False).targets is None
    with pytest.raises(DataError, match="no column 'y'"):
        features.transform(chunk_of(a=[1]), learn=True)


def test_a_timestamp_shows_its_own_clock_but_its_instant_is_utc():
    column = pa.array([dt.datetime(2020, 7, 1, 4, tzinfo=dt.UTC)], pa.timestamp("ns", "Europe/Zurich"))
    schema = Schema((Field("t", "time", parts=("hour",)),), time="t")
    result = Features(schema).transform(chunk_of(t=column), learn=False)
    assert result.inputs.round(decimals=5).tolist() == [[1, 0]]  # six in the morning
    assert result.times.tolist() == [1593576000]


@pytest.mark.parametrize(
    ("part", "turn"),
    [
        ("hour", 15.5 / 24),
        ("minute", 0.5),
        ("weekday", 3 / 7),
        ("monthday", 28 / 31),
        ("yearday", 59 / 366),
        ("month", 1 / 12),
    ],
)
def test_parts_of_a_time(part, turn):
    features = Features(Schema((Field("t", "time", parts=(part,)),)))
    for moment in (dt.datetime(2024, 2, 29, 15, 30), "2024-02-29 15:30", "2024-02-29T16:30:00.0000+01:00"):
        got = features.transform(chunk_of(t=[moment]), learn=True).inputs[0].tolist()
        assert got == pytest.approx([np.sin(2 * np.pi * turn), np.cos(2 * np.pi * turn)], abs=1e-6)


# Every Arrow type

NUMERIC = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]
NUMERIC += [pa.float32(), pa.float64(), pa.decimal128(6, 2), pa.decimal256(6, 2), pa.string(), pa.large_string()]
NUMERIC += [pa.string_view(), pa.dictionary(pa.int8(), pa.int64()), pa.timestamp("s"), pa.duration("s"), pa.time32("s")]


def typed(values, kind):
    if pa.types.is_decimal(kind):
        return pa.array([None if v is None else decimal.Decimal(v) for v in values], kind)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.array([None if v is None else f" {v}.0" for v in values], kind)
    if pa.types.is_dictionary(kind):
        return pa.array(values, kind.value_type).dictionary_encode()
    if pa.types.is_time32(kind):
        return pa.array(values, pa.int32()).cast(kind)
    return pa.array(values, pa.int64()).cast(kind)


@pytest.mark.parametrize("kind", NUMERIC, ids=str)
def test_a_number_is_the_same_in_every_type(kind):
    column = typed([99, 1, 3, None, 5], kind).slice(1)
    result = Features(numbers_and(target=None)).transform(chunk_of(a=column), learn=True)
    assert result.inputs.flatten().tolist() == [0, 0, 0, 3]


def test_half_precision_truths_and_nothing_are_numbers_too():
    features = Features(numbers_and(target=None))
    assert features.transform(chunk_of(a=pa.array(np.array([1, 3, 5], np.float16))), learn=True).inputs[2] == 3
    halves = pa.array([np.float16(1), None], pa.float16())
    assert features.transform(chunk_of(a=halves), learn=False).inputs[1] == 0
    assert features.transform(chunk_of(a=[True, None]), learn=False).inputs[1] == 0
    assert features.transform(chunk_of(a=pa.nulls(2)), learn=True).inputs.tolist() == [[0], [0]]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[9, 9], [1, 2], None, [3, None]], pa.list_(pa.int16(), 2)),
        pa.array([[9, 9], [1, 2], None, [3, None]], pa.list_(pa.float64())),
        pa.array([[9, 9], [1, 2], None, [3, None]], pa.large_list(pa.uint8())),
        pa.array([[[9], [9]], [[1], [2]], None, [[3], [None]]], pa.list_(pa.list_(pa.float32(), 1), 2)),
        pa.array([[[9], [9]], [[1], [2]], None, [[3], [None]]], pa.list_(pa.list_(pa.float32()))),
    ],
    ids=lambda column: str(column.type),
)
def test_an_array_is_the_same_in_every_list_type(column):
    features = Features(Schema((Field("x", "array", shape=(2,)),)))
    assert features.transform(chunk_of(x=column.slice(1)), learn=True).inputs.tolist() == [[1, 2], [0, 0], [3, 0]]


def test_a_tensor_column_is_an_array():
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(8, dtype=np.float32).reshape(2, 2, 2))
    schema = infer(pa.table({"x": column}), labelled=False)
    assert schema.fields[0].shape == (2, 2)
    assert Features(schema).transform(chunk_of(x=column), learn=True).inputs[1].tolist() == [[4, 5], [6, 7]]


@pytest.mark.parametrize("labels", [[0, 1, 1], [0.0, 1.0, 1.0], ["0", "1.0", "1"], [False, True, True]], ids=str)
def test_a_label_is_known_by_its_text(labels):
    classes = ("false", "true") if labels[0] is False else ("0", "1")
    features = Features(numbers_and(target=Target("y", "class", classes)))
    assert features.transform(chunk_of(a=[1, 2, 3], y=labels), learn=True).targets.tolist() == [0, 1, 1]


# Cuts, and saving


@st.composite
def streams(draw):
    size = draw(st.integers(1, 25))
    number = st.one_of(st.none(), st.floats(-1e3, 1e3, width=32), st.sampled_from([np.nan, np.inf]))
    rows = {
        "a": draw(st.lists(number, min_size=size, max_size=size)),
        "k": draw(st.lists(st.sampled_from([None, "x", "y", "zebra"]), min_size=size, max_size=size)),
        "y": draw(st.lists(st.sampled_from(["no", "yes", "maybe", "never", None]), min_size=size, max_size=size)),
    }
    return pa.record_batch(rows, schema=pa.schema({"a": pa.float64(), "k": pa.string(), "y": pa.string()})), draw(
        st.lists(st.integers(0, size), max_size=3)
    )


def stream_features(nonfinite="skip"):
    target = Target("y", "class", ("no",), new="class", capacity=3)
    schema = numbers_and(Field("k", "category", values=("x",)), target=target)
    return Features(schema, on_error="quarantine", nonfinite=nonfinite)


def run(features, batch, cuts, learn=True):
    edges = [0, *sorted(cuts), batch.num_rows]
    parts = [
        features.transform(Chunk(batch.slice(a, b - a), start=a), learn=learn) for a, b in itertools.pairwise(edges)
    ]
    return {
        "dense": torch.cat([part.inputs["dense"] for part in parts]),
        "ids": torch.cat([part.inputs["ids"] for part in parts]),
        "targets": torch.cat([part.targets for part in parts]),
        "positions": torch.from_numpy(np.concatenate([part.positions() for part in parts])),
        "rejected": torch.tensor([part.start + bad.offset for part in parts for bad in part.rejected]),
    }


def same(left, right):
    return all(torch.equal(left[name], right[name]) for name in left)


@settings(max_examples=50, deadline=None)
@given(streams(), st.sampled_from(["skip", "impute", "error"]))
def test_cuts_never_matter(case, nonfinite):
    batch, cuts = case
    whole, cut = stream_features(nonfinite), stream_features(nonfinite)
    got = run(whole, batch, [])
    assert same(got, run(cut, batch, cuts))
    assert whole.classes == cut.classes and len(whole.classes) <= 3
    assert sorted([*got["positions"].tolist(), *got["rejected"].tolist()]) == list(range(batch.num_rows))


@settings(max_examples=30, deadline=None)
@given(streams())
def test_saved_and_loaded_it_goes_on_with_the_same_bits(case):
    batch, _ = case
    half = batch.num_rows // 2
    straight, resumed = stream_features(), stream_features()
    run(straight, batch.slice(0, half), [])
    state = straight.state_dict()
    state["schema"] = json.loads(json.dumps(state["schema"]))
    resumed.load_state_dict(state)
    assert same(run(straight, batch.slice(half), []), run(resumed, batch.slice(half), []))
    assert straight.classes == resumed.classes


@settings(max_examples=20, deadline=None)
@given(streams())
def test_predicting_changes_nothing(case):
    batch, _ = case
    features = stream_features()
    run(features, batch.slice(0, 3), [])
    before = features.state_dict()
    run(features, batch, [], learn=False)
    after = features.state_dict()
    assert before["classes"] == after["classes"]
    assert all(np.array_equal(before["numbers"][name], after["numbers"][name]) for name in before["numbers"])


def test_number_targets_are_scaled_apart_and_saved():
    features = Features(numbers_and(target=Target("y", "number")))
    assert features.scales_targets and features.task == "number" and features.num_outputs == 1
    targets = torch.tensor([10.0, 20.0, 60.0])
    scaled, shift, scale = features.scale_targets(targets, learn=True)
    assert (scaled.tolist(), shift.tolist()[:3], scale.tolist()[:3]) == ([0, 0, 9], [0, 10, 15], [1, 1, 5])
    resumed = Features(features.schema)
    resumed.load_state_dict(features.state_dict())
    assert resumed.scale_targets(targets, learn=False)[1].tolist() == [30] * 4
    with pytest.raises(SettingError, match="number target"):
        Features(numbers_and()).scale_targets(targets, learn=True)


def test_refuses_the_state_of_another_schema():
    state = Features(numbers_and()).state_dict()
    with pytest.raises(CheckpointError, match=r"Field\('a', 'number'\)"):
        Features(Schema((Field("b", "number"),), Y)).load_state_dict(state)
    with pytest.raises(CheckpointError, match="version 2"):
        Features(numbers_and()).load_state_dict({**state, "version": 2})
