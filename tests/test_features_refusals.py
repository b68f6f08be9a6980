"""Run: pytest tests/test_features_refusals.py"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from millstream.contracts import Chunk
from millstream.errors import DataError, MillstreamError, SettingError
from millstream.features import Features
from millstream.schema import Field, Schema, Target

Y = Target("y", "class", ("no", "yes"))


def chunk_of(**columns):
    start = columns.pop("start", 0)
    return Chunk(pa.RecordBatch.from_pydict(columns), start=start, locate=lambda offset: f"data.csv:{offset + 2}")


def numbers_and(*fields, target=Y, **roles):
    return Schema((Field("a", "number"), *fields), target, **roles)


BAD = {
    "unseen label": ({"y": ["no", "maybe", "yes"]}, "'maybe'.*data.csv:3.*no, yes.*new=class"),
    "no label": ({"y": ["no", None, "yes"]}, "no label.*data.csv:3"),
    "label of no number": ({"y": pa.array([0.0, np.nan, 1.0])}, "label nan.*data.csv:3"),
    "nan": ({"a": [1.0, np.nan, 2.0]}, "column 'a' with nan in data.csv:3.*impute"),
    "infinity": ({"a": [1.0, -np.inf, 2.0]}, "with -inf"),
    "too large a number": ({"a": [1.0, 1e200, 2.0]}, "with 1e.200"),
    "text for a number": ({"a": ["1", "abc", "2"]}, "column 'a' with 'abc' in data.csv:3.*a number"),
    "short list": ({"x": [[1.0, 2.0], [1.0], [1.0, 2.0]]}, "column 'x' with 1 numbers in data.csv:3.*wanted 2"),
    "nan in a list": ({"x": [[1.0, 2.0], [np.nan, 0.0], [1.0, 2.0]]}, "column 'x' with nan in data.csv:3"),
    "no time": ({"t": ["2020-01-01", "2020-13-01", "2020-01-02"]}, "column 't' with '2020-13-01' in data.csv:3"),
    "endless time": ({"t": [1.0, np.inf, 2.0]}, "column 't' with inf in data.csv:3"),
    "negative weight": ({"w": [1.0, -1.0, 2.0]}, "weight -1 .*data.csv:3"),
    "no weight": ({"w": [1.0, None, 2.0]}, "no 'w' in data.csv:3"),
    "no known time": ({"k": [1.0, None, 2.0]}, "no time in column 'k'"),
}


def bad_chunk(columns):
    good = {"a": [1, 2, 3], "x": [[0, 0]] * 3, "t": ["2020-01-01"] * 3, "w": [1, 1, 1], "k": [1, 2, 3], "y": ["no"] * 3}
    return chunk_of(**{**good, **columns})


def bad_schema(columns):
    labels = ("0", "1") if isinstance(columns.get("y"), pa.Array) else ("no", "yes")
    fields = (Field("x", "array", shape=(2,)), Field("t", "time"))
    return numbers_and(*fields, target=Target("y", "class", labels), weight="w", time="k")


@pytest.mark.parametrize("case", BAD, ids=str)
def test_a_bad_record_stops_the_run_with_its_place_and_leaves_the_state_alone(case):
    columns, message = BAD[case]
    features = Features(bad_schema(columns))
    with pytest.raises(DataError, match=message):
        features.transform(bad_chunk(columns), learn=True)
    assert not features.state_dict()["numbers"]["counts"].any()


@pytest.mark.parametrize("case", BAD, ids=str)
def test_a_bad_record_in_quarantine_is_a_hole(case):
    columns, _ = BAD[case]
    features = Features(bad_schema(columns), on_error="quarantine")
    result = features.transform(bad_chunk(columns), learn=True)
    assert (result.span, result.offsets.tolist(), len(result)) == (3, [0, 2], 2)
    (rejection,) = result.rejected
    assert (rejection.offset, rejection.where) == (1, "data.csv:3")
    assert "wanted" in rejection.reason and "a=" in rejection.record
    assert features.state_dict()["numbers"]["counts"].tolist() == [2]


def test_a_hole_before_keeps_its_place():
    features = Features(numbers_and(), on_error="quarantine")
    chunk = chunk_of(a=[1.0, np.nan, 3.0], y=["no", "no", "no"])
    chunk.offsets, chunk.span = np.array([1, 2, 5]), 6
    result = features.transform(chunk, learn=True)
    assert (result.offsets.tolist(), result.span, result.rejected[0].where) == ([1, 5], 6, "data.csv:4")


def test_all_records_refused_leaves_an_empty_chunk():
    features = Features(numbers_and(Field("n", "text")), on_error="quarantine")
    result = features.transform(chunk_of(a=[1, 2], n=["a", "b"], y=[None, "perhaps"]), learn=True)
    assert (len(result), result.span, len(result.rejected)) == (0, 2, 2)
    assert result.inputs["ids"].shape == (0, 64)


def test_not_finite_numbers_can_be_skipped_or_imputed_without_quarantine():
    chunk = chunk_of(a=[1.0, np.nan, 3.0], y=["no", "no", "no"])
    skipped = Features(numbers_and(), nonfinite="skip").transform(chunk, learn=True)
    assert (len(skipped), skipped.rejected[0].offset) == (2, 1)
    imputing = Features(numbers_and(), nonfinite="impute")
    assert len(imputing.transform(chunk, learn=True)) == 3
    assert imputing.state_dict()["numbers"]["counts"].tolist() == [2]


def test_a_new_class_takes_the_next_number_until_there_is_no_room():
    features = Features(numbers_and(target=Target("y", "class", ("no",), new="class", capacity=3)))
    assert features.transform(chunk_of(a=[1, 2], y=["b", "a"]), learn=False).targets.tolist() == [1, 2]
    assert features.classes == ("no",)
    assert features.transform(chunk_of(a=[1, 2, 3], y=["b", "no", "a"]), learn=True).targets.tolist() == [1, 0, 2]
    assert features.classes == ("no", "b", "a")
    with pytest.raises(DataError, match=r"label 'c'.*3 classes that there is room for.*capacity=N"):
        features.transform(chunk_of(a=[1], y=["c"]), learn=True)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"b": [1], "aa": [2], "y": ["no"]}, "no column 'a'; wanted it among aa"),
        ({"a": [{"b": 1}], "y": ["no"]}, "column 'a' of type struct"),
        ({"a": [1], "y": [["no"]]}, "column 'y' of type list"),
    ],
    ids=str,
)
def test_a_column_that_is_not_there_or_of_no_use_is_named_even_in_quarantine(columns, message):
    with pytest.raises(DataError, match=message):
        Features(numbers_and(), on_error="quarantine").transform(chunk_of(**columns), learn=True)


def test_settings_that_cannot_work_are_refused():
    for build in (
        lambda: Features(numbers_and(), on_error="ignore"),
        lambda: Features(numbers_and(), nonfinite="drop"),
        lambda: Features(numbers_and(), clip=0),
        lambda: Features(numbers_and(target=Target("y", "class"))),
        lambda: Features(numbers_and(Field("x", "array"))),
        lambda: Features(numbers_and(Field("t", "time", parts=("century",)))),
        lambda: Features(Schema((Field("a", "ignore"),))),
    ):
        with pytest.raises(SettingError, match="wanted"):
            build()
    with pytest.raises(MillstreamError, match="named columns"):
        Features(numbers_and()).transform(Chunk(torch.zeros(2, 3)), learn=True)
