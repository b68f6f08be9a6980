"""Run: pytest tests/test_statistics.py"""

from __future__ import annotations

import doctest
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from millstream.errors import SettingError
from millstream.studies import statistics
from millstream.studies.statistics import (
    binomial_interval,
    contest,
    gradient_variance_fit,
    headline_key,
    interval,
    paired_difference,
    seconds_text,
    student_quantile,
    verdict,
)


@settings(max_examples=100, deadline=None)
@given(st.floats(0.001, 0.999), st.integers(1, 200))
def test_student_quantile_equals_scipy(probability: float, degrees: int) -> None:
    assert student_quantile(probability, degrees) == pytest.approx(
        stats.t.ppf(probability, degrees), rel=1e-9, abs=1e-9
    )


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=20), st.sampled_from([0.8, 0.95, 0.99]))
def test_interval_equals_scipy(values: list[float], confidence: float) -> None:
    found = interval(values, confidence)
    error = stats.sem(values)
    if error == 0:
        assert found == pytest.approx((values[0], values[0]))
    else:
        expected = stats.t.interval(confidence, len(values) - 1, loc=np.mean(values), scale=error)
        assert found == pytest.approx(expected, rel=1e-7, abs=1e-7)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_binomial_interval_equals_scipy(case: tuple[int, int]) -> None:
    hits, count = case
    expected = stats.binomtest(hits, count).proportion_ci(method="wilson")
    assert binomial_interval(hits / count, count) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    draws = generator.normal(3.0, 2.0, size=(2000, 4)).tolist()
    hits = sum(low <= 3.0 <= high for low, high in filter(None, map(interval, draws)))
    assert 0.935 < hits / 2000 < 0.965
    shares = (generator.binomial(200, 0.93, size=2000) / 200).tolist()
    hits = sum(low <= 0.93 <= high for low, high in (binomial_interval(share, 200) for share in shares))
    assert 0.93 < hits / 2000 < 0.97


def test_one_value_has_no_interval_and_missing_ones_are_left_out() -> None:
    assert interval([0.9]) is None
    assert interval([0.9, None, math.nan]) is None
    assert interval([0.9, None, 0.8]) == interval([0.9, 0.8])


def test_pairing_finds_what_the_spread_of_seeds_hides() -> None:
    a, b = [0.70, 0.80, 0.90], [0.69, 0.79, 0.885]
    assert paired_difference(a, b).is_more_than_noise
    assert not paired_difference(a, [0.79, 0.885, 0.69]).is_more_than_noise
    assert paired_difference(a, b).mean == pytest.approx(0.035 / 3)
    assert paired_difference([0.9, math.nan], [0.8, 0.7]).interval is None
    assert not paired_difference([0.9], [0.1]).is_known


@pytest.mark.parametrize(
    "call",
    [
        lambda: student_quantile(1.0, 3),
        lambda: student_quantile(0.9, 0),
        lambda: binomial_interval(1.5, 10),
        lambda: binomial_interval(0.5, 0),
        lambda: paired_difference([1.0], [1.0, 2.0]),
    ],
)
def test_what_cannot_be_is_refused(call: Any) -> None:
    with pytest.raises(SettingError, match=r"got .*; wanted .*"):
        call()


def test_gradient_variance_slope() -> None:
    sizes = [1, 2, 8, 32, 128]
    noise = np.random.default_rng(1).normal(0, 0.05, len(sizes))
    variances = [3.0 / size * math.exp(e) for size, e in zip(sizes, noise, strict=True)]
    fit = gradient_variance_fit([{"batch_size": b, "variance": v} for b, v in zip(sizes, variances, strict=True)])
    expected = stats.linregress(np.log(sizes), np.log(variances))
    assert fit is not None and fit.interval is not None
    assert fit.slope == pytest.approx(expected.slope)
    assert fit.deviation == pytest.approx(expected.slope + 1)
    assert fit.interval[1] - fit.slope == pytest.approx(stats.t.ppf(0.975, 3) * expected.stderr)
    assert gradient_variance_fit([{"batch_size": 1, "variance": 1.0}]) is None
    assert gradient_variance_fit([{"batch_size": 1, "variance": 1.0}, {"batch_size": 2, "variance": 0.0}]) is None


# ---- the verdict


