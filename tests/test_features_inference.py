"""Run: pytest tests/test_features_inference.py"""

from __future__ import annotations

import datetime as dt
import decimal

import numpy as np
import pandas
import pyarrow as pa
import pytest

from millstream.contracts import Chunk
from millstream.errors import DataError, SettingError
from millstream.features import Features, describe, infer, parse_override
from millstream.schema import Field, Schema, Target


def field_of(column, **options):
    return infer(pa.table({"c": column}), labelled=False, **options).fields[0]


def target_of(column, **options):
    return infer(pa.table({"a": range(len(column)), "y": column}), **options).target


SENTENCES = [f"this is the sentence number {number}" for number in range(50)]
DAY = dt.datetime(2024, 2, 29, 12)


@pytest.mark.parametrize(
    ("column", "wanted"),
    [
        ([1, 2, None], Field("c", "number")),
        ([1.5, 1.5], Field("c", "number")),
        ([7, 7, 7], Field("c", "number")),
        (pa.array(np.array([1, 2], np.float16)), Field("c", "number")),
        ([decimal.Decimal("1.25")], Field("c", "number")),
        (pa.array([3], pa.duration("s")), Field("c", "number")),
        ([True, False], Field("c", "category", values=("false", "true"))),
        (["b", "a", "b", None], Field("c", "category", values=("a", "b"))),
        (pa.array(["b", "a"], pa.string_view()), Field("c", "category", values=("a", "b"))),
        (pa.array(["10", "9"], pa.large_string()).dictionary_encode(), Field("c", "category", values=("9", "10"))),
        (pa.array([10, 9]).dictionary_encode(), Field("c", "category", values=("9", "10"))),
        ([f"id{number}" for number in range(33)], Field("c", "category")),
        ([f"id{number}" for number in range(2000)], Field("c", "category", slots=8192)),
        ([*map(str, range(40)), "oops"], Field("c", "number")),
        ([*map(str, range(40)), "oops", "-", "?"], Field("c", "category")),
        ([str(number) for number in range(40)], Field("c", "category")),
        (SENTENCES, Field("c", "text")),
        (SENTENCES[:1] * 50, Field("c", "category", values=(SENTENCES[0],))),
        ([DAY], Field("c", "time")),
        (["2024-02-29T12:00:00Z", None], Field("c", "time")),
        ([DAY.date()], Field("c", "time", parts=("weekday", "yearday"))),
        (["2024-02-29"], Field("c", "time", parts=("weekday", "yearday"))),
        ([DAY.time()], Field("c", "time", parts=("hour",))),
        (pa.array([[1, 2]], pa.list_(pa.uint8(), 2)), Field("c", "array", shape=(2,), scale=1 / 255)),
        (
            pa.array([[[1], [2]]], pa.list_(pa.list_(pa.uint8(), 1), 2)),
            Field("c", "array", shape=(2, 1), scale=1 / 255),
        ),
        ([[1.0, 2.0], None, [3.0, 4.0]], Field("c", "array", shape=(2,))),
        ([[[1.0], [2.0]], [[3.0], [4.0]]], Field("c", "array", shape=(2, 1))),
        ([[1.0], [3.0, 4.0]], Field("c", "ignore")),
        ([["a"], ["b"]], Field("c", "ignore")),
        ([{"a": 1}], Field("c", "ignore")),
        ([b"bytes"], Field("c", "ignore")),
        (pa.nulls(3), Field("c", "ignore")),
        (pa.array([None, None], pa.string()), Field("c", "ignore")),
    ],
    ids=str,
)
def test_guesses_what_a_column_is(column, wanted):
    assert field_of(column) == wanted


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        (["no", "yes"] * 5, Target("y", "class", ("no", "yes"))),
        ([True, False] * 5, Target("y", "class", ("false", "true"))),
        (list(range(12)) * 6, Target("y", "class", tuple(map(str, range(12))))),
        ([1.0, 2.0] * 6, Target("y", "class", ("1", "2"))),
        ([1.5, 2.0] * 6, Target("y", "number")),
        (list(range(50)), Target("y", "number")),
        (list(range(101)) * 6, Target("y", "number")),
        ([decimal.Decimal("1.5"), decimal.Decimal("2.0")], Target("y", "number")),
    ],
    ids=str,
)
def test_guesses_the_target(labels, wanted):
    assert target_of(labels) == wanted
    assert target_of(labels, exhaustive=True) == wanted


def test_leaves_room_for_classes_that_the_sample_may_have_missed():
    labels = ["a"] * 50 + ["b"] * 50 + ["c", "d", "e"]
    assert target_of(labels).new == "class" and target_of(labels).num_outputs > 5
    assert target_of(labels, exhaustive=True) == Target("y", "class", ("a", "b", "c", "d", "e"))
    assert target_of(["only"] * 9) == Target("y", "class", ("only",), new="class", capacity=2)


