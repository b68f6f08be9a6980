"""Run: pytest tests/test_datasets.py        (-m "not data" leaves out what needs the package index)"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from millstream import datasets
from millstream.contracts import Source
from millstream.datasets import archives, cache, convert, fetching
from millstream.datasets.archives import Archive
from millstream.datasets.catalog import ENTRIES, LAYOUT
from millstream.errors import DataError, SettingError, StorageError
from millstream.schema import Field, Schema, Target

FIXTURE = Path(__file__).parent / "fixtures" / "mnist-small.parquet"
PUBLIC = ("mnist", "covertype", "elec2", "noaa-weather", "flights", "flights-minutes", "bikes")


def table_of(source: Source) -> pa.Table:
    return pa.Table.from_batches([chunk.inputs for chunk in source.read()])


# Names and descriptions.


def test_names_lists_public_sets_and_generators() -> None:
    assert datasets.names() == [*PUBLIC, "sea", "hyperplane", "agrawal", "random-rbf", "led"]


@pytest.mark.parametrize("name", datasets.names())
def test_every_description_says_what_is_needed(name: str) -> None:
    description = datasets.describe(name)
    assert description.name == name
    assert description.schema.target is not None
    assert Schema.from_json(json.loads(json.dumps(description.schema.to_json()))) == description.schema
    for text in (description.title, description.origin, description.licence, description.note, description.label_delay):
        assert text and "\n" not in text


@pytest.mark.parametrize(("name", "near"), [("elec", "elec2"), ("coverype", "covertype"), ("see", "sea")])
def test_an_unknown_name_suggests_near_ones(name: str, near: str) -> None:
    for ask in (datasets.describe, datasets.load, datasets.fetch):
        with pytest.raises(SettingError, match=f"try .*{near}"):
            ask(name)


def test_public_sets_take_no_options() -> None:
    with pytest.raises(SettingError, match="only generators"):
        datasets.load("elec2:seed=1")


def test_an_absent_set_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLSTREAM_CACHE", str(tmp_path))
    with pytest.raises(StorageError) as caught:
        datasets.load("elec2")
    assert str(caught.value).endswith("run `millstream data fetch elec2`")
    assert str(tmp_path) in str(caught.value)
    assert not datasets.describe("elec2").cached


# The cache.


def test_tables_are_written_whole_and_their_damage_is_found(tmp_path: Path) -> None:
    table = pa.table({"a": pa.array(np.arange(100_000))})
    info = cache.write_tables(tmp_path, {"train": table}, {"layout": "7"})
    assert pq.read_table(tmp_path / "train.parquet").equals(table)
    assert cache.read_info(tmp_path, layout="7") == info
    assert cache.read_info(tmp_path, layout="8") is None
    assert info["files"]["train.parquet"]["rows"] == 100_000
    assert cache.is_intact(tmp_path, info)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["info.json", "train.parquet"]

    path = tmp_path / "train.parquet"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    assert cache.read_info(tmp_path, layout="7") is not None  # same size: only the hash tells
    assert not cache.is_intact(tmp_path, info)
    path.write_bytes(content[:-1])
    assert cache.read_info(tmp_path, layout="7") is None


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MILLSTREAM_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="MILLSTREAM_CACHE"), cache.scratch():
        pass


# Archives.

CONTENT = b"a,b\n1,2\n"


def small_archive(path: Path, content: bytes = CONTENT) -> Path:
    if path.suffix == ".whl":
        with zipfile.ZipFile(path, "w") as package:
            package.writestr("data/small.csv", content)
    else:
        with tarfile.open(path, "w:gz") as package:
            member = tarfile.TarInfo("data/small.csv")
            member.size = len(content)
            package.addfile(member, io.BytesIO(content))
    return path


def pinned(path: Path, member: str = "data/small.csv") -> Archive:
    return Archive("small==1.0", archives.sha256_of(path), {member: hashlib.sha256(CONTENT).hexdigest()})


@pytest.mark.parametrize("name", ["small.whl", "small.tar.gz"])
def test_a_member_is_extracted_and_checked(tmp_path: Path, name: str) -> None:
    path = small_archive(tmp_path / name)
    files = archives.extract(path, pinned(path), tmp_path)
    assert files["data/small.csv"].read_bytes() == CONTENT


@pytest.mark.parametrize("name", ["small.whl", "small.tar.gz"])
def test_a_tampered_member_is_refused(tmp_path: Path, name: str) -> None:
    path = small_archive(tmp_path / name, CONTENT.replace(b"2", b"3"))
    with pytest.raises(DataError, match="do not use this file"):
        archives.extract(path, pinned(path), tmp_path)


@pytest.mark.parametrize("name", ["small.whl", "small.tar.gz"])
def test_a_member_that_is_missing_and_an_archive_cut_short_are_refused(tmp_path: Path, name: str) -> None:
    path = small_archive(tmp_path / name)
    with pytest.raises(DataError, match=r"lacks data/other\.csv"):
        archives.extract(path, pinned(path, "data/other.csv"), tmp_path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match="damaged"):
        archives.extract(path, pinned(path), tmp_path)


def test_a_tampered_archive_is_refused(tmp_path: Path) -> None:
    path = small_archive(tmp_path / "small.whl")
    archive = pinned(path)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(DataError, match=archive.sha256):
        archives.check_sha256(path, archive.sha256)


def wheel(folder: Path) -> Path:
    """A package that pip can download from a folder."""
    path = folder / "millstream_small-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as package:
        package.writestr("data/small.csv", CONTENT)
        info = "millstream_small-1.0.dist-info"
        package.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: millstream-small\nVersion: 1.0\n")
        package.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        package.writestr(f"{info}/RECORD", "")
    return path


def offline(folder: Path) -> tuple[str, ...]:
    return ("--no-index", f"--find-links={folder}")


def test_pip_downloads_what_was_pinned_and_nothing_else(tmp_path: Path) -> None:
    shelf, scratch = tmp_path / "shelf", tmp_path / "scratch"
    shelf.mkdir()
    scratch.mkdir()
    path = wheel(shelf)
    archive = Archive("millstream-small==1.0", archives.sha256_of(path), {}, offline(shelf))
    assert archives.download(archive, scratch, retry="again").read_bytes() == path.read_bytes()
    tampered = dataclasses.replace(archive, sha256="0" * 64)
    with pytest.raises(DataError, match="another SHA-256"):
        archives.download(tampered, tmp_path, retry="again")


def test_a_download_that_fails_names_the_command(tmp_path: Path) -> None:
    archive = Archive("millstream-small==1.0", "0" * 64, {}, offline(tmp_path))
    with pytest.raises(StorageError, match=r"millstream-small==1\.0") as caught:
        archives.download(archive, tmp_path, retry="millstream data fetch small")
    assert caught.value.do == "go online and run `millstream data fetch small` again"
    assert "\n" not in str(caught.value)


def test_one_download_serves_every_set_of_its_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLSTREAM_CACHE", str(tmp_path / "cache"))
    archive = Archive(
        "millstream-small==1.0",
        archives.sha256_of(wheel(tmp_path)),
        {"data/small.csv": hashlib.sha256(CONTENT).hexdigest()},
        offline(tmp_path),
    )
    one, two = (
        dataclasses.replace(
            ENTRIES["elec2"],
            name=name,
            archive=archive,
            members=("data/small.csv",),
            convert=lambda path: {"train": pyarrow.csv.read_csv(path)},
            schema=Schema((Field("a", "number"),), Target("b", "number")),
        )
        for name in ("one", "two")
    )
    monkeypatch.setitem(ENTRIES, "one", one)
    monkeypatch.setitem(ENTRIES, "two", two)
    said: list[str] = []
    data = datasets.fetch("one", progress=said.append)
    assert table_of(data.train).to_pylist() == [{"a": 1, "b": 2}]
    assert [message.split(":")[0] for message in said] == ["one", "one", "one", "two", "two"]
    assert datasets.load("two").description.cached
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["datasets"]  # nothing temporary stays

    said.clear()
    datasets.fetch("one", progress=said.append)
    assert said == [f"one: cached in {fetching.folder_of(one)}"]
    path = fetching.folder_of(one) / "train.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    said.clear()
    datasets.fetch("one", progress=said.append)
    assert "downloading" in said[0]
    assert table_of(datasets.load("one").train).num_rows == 1


# Conversion.


def test_landing_times_follow_time_zones_and_summer_time(tmp_path: Path) -> None:
    header = (
        "year,month,day,arr_delay,sched_arr_time,carrier,flight,tailnum,origin,dest,distance,hour,minute,time_hour\n"
    )
    rows = [
        "2013,7,1,20,1400,UA,1,N1,EWR,LAX,2454,11,30,2013-07-01T15:00:00Z",  # both on summer time
        "2013,7,1,-10,1200,UA,2,N2,EWR,PHX,2133,9,15,2013-07-01T13:00:00Z",  # no summer time in Phoenix
        "2013,7,1,NA,1200,UA,3,N3,EWR,PHX,2133,9,15,2013-07-01T13:00:00Z",  # cancelled
        "2013,1,1,15,300,B6,4,NA,JFK,SJU,1598,22,0,2013-01-02T03:00:00Z",  # lands the next day, on Atlantic time
    ]
    with zipfile.ZipFile(tmp_path / "flights.zip", "w") as package:
        package.writestr("flights.csv", header + "\n".join(rows) + "\n")
    (tmp_path / "airports.csv").write_text("faa,tz,dst\nLAX,-8,A\nPHX,-7,N\n")
    table = convert.flights(tmp_path / "flights.zip", tmp_path / "airports.csv")["train"]
    assert table["flight"].to_pylist() == [4, 2, 1]
    landed = [str(moment)[:16] for moment in table["landed_at"].to_pylist()]
    assert landed == ["2013-01-02 07:15", "2013-07-01 18:50", "2013-07-01 21:20"]
    assert table["scheduled_minutes"].to_pylist() == [240, 345, 330]
    assert table["arrival"].to_pylist() == ["on-time", "on-time", "late"]  # 15 minutes are not late yet
    assert table["tailnum"].to_pylist() == [None, "N2", "N1"]


def test_hours_of_bikes_are_sorted_by_the_clock(tmp_path: Path) -> None:
    header = "dteday,season,hr,holiday,weekday,workingday,weathersit,temp,atemp,hum,windspeed,casual,registered,cnt\n"
    hours = ("12pm", "11pm", "12am", "1am", "11am", "1pm")
    rows = [f"2011-01-01,winter,{hour},No,,Yes,Clear,1.5,2,3,4,1,2,{n}" for n, hour in enumerate(hours)]
    (tmp_path / "bikes.csv").write_text(header + "\n".join(rows) + "\n")
    table = convert.bikes(tmp_path / "bikes.csv")["train"]
    assert table["hr"].to_pylist() == ["12am", "1am", "11am", "12pm", "1pm", "11pm"]
    assert table["cnt"].to_pylist() == [2, 3, 4, 0, 5, 1]
    assert table["weekday"].null_count == 6
    assert {"casual", "registered"}.isdisjoint(table.column_names)


def test_the_small_mnist_file_is_balanced() -> None:
    table = pq.read_table(FIXTURE)
    assert np.bincount(table["label"].to_numpy()).tolist() == [40] * 10
    images = table["image"].combine_chunks()
    assert images.type.list_size == 784
    pixels = images.flatten().to_numpy()
    assert pixels.dtype == np.uint8 and pixels.max() == 255 and 0.1 < pixels.mean() / 255 < 0.16
    assert FIXTURE.stat().st_size < 150_000


# Public sets: these are fetched, into the user's own cache.


@pytest.mark.data
@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_set_is_as_described(name: str) -> None:
    data = datasets.fetch(name)
    description = datasets.describe(name)
    assert description.cached and description.bytes_on_disk > 100_000
    assert data.train.num_records == description.rows
    assert (0 if data.test is None else data.test.num_records) == description.test_rows
    table = table_of(data.train)
    assert table.num_rows == description.rows
    schema = data.schema
    assert schema.target is not None
    assert {field.name for field in schema.fields} < set(table.column_names)
    if schema.target.kind == "class":
        found = {str(value) for value in pc.unique(table[schema.target.name]).to_pylist()}
        assert found == set(schema.target.classes)
    for field in schema.fields:
        if field.values:
            assert {str(value) for value in pc.unique(table[field.name].drop_null()).to_pylist()} == set(field.values)
    info = json.loads((fetching.folder_of(ENTRIES[name]) / "info.json").read_text())
    assert info["layout"] == LAYOUT and info["licence"]
    after = next(data.train.read(size=15_000)).after
    assert next(data.train.read(after, size=3)).inputs.to_pylist() == table.slice(15_000, 3).to_pylist()


@pytest.mark.data
def test_mnist_is_the_published_one() -> None:
    data = datasets.fetch("mnist")
    assert data.test is not None
    train, test = table_of(data.train), table_of(data.test)
    assert train["label"][:10].to_pylist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert test["label"][:5].to_pylist() == [7, 2, 1, 0, 4]
    pixels = train["image"].combine_chunks().flatten().to_numpy()
    assert round(float(pixels.mean() / 255), 4) == 0.1307 and round(float(pixels.std() / 255), 4) == 0.3081
    small = pq.read_table(FIXTURE)
    assert small["label"][0].as_py() == 5 and small["image"][0] == train["image"][0]


@pytest.mark.data
@pytest.mark.parametrize(("name", "same"), [("elec2", 0.8533), ("covertype", 0.9506), ("noaa-weather", 0.6803)])
def test_file_order_is_the_published_one(name: str, same: float) -> None:
    data = datasets.fetch(name)
    assert data.schema.target is not None
    labels = np.array(table_of(data.train)[data.schema.target.name].to_pylist())
    assert round(float((labels[1:] == labels[:-1]).mean()), 4) == same


@pytest.mark.data
@pytest.mark.parametrize("name", ["flights", "flights-minutes", "bikes"])
def test_times_are_in_order_and_labels_come_later(name: str) -> None:
    data = datasets.fetch(name)
    table = table_of(data.train)
    known = table[data.schema.time].cast(pa.int64()).to_numpy()
    labelled = table[data.schema.label_time].cast(pa.int64()).to_numpy()
    assert (np.diff(known) >= 0).all()
    hours = (labelled - known) / 3_600_000_000
    assert hours.min() > 0 and np.median(hours) < 4 and hours.max() < 40
    assert {"dep_delay", "arr_time", "air_time", "casual", "registered"}.isdisjoint(table.column_names)


@pytest.mark.data
def test_the_two_targets_of_flights_agree() -> None:
    late = table_of(datasets.fetch("flights").train)
    minutes = table_of(datasets.fetch("flights-minutes").train)
    assert "arrival_delay" not in late.column_names and "arrival" not in minutes.column_names
    assert pc.equal(late["arrival"], "late").to_pylist() == pc.greater(minutes["arrival_delay"], 15).to_pylist()
