"""What every source must do, as one function: ``check_source(make_source)``.

It is not a test file of its own; a new source is one more call. ``make_source`` is called several times, as new
processes would, and must give a source of the same records each time.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from millstream.contracts import Chunk, LiveSource, Source

SIZES = (1, 3, 64)


def check_source(
    make_source: Callable[[], Source], *, sizes: Iterable[int] = SIZES, is_stable: bool = True
) -> list[Any]:
    """Assert that a source keeps its promises; returns its places (a record or a hole each), for further checks.

    ``is_stable`` is whether two calls of ``make_source`` have the same fingerprint.
    """
    source = make_source()
    assert isinstance(source, Source)
    whole = places_of(source.read(size=1 << 20))
    assert whole, "a source has at least one place"
    if source.num_records is not None:
        assert source.num_records == len(whole)
    json.dumps(source.fingerprint())
    if is_stable:
        assert source.fingerprint() == make_source().fingerprint()
    assert (source.schema is None) == (not isinstance(whole[0], dict))
    for size in sizes:
        check_reading(make_source(), whole, size)
        if source.can_seek:
            check_resuming(make_source, whole, size)
    if source.can_jump:
        check_taking(make_source(), whole)
    return whole


def check_reading(source: Source, whole: list[Any], size: int) -> None:
    """Chunks have exactly ``size`` places, and how they are cut changes nothing."""
    chunks = list(source.read(size=size))
    assert [chunk.span for chunk in chunks[:-1]] == [size] * (len(chunks) - 1)
    assert 0 < chunks[-1].span <= size
    for chunk in chunks:
        check_chunk(chunk)
    assert places_of(chunks) == whole
    if source.can_seek:
        assert places_of(source.read(size=size)) == whole, "a second reading differs"


def check_chunk(chunk: Chunk) -> None:
    """The parts of a chunk agree in length, and its holes are where its rejections are."""
    assert len(chunk) <= chunk.span
    for part in (chunk.targets, chunk.weights, chunk.offsets, chunk.times, chunk.label_times):
        assert part is None or len(part) == len(chunk)
    if chunk.offsets is None:
        assert len(chunk) == chunk.span
    else:
        assert (np.diff(chunk.offsets) > 0).all()
        assert len(chunk.offsets) == 0 or 0 <= chunk.offsets[0] <= chunk.offsets[-1] < chunk.span
    holes = set(range(chunk.span)) - set(range(chunk.span) if chunk.offsets is None else chunk.offsets.tolist())
    assert {one.offset for one in chunk.rejected} == holes


def check_resuming(make_source: Callable[[], Source], whole: list[Any], size: int) -> None:
    """From the ``after`` of each chunk, another source gives what is left, with any size, and again from there."""
    done = 0
    chunks = list(make_source().read(size=size))
    step = max(1, len(chunks) // 8)
    for number, chunk in enumerate(chunks):
        done += chunk.span
        position = json.loads(json.dumps(chunk.after))
        assert position == chunk.after, "a position does not survive JSON"
        if number % step and number < len(chunks) - 2:
            continue
        for other in (size, size + 1):
            assert places_of(make_source().read(position, size=other)) == whole[done:]
        second = next(make_source().read(position, size=size + 2), None)
        if second is not None:
            rest = make_source().read(json.loads(json.dumps(second.after)), size=size)
            assert places_of(rest) == whole[done + second.span :], "a second resume differs"


def check_taking(source: Source, whole: list[Any]) -> None:
    """``take`` gives the records that ``read`` gives, in the order asked for, twice if asked twice."""
    total = len(whole)
    rng = np.random.default_rng(0)
    for numbers in (np.arange(total)[::-1].copy(), rng.integers(0, total, 2 * total), np.array([total - 1])):
        assert places_of([source.take(numbers)]) == [whole[number] for number in numbers]


def places_of(chunks: Iterable[Chunk]) -> list[Any]:
    """Each place of the chunks, in order: a record (a dict of columns, or a tuple of values), or a rejection's text."""
    found: list[Any] = []
    for chunk in chunks:
        rows = _rows(chunk)
        if chunk.offsets is None:
            found += rows
            continue
        places: list[Any] = [None] * chunk.span
        for offset, row in zip(chunk.offsets.tolist(), rows, strict=True):
            places[offset] = row
        for one in chunk.rejected:
            places[one.offset] = (one.reason, one.where, one.record)
        found += places
    return found