def test_roles_are_no_features_but_the_time_is():
    table = pa.table({"a": [1], "t": [DAY], "w": [1.0], "y": ["no"], "late": [DAY]})
    schema = infer(table, weight="w", time="t", label_time="late")
    assert [field.name for field in schema.fields] == ["a", "t"]
    assert (schema.target.name, schema.weight, schema.time, schema.label_time) == ("y", "w", "t", "late")
    assert infer(table, target="a").target.name == "a"


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"price": [1], "sold": [2]}, {"target": "prize"}, "no column 'prize'.*price"),
        ({"price": [1], "sold": [2]}, {"weight": "w"}, "no column 'w'.*price, sold"),
        ({"a": []}, {}, "a sample of 0 records"),
        ({"a": [1], "y": [None]}, {}, "target 'y' without any label"),
        ({"a": [1], "y": [[1]]}, {}, "target 'y' of type list"),
        ({"a": [0] * 300, "y": [f"id{n}" for n in range(300)]}, {}, "300 distinct values"),
    ],
)
def test_says_what_it_cannot_guess(columns, options, message):
    with pytest.raises(DataError, match=message):
        infer(pa.table(columns), **options)


def test_takes_batches_and_data_frames_and_what_it_guesses_can_be_used():
    columns = {"a": [1.0, None, 3.0], "k": ["x", "y", None], "when": [DAY] * 3, "y": ["no", "yes", "no"]}
    batch = pa.RecordBatch.from_pydict(columns)
    frame = pandas.DataFrame(columns)
    assert infer(batch) == infer(frame) == infer(pa.table(columns))
    result = Features(infer(batch)).transform(Chunk(batch), learn=True)
    assert result.inputs["dense"].shape == (3, 7)


def test_classes_that_are_listed_are_all_there_are():
    target = Target("y", "class", ("a", "typo"), new="class", capacity=9)
    schema = Schema((Field("x", "number"),), target)
    assert parse_override("y=class:classes=a|b", schema).target == Target("y", "class", ("a", "b"))
    assert parse_override("y=class:classes=a|b,capacity=5", schema).target.num_outputs == 5


def test_a_column_of_numbers_with_a_mistake_is_a_target_of_numbers():
    table = pa.table({"x": [1.0] * 200, "y": [*map(str, np.arange(199) / 4), "oops"]})
    assert infer(table).target == Target("y", "number")


def test_describes_a_schema_as_an_aligned_table():
    fields = (
        Field("age", "number"),
        Field("city", "category", values=("Bern", "Rome")),
        Field("zip", "category"),
        Field("note", "text", ngrams=2),
        Field("t", "time"),
        Field("image", "array", shape=(28, 28), scale=1 / 255),
        Field("junk", "ignore"),
    )
    target = Target("label", "class", ("no", "yes"), new="class", capacity=4)
    assert describe(Schema(fields, target, weight="w", time="t")).splitlines() == [
        "column  kind      becomes",
        "age     number    1 standardised number",
        "city    category  1 id: Bern, Rome, or another",
        "zip     category  1 id, hashed into 4,096 slots",
        "note    text      up to 64 ids of words and n-grams up to 2, hashed into 4,096 slots",
        "t       time      sine and cosine of hour, weekday, yearday",
        "image   array     28 × 28 numbers, times 0.003922",
        "junk    ignore    nothing",
        "label   target    one of 2 classes: no, yes; room for 4",
        "w       role      how much a record counts",
        "t       role      when the features were known",
    ]


SCHEMA = Schema((Field("zip", "number"), Field("a=b", "ignore"), Field("note", "text", slots=9)), Target("y", "number"))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("zip=category", Field("zip", "category")),
        ("zip=category:values=8001|8002", Field("zip", "category", values=("8001", "8002"))),
        ("a=b=array:shape=28x28,scale=1/255", Field("a=b", "array", shape=(28, 28), scale=1 / 255)),
        ("note=text:ngrams=2", Field("note", "text", slots=9, ngrams=2)),
        ("note=ignore", Field("note", "ignore")),
        ("note=time:parts=hour|month", Field("note", "time", parts=("hour", "month"))),
        ("y=class:classes=no|yes", Target("y", "class", ("no", "yes"))),
        ("y=class:capacity=3", Target("y", "class", new="class", capacity=3)),
        ("y=number", Target("y", "number")),
    ],
)
def test_a_column_can_be_declared_anew(text, wanted):
    changed = parse_override(text, SCHEMA)
    assert wanted in (*changed.fields, changed.target)
    assert len(changed.fields) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("zip", "NAME=KIND"),
        ("zip=categorie", "category"),
        ("zap=category", "column 'zap'.*zip"),
        ("zip=class", "not the target"),
        ("zip=category:slot=3", "option 'slot'.*slots"),
        ("zip=category:slots=many", "slots='many'.*slots=1024"),
        ("zip=category:slots=0", "slots='0'"),
        ("zip=category:slots", "OPTION=VALUE"),
        ("zip=array:shape=28x", "shape='28x'"),
        ("y=text", "class or number"),
        ("y=class", "no class is known.*capacity=10"),
        ("y=class:new=perhaps", "new='perhaps'"),
        ("y=number:capacity=3", "no options"),
    ],
)
def test_a_declaration_that_cannot_be_read_says_why(text, message):
    with pytest.raises(SettingError, match=message):
        parse_override(text, SCHEMA)