def result(
    scores: dict[str, list[float]], *, metric: str = "accuracy", ordered: bool = False, **changes: Any
) -> dict[str, Any]:
    """Strategies with these scores, one for each seed."""
    key = f"{'prequential' if ordered else 'test'}_{metric}"
    strategies = {
        name: {
            "title": name.replace("_", " "),
            "kind": name,
            key: sum(values) / len(values),
            "runs": [{"seed": seed, key: value} for seed, value in enumerate(values)],
            "seconds": 2.0 * (place + 1),
            "records_per_second": 1000.0,
        }
        for place, (name, values) in enumerate(scores.items())
    }
    info = {"records": 50_000, "test_records": 10_000, "ordered": ordered}
    return {"metric": metric, "data_info": info, "strategies": strategies, "baselines": None, **changes}


def test_a_clear_winner() -> None:
    text = verdict(result({"batch": [0.90, 0.91, 0.905], "online": [0.95, 0.96, 0.956]}))
    assert text == (
        "Online beats batch by 5.0 percentage points (95.5 % against 90.5 %; more than the noise of 3 seeds) "
        "and takes 2 times the time (4.0 s against 2.0 s)."
    )


def test_no_difference_within_a_narrow_interval() -> None:
    text = verdict(result({"batch": [0.960, 0.962, 0.961], "online": [0.961, 0.961, 0.9625]}))
    assert text.startswith("It makes no difference: online reaches 96.2 % and batch 96.1 %, a gap of 0.05 percentage")
    assert "within the noise of 3 seeds; online takes 2 times the time" in text


def test_a_wide_interval_is_not_called_no_difference() -> None:
    text = verdict(result({"batch": [0.72, 0.91, 0.80], "online": [0.90, 0.75, 0.91]}))
    assert text.startswith("It is too noisy to call:")
    assert "no difference" not in text


def test_sure_but_too_small_to_matter() -> None:
    text = verdict(result({"batch": [0.9600, 0.9700, 0.9500], "online": [0.9605, 0.9704, 0.9505]}))
    assert text.startswith("It makes no difference that matters: online leads batch by 0.05 percentage points")


def test_each_at_its_own_best_rate() -> None:
    scores = {"batch": [0.80] * 3, "online": [0.955, 0.96, 0.95], "batch_tuned": [0.94, 0.93, 0.938]}
    both = verdict(result({**scores, "online_tuned": [0.96, 0.966, 0.957]}))
    assert both.startswith("Each at the best rate tried, online tuned beats batch tuned by 2.5 percentage points")
    assert not verdict(result(scores)).startswith("Each at")


def test_a_sentence_names_a_strategy_by_the_head_of_its_title_and_its_rate() -> None:
    made = result({"a": [0.9, 0.91], "b": [0.8, 0.81]})
    made["strategies"]["a"].update(title="online: one record at a time, η = 0.03, its best", learning_rate=0.03)
    made["strategies"]["b"].update(title="mini-batch 64, η = 1", learning_rate=1.0)
    assert verdict(made).startswith("Online (η = 0.03) beats mini-batch 64 (η = 1) by 10.0 percentage points")


def test_the_tuned_one_is_named_when_it_ties_with_the_given_rate() -> None:
    found = contest(result({"online": [0.96], "online_tuned": [0.96], "batch": [0.9], "batch_tuned": [0.9]}))
    assert found is not None
    assert (found.winner, found.rival) == ("online_tuned", "batch_tuned")


def test_the_rival_is_of_another_kind() -> None:
    found = contest(result({"online": [0.95], "online_tuned": [0.96], "batch": [0.90]}))
    assert found is not None
    assert (found.winner, found.rival) == ("online_tuned", "batch")


def test_one_seed_falls_back_on_the_size_of_the_test() -> None:
    near, far = verdict(result({"a": [0.950], "b": [0.951]})), verdict(result({"a": [0.950], "b": [0.970]}))
    assert near.startswith("It makes no difference:") and "within the noise of 10,000 test records" in near
    assert far.startswith("B beats a by 2.0 percentage points") and "more than the noise of 10,000 test records" in far


def test_seeds_that_change_nothing_are_no_evidence() -> None:
    assert "10,000 test records" in verdict(result({"a": [0.950] * 3, "b": [0.951] * 3}))