def _rows(chunk: Chunk) -> list[Any]:
    if isinstance(chunk.inputs, pa.RecordBatch):
        return [{name: _plain(value) for name, value in row.items()} for row in chunk.inputs.to_pylist()]
    if isinstance(chunk.inputs, dict):
        inputs: list[Tensor] = list(chunk.inputs.values())
    elif isinstance(chunk.inputs, tuple):
        inputs = list(chunk.inputs)
    else:
        inputs = [chunk.inputs]
    columns = [*inputs, chunk.targets, chunk.weights]
    lists = [[None] * len(chunk) if column is None else column.tolist() for column in columns]
    return [tuple(_plain(value) for value in row) for row in zip(*lists, strict=True)]


def _plain(value: Any) -> Any:
    """NaN equals itself here."""
    return "nan" if isinstance(value, float) and value != value else value


def read_some(source: LiveSource, num_places: int, position: Any = None, *, size: int = 64) -> list[Chunk]:
    """Chunks from a position on, until they have so many places; waits for them half a minute at most."""
    chunks: list[Chunk] = []
    late = threading.Timer(30, source.stop)
    late.start()
    try:
        for chunk in source.read(position, size=size):
            chunks.append(chunk)
            if sum(one.span for one in chunks) >= num_places:
                break
    finally:
        late.cancel()
    return chunks


def check_live_source(make_source: Callable[[], LiveSource], num_places: int) -> list[Any]:
    """Assert what a live source promises, of a stream of so many places to which nothing is added meanwhile.

    ``make_source`` must give an open source each time; it is closed here. Returns the places in the order read.
    """
    source = make_source()
    assert isinstance(source, LiveSource) and source.is_live and not source.can_jump
    json.dumps(source.fingerprint())
    peeked = source.peek(3)
    assert peeked is not None
    chunks = read_some(source, num_places, size=7)
    whole = places_of(chunks)
    assert len(whole) == num_places and places_of([peeked]) == whole[: peeked.span]
    assert source.fingerprint() == closing(make_source(), lambda other: other.fingerprint())
    before, done = None, 0
    step = max(1, len(chunks) // 6)
    for number, chunk in enumerate(chunks):
        check_chunk(chunk)
        assert chunk.span <= 7
        assert json.loads(json.dumps(chunk.after)) == chunk.after
        if number % step == 0:
            check_again(source, before, chunk)
            closing(make_source(), lambda other, before=before, chunk=chunk: check_again(other, before, chunk))
            if done + chunk.span < num_places:
                rest = closing(
                    make_source(),
                    lambda other, chunk=chunk, done=done: read_some(other, num_places - done - chunk.span, chunk.after),
                )
                parts = [*places_of(rest)]
                # Parts of a stream may come in another order; within each it is the same.
                assert sorted(map(repr, parts)) == sorted(map(repr, whole[done + chunk.span :]))
        before, done = chunk.after, done + chunk.span
    check_stopping(source, chunks[-1].after)
    source.close()  # type: ignore[attr-defined]
    return whole


def closing(source: LiveSource, use: Callable[[LiveSource], Any]) -> Any:
    """What ``use`` says of a source that is closed afterwards."""
    try:
        return use(source)
    finally:
        source.close()  # type: ignore[attr-defined]


def check_again(source: LiveSource, before: Any, chunk: Chunk) -> None:
    """A chunk once more is the same to the bit, with its holes."""
    again = source.again(before, chunk.after, chunk.span)
    assert again.inputs.equals(chunk.inputs) and again.inputs.schema.equals(chunk.inputs.schema)  # type: ignore[union-attr]
    assert (again.span, again.after, again.rejected) == (chunk.span, chunk.after, chunk.rejected)
    assert places_of([again]) == places_of([chunk])


def check_stopping(source: LiveSource, end: Any) -> None:
    """A reader that waits at the end of a stream ends soon after it is told to, and uses hardly any time of the CPU."""
    found: list[Chunk] = []
    thread = threading.Thread(target=lambda: found.extend(source.read(end)))
    thread.start()
    time.sleep(0.3)
    used = time.process_time()
    time.sleep(0.5)
    used = time.process_time() - used
    began = time.monotonic()
    source.stop()
    thread.join(5)
    assert not thread.is_alive() and time.monotonic() - began < 1.0
    assert found == [] and used < 0.25
