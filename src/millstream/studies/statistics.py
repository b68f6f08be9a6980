"""What a comparison may claim: intervals, paired differences, and the verdict in one sentence.

It knows the result of a comparison as plain JSON values; it does not know how one is run or shown. Two kinds of noise
are told apart: that of the seed (initial weights and order; Student's t over seeds, paired, because both strategies of
a pair start from the same weights) and that of the test records (Wilson's interval of a proportion; used where there is
one seed, or where the seed changes nothing).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any, TypeAlias, TypeGuard

from millstream.errors import SettingError

__all__ = [
    "Contest",
    "Difference",
    "Interval",
    "VarianceFit",
    "binomial_interval",
    "contest",
    "gradient_variance_fit",
    "headline_key",
    "interval",
    "is_number",
    "kind_of",
    "paired_difference",
    "run_values",
    "score_text",
    "seconds_text",
    "student_quantile",
    "verdict",
]

Interval: TypeAlias = tuple[float, float]
Result: TypeAlias = Mapping[str, Any]

CONFIDENCE = 0.95
# Below these a difference is called too small to matter, however sure it is.
NEGLIGIBLE_ACCURACY = 0.001
NEGLIGIBLE_ERROR_FRACTION = 0.005
# "No difference" is claimed only when the whole interval is this near to zero; a wider one is "too noisy to call".
EQUIVALENT_ACCURACY = 0.01
EQUIVALENT_ERROR_FRACTION = 0.05
# Times within this factor are called the same: a shared machine does not measure better.
SAME_TIME_FACTOR = 1.1


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """A minus b: its mean, its interval (None when there is too little to tell), and what the interval rests on."""

    mean: float
    interval: Interval | None
    basis: str  # "3 seeds", "10,000 test records", or "" when there is too little

    @property
    def is_known(self) -> bool:
        """Whether there was enough to tell it from noise."""
        return self.interval is not None

    @property
    def is_more_than_noise(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)


@dataclasses.dataclass(frozen=True, slots=True)
class Contest:
    """The best strategy, the best one of another kind, and winner minus rival in the headline metric."""

    key: str
    winner: str
    rival: str | None
    difference: Difference | None


@dataclasses.dataclass(frozen=True, slots=True)
class VarianceFit:
    """Least squares of log variance on log batch size; independent records give a slope of −1."""

    slope: float
    deviation: float  # slope − (−1)
    interval: Interval | None  # of the slope; None with fewer than three sizes


def student_quantile(probability: float, degrees: int) -> float:
    """The value that Student's t with ``degrees`` of freedom stays below with this probability.

    Bisection of the finite sums for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4).

    >>> round(student_quantile(0.975, 2), 3)
    4.303
    """
    if not 0 < probability < 1 or degrees < 1:
        raise SettingError(
            got=f"probability {probability} with {degrees} degrees of freedom",
            wanted="a probability between 0 and 1 and at least 1 degree of freedom",
            do="give 0.975 for the upper end of a 95 % interval",
        )
    inside = abs(2 * probability - 1)
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _central_probability(middle, degrees) < inside else (low, middle)
    return math.copysign(math.sqrt(degrees) * math.tan((low + high) / 2), probability - 0.5)


def _central_probability(angle: float, degrees: int) -> float:
    """P(|t| < √degrees · tan(angle))."""
    square = math.cos(angle) ** 2
    odd = degrees % 2
    term = math.cos(angle) if odd else 1.0
    total = term if degrees > 1 else 0.0
    for step in range(3 if odd else 2, degrees - 1, 2):
        term *= square * (step - 1) / step
        total += term
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total


def interval(values: Sequence[float | None], confidence: float = CONFIDENCE) -> Interval | None:
    """The confidence interval of the mean, by Student's t; None with fewer than two finite values.

    >>> low, high = interval([0.90, 0.91, 0.92])
    >>> round(low, 3), round(high, 3)
    (0.885, 0.935)
    """
    finite = [value for value in values if is_number(value)]
    if len(finite) < 2:
        return None
    mean = math.fsum(finite) / len(finite)
    variance = math.fsum((value - mean) ** 2 for value in finite) / (len(finite) - 1)
    half = student_quantile((1 + confidence) / 2, len(finite) - 1) * math.sqrt(variance / len(finite))
    return mean - half, mean + half


def binomial_interval(p: float, n: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's interval of a proportion ``p`` seen in ``n`` trials; within [0, 1] and right at both ends.

    >>> low, high = binomial_interval(0.9, 1000)
    >>> round(low, 3), round(high, 3)
    (0.88, 0.917)
    """
    if not 0 <= p <= 1 or n < 1:
        raise SettingError(
            got=f"proportion {p} of {n}", wanted="0 to 1, of at least 1", do="give the share and the number of records"
        )
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    scale = 1 + z * z / n
    centre = (p + z * z / (2 * n)) / scale
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / scale
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))