def test_one_run_of_an_error_has_no_noise_to_stand_against() -> None:
    text = verdict(result({"a": [2.0], "b": [3.0]}, metric="mae"))
    assert text.startswith("A beats b by 1 MAE (2.000 against 3.000; these runs cannot tell whether")


def test_lower_error_wins() -> None:
    text = verdict(result({"a": [2.0, 2.1, 2.05], "b": [3.0, 3.1, 3.06]}, metric="mae"))
    assert text.startswith("A beats b by 1 MAE (2.050 against 3.053; more than the noise of 3 seeds)")


@pytest.mark.parametrize(
    ("metric", "scores", "baselines", "wins"),
    [
        ("accuracy", [0.78, 0.80], {"no_change": 0.853, "majority": 0.57}, True),
        ("accuracy", [0.90, 0.91], {"no_change": 0.853, "majority": 0.57}, False),
        ("mae", [2.0, 2.1], {"no_change": 1.5}, True),
        ("mae", [1.0, 1.1], {"no_change": 1.5, "median": None}, False),
    ],
)
def test_a_baseline_may_beat_all(metric: str, scores: list[float], baselines: dict[str, float], wins: bool) -> None:
    made = result({"online": scores, "frozen": scores}, metric=metric, ordered=True, baselines=baselines)
    assert ("Nothing learned here beats the no-change baseline" in verdict(made)) is wins


def test_a_strategy_that_diverged_cannot_win() -> None:
    made = result({"a": [0.8, 0.81], "b": [0.7, 0.71]})
    made["strategies"]["c"] = {"kind": "c", "test_accuracy": math.nan, "runs": [], "seconds": 1.0}
    assert verdict(made).startswith("A beats b")
    for name in ("b", "a"):
        made["strategies"][name]["test_accuracy"] = None
        assert ("Only a has" in verdict(made)) is (name == "b")
    assert verdict(made) == "No strategy reached a finite score, so there is nothing to compare."


def test_pairs_that_are_not_all_there_prove_nothing() -> None:
    made = result({"a": [0.8, 0.81, 0.82], "b": [0.7, 0.71, 0.72]})
    del made["strategies"]["b"]["runs"][2]
    assert "cannot tell" in verdict(made)


def test_cost_is_named_by_time_else_by_rate() -> None:
    made = result({"a": [0.8, 0.81], "b": [0.7, 0.71]})
    made["strategies"]["b"]["seconds"] = 2.05
    assert "takes the same time (2.0 s)" in verdict(made)
    made["strategies"]["a"].update(seconds=None, records_per_second=50_000.0)
    assert "learns 50 times the records a second (50,000 against 1,000)" in verdict(made)


def test_the_headline_is_prequential_on_ordered_data() -> None:
    assert headline_key(result({"a": [0.5]}, ordered=True)) == "prequential_accuracy"
    assert headline_key(result({"a": [0.5]}, metric="mae")) == "test_mae"
    mixed = result({"a": [0.5]})
    mixed["data_info"]["ordered"] = True
    assert headline_key(mixed) == "test_accuracy"  # the only score there is


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["batch", "online", "batch_tuned", "frozen"]),
        st.lists(st.floats(0, 1), min_size=3, max_size=3),
        min_size=2,
    ),
    st.sampled_from(["accuracy", "mae"]),
)
def test_a_verdict_is_one_sentence_and_never_claims_against_its_numbers(
    scores: dict[str, list[float]], metric: str
) -> None:
    made = result(scores, metric=metric)
    text = verdict(made)
    assert text.endswith(".") and "\n" not in text and text[0].isupper() and "nan" not in text
    found = contest(made)
    assert found is not None and found.difference is not None and found.rival is not None
    best = made["strategies"][found.winner][found.key]
    pick = max if metric == "accuracy" else min
    assert best == pick(arm[found.key] for arm in made["strategies"].values())
    if found.difference.is_known and not found.difference.is_more_than_noise:
        assert " beats " not in text


def test_times_read_as_people_say_them() -> None:
    texts = [seconds_text(value) for value in (0.0004, 0.05, 0.4, 3.14, 42.0, 312.0, 7500.0, None)]
    assert texts == ["0.4 ms", "50 ms", "0.40 s", "3.1 s", "42 s", "5 min 12 s", "2 h 5 min", "–"]


def test_examples_in_the_docstrings() -> None:
    assert doctest.testmod(statistics).failed == 0
