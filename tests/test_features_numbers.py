"""Run: pytest tests/test_features_numbers.py"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.errors import CheckpointError
from millstream.features import Standardizer, numbers

VALUES = st.one_of(st.none(), st.floats(-1e6, 1e6, width=32), st.integers(-3, 3).map(float), st.just(1e12))


def slow_twin(column, clip=10.0):
    """One column, one record after another: the same recurrences in plain Python floats."""
    scaled, count, origin, total, squares = [], 0, 0.0, 0.0, 0.0
    for value in column:
        if value is None:
            scaled.append(0.0)
            continue
        if count == 0:
            origin = value
        relative = value - origin
        distance = relative - total / max(count, 1)
        std = math.sqrt(squares / max(count, 1))
        scaled.append(min(max(distance / std, -clip), clip) if std > 0 else 0.0)
        total += relative
        squares += distance * distance * (count / (count + 1.0))
        count += 1
    return np.array(scaled, np.float64).astype(np.float32)


def textbook_welford(column):
    """Mean and population standard deviation by Welford's own update."""
    count, mean, squares = 0, 0.0, 0.0
    for value in column:
        count += 1
        before = value - mean
        mean += before / count
        squares += before * (value - mean)
    return mean, math.sqrt(squares / count)


def run(standardizer, columns, cuts=(), learn=True):
    table = np.array([[np.nan if value is None else value for value in column] for column in columns])
    valid = ~np.isnan(table)
    values = np.where(valid, table, 0.0)
    edges = [0, *sorted(cuts), table.shape[1]]
    parts = [
        standardizer.transform(values[:, a:b], None if valid[:, a:b].all() else valid[:, a:b], learn=learn)
        for a, b in itertools.pairwise(edges)
    ]
    return torch.cat(parts).numpy()


@st.composite
def tables(draw):
    num_columns, num_records = draw(st.integers(1, 4)), draw(st.integers(1, 40))
    columns = [draw(st.lists(VALUES, min_size=num_records, max_size=num_records)) for _ in range(num_columns)]
    return columns, draw(st.lists(st.integers(0, num_records), max_size=4))


@settings(max_examples=60, deadline=None)
@given(tables())
def test_equals_the_slow_twin_bit_for_bit_at_any_cut(case):
    columns, cuts = case
    wanted = np.stack([slow_twin(column) for column in columns], axis=1)
    assert np.array_equal(run(Standardizer(len(columns)), columns, cuts), wanted)


@settings(max_examples=30, deadline=None)
@given(tables())
def test_saved_and_loaded_it_goes_on_with_the_same_bits(case):
    columns, _ = case
    half = len(columns[0]) // 2
    first, second = [column[:half] for column in columns], [column[half:] for column in columns]
    straight = Standardizer(len(columns))
    run(straight, first)
    saved = straight.state_dict()
    resumed = Standardizer(len(columns))
    resumed.load_state_dict(saved)
    assert np.array_equal(run(straight, second), run(resumed, second))
    assert all(np.array_equal(saved[name], first_saved) for name, first_saved in _arrays(run_state(columns, half)))


def run_state(columns, num_records):
    standardizer = Standardizer(len(columns))
    run(standardizer, [column[:num_records] for column in columns])
    return standardizer.state_dict()


def _arrays(state):
    return [(name, value) for name, value in state.items() if isinstance(value, np.ndarray)]


def test_agrees_with_textbook_welford_over_many_tiles(monkeypatch):
    monkeypatch.setattr(numbers, "_TILE", 256)
    column = np.random.default_rng(1).normal(1e9, 3.0, 5000)
    standardizer = Standardizer(1)
    standardizer.transform(column[None, :], None, learn=True)
    mean, std = textbook_welford(column.tolist())
    assert standardizer.origins[0] + standardizer.sums[0] / 5000 == pytest.approx(mean, rel=1e-13)
    assert math.sqrt(standardizer.squares[0] / 5000) == pytest.approx(std, rel=1e-7)


def test_learning_nothing_changes_nothing_and_scales_as_the_first_learned_record_would_be():
    standardizer = Standardizer(2)
    run(standardizer, [[1.0, 4.0, 2.0], [0.5, None, 9.0]])
    before = standardizer.state_dict()
    predicted = run(standardizer, [[7.0, None], [3.0, 1.0]], learn=False)
    after = standardizer.state_dict()
    assert all(np.array_equal(before[name], value) for name, value in _arrays(after))
    learned = run(standardizer, [[7.0], [3.0]])
    assert np.array_equal(predicted[:1], learned)
    assert predicted[1, 0] == 0.0


def test_a_constant_column_stays_zero_and_an_outlier_is_clipped():
    scaled = run(Standardizer(1), [[0.1] * 1000 + [0.2, 5.0, 1e130]])
    assert not scaled[:1001].any()
    assert scaled[1002, 0] == 10.0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.integers(0, 30))
def test_followed_targets_can_be_had_back_and_know_only_the_past(values, cut):
    values, cut = np.array(values), min(cut, len(values))
    whole, parted = Standardizer(1), Standardizer(1)
    scaled, shift, scale = whole.follow(values, learn=True)
    left, right = parted.follow(values[:cut], learn=True), parted.follow(values[cut:], learn=True)
    assert np.array_equal(scaled, np.concatenate([left[0], right[0]]))
    assert np.array_equal(shift, np.concatenate([left[1][:-1], right[1]]))
    assert np.array_equal(scale, np.concatenate([left[2][:-1], right[2]]))
    spread = np.array([len(set(values[:place].tolist())) > 1 for place in range(len(values))])
    plain = (scaled != 0) & (np.abs(scaled) < 10)  # a spread may be too small to have a square
    back = (scaled * scale[:-1] + shift[:-1])[plain]
    assert np.allclose(back, values[plain], rtol=1e-9, atol=1e-9 * (1 + np.abs(values).max()))
    assert not scaled[~spread].any() and np.abs(scaled).max() <= 10, "one raw value does not throw a model"
    assert (shift[0], scale[0]) == (0.0, 1.0)
    assert shift[-1] == pytest.approx(values.mean(), rel=1e-9, abs=1e-6)
    fixed = whole.follow(values, learn=False)
    assert (fixed[1] == shift[-1]).all() and (fixed[2] == scale[-1]).all()


def test_refuses_the_state_of_something_else():
    state = Standardizer(3).state_dict()
    for other in (Standardizer(2), Standardizer(3, clip=5.0)):
        with pytest.raises(CheckpointError, match="feature statistics"):
            other.load_state_dict(state)
    with pytest.raises(CheckpointError, match="version 99"):
        Standardizer(3).load_state_dict({**state, "version": 99})