def paired_difference(
    a: Sequence[float | None], b: Sequence[float | None], confidence: float = CONFIDENCE
) -> Difference:
    """Mean of a − b over seeds, with its interval; a pair with a run that has no finite score is left out.

    >>> paired_difference([0.92, 0.93, 0.91], [0.90, 0.91, 0.89]).is_more_than_noise
    True
    """
    if len(a) != len(b):
        raise SettingError(got=f"{len(a)} and {len(b)} runs", wanted="pairs", do="give both in the same order of seeds")
    pairs = [x - y for x, y in zip(a, b, strict=True) if is_number(x) and is_number(y)]
    if not pairs:
        return Difference(math.nan, None, "")
    return Difference(math.fsum(pairs) / len(pairs), interval(pairs, confidence), f"{len(pairs)} seeds")


def gradient_variance_fit(rows: Sequence[Mapping[str, float]]) -> VarianceFit | None:
    """Slope of log variance against log batch size, and how far it is from −1; None with fewer than two sizes.

    >>> fit = gradient_variance_fit([{"batch_size": size, "variance": 3 / size} for size in (1, 4, 16)])
    >>> round(fit.slope, 6)
    -1.0
    """
    points = [
        (math.log(row["batch_size"]), math.log(row["variance"]))
        for row in rows
        if is_number(row["variance"]) and row["variance"] > 0
    ]
    count = len(points)
    if len({x for x, _ in points}) < 2:
        return None
    mean_x = math.fsum(x for x, _ in points) / count
    mean_y = math.fsum(y for _, y in points) / count
    spread = math.fsum((x - mean_x) ** 2 for x, _ in points)
    slope = math.fsum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    around: Interval | None = None
    if count > 2:
        residual = math.fsum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in points)
        half = student_quantile((1 + CONFIDENCE) / 2, count - 2) * math.sqrt(residual / (count - 2) / spread)
        around = (slope - half, slope + half)
    return VarianceFit(slope, slope + 1, around)


def headline_key(result: Result) -> str:
    """The score that decides: prequential on data in time order, else of the test set; the other where it is missing.

    >>> headline_key({"metric": "mae", "data_info": {"ordered": True}, "strategies": {"a": {"prequential_mae": 2.0}}})
    'prequential_mae'
    """
    metric = result.get("metric") or "accuracy"
    keys = [f"test_{metric}", f"prequential_{metric}"]
    if (result.get("data_info") or {}).get("ordered"):
        keys.reverse()
    arms = result["strategies"].values()
    return next((key for key in keys if any(is_number(arm.get(key)) for arm in arms)), keys[0])


def kind_of(name: str, arm: Mapping[str, Any]) -> str:
    """The kind of a strategy: a tuned one is of the kind that it tunes."""
    return str(arm.get("kind") or name).removesuffix("_tuned")


def run_values(arm: Mapping[str, Any], key: str) -> dict[int, float]:
    """The finite score of each seed."""
    return {run["seed"]: run[key] for run in arm.get("runs") or () if is_number(run.get(key))}


def contest(result: Result) -> Contest | None:
    """The best strategy against the best one of another kind; None when no strategy has a finite score."""
    key = headline_key(result)
    arms: Mapping[str, Mapping[str, Any]] = result["strategies"]
    ranked = [name for name in arms if is_number(arms[name].get(key))]
    sign = 1 if _lower_is_better(result) else -1
    ranked.sort(key=lambda name: (sign * arms[name][key], not name.endswith("_tuned")))
    if not ranked:
        return None
    winner = ranked[0]
    kind = kind_of(winner, arms[winner])
    others = [name for name in ranked if kind_of(name, arms[name]) != kind] or ranked[1:]
    if not others:
        return Contest(key, winner, None, None)
    return Contest(key, winner, others[0], _difference(result, key, arms[winner], arms[others[0]]))


