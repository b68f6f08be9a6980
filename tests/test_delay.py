"""Run: pytest tests/test_delay.py"""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.contracts import Chunk
from millstream.delay import Delay, LabelDelay, parse_delay
from millstream.errors import DataError, SettingError


def log_of(delay: Delay, size: int, times: list[float], label_times: list[float], cuts: list[int]) -> list[str]:
    """What happens, in order: ``?3`` record 3 is asked, ``!3`` it is learned. Cuts say how the stream is read."""
    part, events = LabelDelay(delay, size), []
    edges = sorted({0, len(times), *(cut % (len(times) + 1) for cut in cuts)})
    for first, last in itertools.pairwise(edges):
        ids = torch.arange(first, last)
        chunk = Chunk(
            ids.float()[:, None],
            ids,
            times=np.array(times[first:last], dtype=float),
            label_times=np.array(label_times[first:last], dtype=float),
        )
        arrivals = part.arrive(chunk)
        assert arrivals.lessons.targets is not None and len(arrivals.lessons) % size == 0
        lessons = arrivals.lessons.targets.tolist()
        done = 0
        for record, before in zip(range(first, last), arrivals.questions.learned_before.tolist(), strict=True):
            whole = before - before % size
            events += [f"!{lesson}" for lesson in lessons[done:whole]] + [f"?{record}"]
            done = max(done, whole)
        events += [f"!{lesson}" for lesson in lessons[done:]]
        state = part.state_dict()  # a save and a load in the middle change nothing
        part = LabelDelay(delay, size)
        part.load_state_dict(state)
    return events


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 5), st.integers(1, 3), st.integers(1, 12), st.lists(st.integers(0, 12), max_size=4))
def test_records_are_learned_once_the_delay_has_passed(delay: int, size: int, num: int, cuts: list[int]) -> None:
    events = log_of(Delay(records=delay), size, [0.0] * num, [0.0] * num, cuts)
    want, ready = [], []
    for record in range(num):
        want.append(f"?{record}")
        if record >= delay:
            ready.append(f"!{record - delay}")
        if len(ready) == size:
            want += ready
            ready = []
    assert events == want


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(1, 10), st.lists(st.integers(0, 10), max_size=4))
def test_labels_are_learned_in_the_order_in_which_they_arrive(data: st.DataObject, num: int, cuts: list[int]) -> None:
    times = sorted(data.draw(st.lists(st.integers(0, 6), min_size=num, max_size=num)))
    label_times = [t + data.draw(st.integers(0, 4)) for t in times]
    events = log_of(Delay(), 1, times, label_times, cuts)
    assert events == log_of(Delay(), 1, times, label_times, []), "cuts change nothing"
    order = sorted(range(num), key=lambda i: (label_times[i], i))
    want = []
    for record in range(num):
        want += [f"!{i}" for i in order if label_times[i] < times[record] and f"!{i}" not in want]
        want.append(f"?{record}")
    assert events == want


def test_known_is_the_latest_label_that_has_arrived() -> None:
    part = LabelDelay(Delay(records=2), 1)
    known = [part.arrive(Chunk(torch.zeros(3, 1), torch.arange(3) + 10 * i)).known.tolist() for i in range(2)]
    assert np.isnan(known[0]).tolist() == [True, True, True]
    assert known[1] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(("text", "delay"), [("10", Delay(10)), ("1.5m", Delay(None, 90.0)), ("known", Delay())])
def test_delays_are_read_from_text(text: str, delay: Delay) -> None:
    assert parse_delay(text) == delay


def test_bad_delays_are_refused() -> None:
    with pytest.raises(SettingError, match="label delay 'soon'"):
        parse_delay("soon")
    with pytest.raises(DataError, match="without a time column"):
        LabelDelay(Delay(seconds=5), 1).arrive(Chunk(torch.zeros(1, 1), torch.zeros(1)))