def _difference(result: Result, key: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> Difference:
    runs_a, runs_b = run_values(a, key), run_values(b, key)
    seeds = sorted(runs_a.keys() & runs_b.keys())
    seeds_matter = len({*runs_a.values()}) > 1 or len({*runs_b.values()}) > 1
    if len(seeds) >= 2 and seeds_matter:
        paired = paired_difference([runs_a[seed] for seed in seeds], [runs_b[seed] for seed in seeds])
        # The means shown beside it may rest on more seeds than the pairs do; the sentence must add up.
        return paired if len(seeds) == max(len(runs_a), len(runs_b)) else Difference(a[key] - b[key], None, "")
    mean = a[key] - b[key]
    info = result.get("data_info") or {}
    is_test = key.startswith("test_")
    count = info.get("test_records") if is_test else info.get("records")
    if _lower_is_better(result) or not count:
        return Difference(mean, None, "")
    (low_a, high_a), (low_b, high_b) = binomial_interval(a[key], count), binomial_interval(b[key], count)
    # Newcombe's interval of a difference; both answer the same records, so it is on the wide, safe side.
    low = mean - math.hypot(a[key] - low_a, high_b - b[key])
    high = mean + math.hypot(high_a - a[key], b[key] - low_b)
    return Difference(mean, (low, high), f"{count:,} {'test ' if is_test else ''}records")


def verdict(result: Result) -> str:
    """One honest sentence: who won, by how much, whether that is more than noise, and what it costs."""
    found = contest(result)
    if found is None:
        return "No strategy reached a finite score, so there is nothing to compare."
    arms, metric = result["strategies"], result.get("metric") or "accuracy"
    best = arms[found.winner]
    score = score_text(metric, best[found.key])
    beaten = _baseline_that_wins(result, best[found.key])
    if beaten is not None:
        name, value = beaten
        gap = _gap(metric, value - best[found.key])
        return (
            f"Nothing learned here beats the {name.replace('_', '-')} baseline of {score_text(metric, value)}: the "
            f"best strategy, {_title(found.winner, best)}, reaches {score}, {gap} worse."
        )
    if found.rival is None or found.difference is None:
        return f"Only {_title(found.winner, best)} has a finite score, {score}, so there is nothing to compare it with."
    return _compare(result, found, found.rival, found.difference)


def _compare(result: Result, found: Contest, rival_name: str, difference: Difference) -> str:
    arms, metric = result["strategies"], result.get("metric") or "accuracy"
    best, rival = arms[found.winner], arms[rival_name]
    names = _title(found.winner, best), _title(rival_name, rival)
    scores = score_text(metric, best[found.key]), score_text(metric, rival[found.key])
    gap, cost = _gap(metric, difference.mean), _cost(best, rival)
    again = names[0].partition(" (")[0]
    again = names[0] if names[1].startswith(again) else again
    prefix = "Each at the best rate tried, " if _both_tuned(arms, found.winner, rival_name) else ""
    if difference.interval is not None and not difference.is_more_than_noise:
        limit = EQUIVALENT_ACCURACY if metric == "accuracy" else EQUIVALENT_ERROR_FRACTION * abs(best[found.key])
        claim = "it makes no difference" if max(map(abs, difference.interval)) < limit else "it is too noisy to call"
        text = (
            f"{prefix}{claim}: {names[0]} reaches {scores[0]} and {names[1]} {scores[1]}, a gap of {gap} within the "
            f"noise of {difference.basis}; {again} {cost}."
        )
    elif difference.is_known and _is_negligible(metric, difference.mean, best[found.key]):
        text = (
            f"{prefix}it makes no difference that matters: {names[0]} leads {names[1]} by {gap} ({scores[0]} against "
            f"{scores[1]}), more than the noise of {difference.basis} but next to nothing, and {cost}."
        )
    else:
        doubt = "more than" if difference.is_known else "these runs cannot tell whether that is more than"
        noise = f"{doubt} the noise of {difference.basis}" if difference.is_known else f"{doubt} noise"
        text = f"{prefix}{names[0]} beats {names[1]} by {gap} ({scores[0]} against {scores[1]}; {noise}) and {cost}."
    return text[0].upper() + text[1:]


def _cost(best: Mapping[str, Any], rival: Mapping[str, Any]) -> str:
    """What the winner costs beside the rival, as the end of a sentence."""
    mine, other = best.get("seconds"), rival.get("seconds")
    if is_number(mine) and is_number(other) and mine > 0 and other > 0:
        if 1 / SAME_TIME_FACTOR < mine / other < SAME_TIME_FACTOR:
            return f"takes the same time ({seconds_text(mine)})"
        return f"takes {_factor(mine / other)} the time ({seconds_text(mine)} against {seconds_text(other)})"
    mine, other = best.get("records_per_second"), rival.get("records_per_second")
    if is_number(mine) and is_number(other) and mine > 0 and other > 0:
        return f"learns {_factor(mine / other)} the records a second ({mine:,.0f} against {other:,.0f})"
    return "its cost was not measured"


def _factor(ratio: float) -> str:
    return f"{ratio:,.0f} times" if ratio >= 10 else f"{ratio:.2g} times"


def _baseline_that_wins(result: Result, score: float) -> tuple[str, float] | None:
    sign = -1 if _lower_is_better(result) else 1
    baselines = {name: value for name, value in (result.get("baselines") or {}).items() if is_number(value)}
    if not baselines:
        return None
    name = max(baselines, key=lambda key: sign * baselines[key])
    return (name, baselines[name]) if sign * (baselines[name] - score) > 0 else None


def _both_tuned(arms: Mapping[str, Mapping[str, Any]], *names: str) -> bool:
    kinds = {"" if arms[name].get("sets_rate") else kind_of(name, arms[name]) for name in names}
    return kinds <= {kind_of(name, arm) for name, arm in arms.items() if name.endswith("_tuned") or arm.get("grid")}


def _is_negligible(metric: str, difference: float, score: float) -> bool:
    limit = NEGLIGIBLE_ACCURACY if metric == "accuracy" else NEGLIGIBLE_ERROR_FRACTION * abs(score)
    return abs(difference) < limit


def _lower_is_better(result: Result) -> bool:
    return (result.get("metric") or "accuracy") != "accuracy"


def _title(name: str, arm: Mapping[str, Any]) -> str:
    """What a sentence calls it: its title up to a comma or colon, and its rate, as in ``online (η = 0.01)``."""
    title, rate = re.split(r"[,:] ", str(arm.get("title") or name.replace("_", " ")))[0], arm.get("learning_rate")
    shown = "no rate given" if arm.get("sets_rate") else f"η = {rate:g}" if is_number(rate) else ""
    return f"{title} ({shown})" if shown else title


def _gap(metric: str, difference: float) -> str:
    if metric != "accuracy":
        return f"{abs(difference):.3g} {metric.upper()}"
    points = abs(difference) * 100
    return f"{points:.1f} percentage points" if points >= 0.95 else f"{points:.2f} percentage points"


def score_text(metric: str, value: float | None) -> str:
    """A score with its unit, ``96.8 %`` or ``2.31``; a dash when there is none.

    >>> score_text("accuracy", 0.968), score_text("mae", 2.3)
    ('96.8 %', '2.300')
    """
    if not is_number(value):
        return "–"
    if metric == "accuracy":
        return f"{value * 100:.1f} %"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:#.4g}"


def seconds_text(value: float | None) -> str:
    """A duration as people say it.

    >>> seconds_text(0.0123), seconds_text(3.14), seconds_text(312.0)
    ('12 ms', '3.1 s', '5 min 12 s')
    """
    if not is_number(value):
        return "–"
    if value < 0.0995:
        return f"{value * 1000:.2g} ms"
    if value < 99.5:
        return f"{value:.{2 if value < 0.995 else 1 if value < 9.95 else 0}f} s"
    minutes, seconds = divmod(round(value), 60)
    return f"{minutes} min {seconds} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def is_number(value: object) -> TypeGuard[float]:
    """Whether there is a finite number; JSON has null, and a run that diverged has NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
