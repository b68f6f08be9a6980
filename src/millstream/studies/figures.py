"""The figures of a comparison: what was scored while learning, at each learning rate, and how gradients vary.

It knows which curves tell strategies apart and how each strategy looks; it does not know how a page is laid out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from millstream.studies import statistics
from millstream.studies.charts import DASHES, NUM_COLOURS, Axis, Line, Rule, compact, line_chart
from millstream.studies.page import escape
from millstream.studies.statistics import is_number, score_text, seconds_text

__all__ = [
    "Look",
    "curves",
    "figure",
    "line_key",
    "looks_of",
    "metric_of",
    "short_name",
    "tick_text",
    "title_of",
    "tuning",
]

Result: TypeAlias = Mapping[str, Any]
Look: TypeAlias = tuple[int, int]  # colour and dash


_CURVE_AXES = {
    "records": Axis("records"),
    "updates": Axis("updates", log=True),
    "seconds": Axis("seconds of learning", log=True),
}


def curves(result: Result, looks: Mapping[str, Look]) -> str:
    """The headline score against records, updates and time; the other measures against records."""
    arms, metric, headline = result["strategies"], metric_of(result), statistics.headline_key(result)
    points = [point for arm in arms.values() for point in arm.get("curve") or ()]
    keys = [headline, f"window_{metric}", f"test_{metric}", f"prequential_{metric}", "test_loss", "prequential_loss"]
    shown = [key for key in dict.fromkeys(keys) if any(is_number(point.get(key)) for point in points)]
    figures = [
        figure(title_of(key), f"by {x.label}", _curve(result, looks, key, field, x))
        for key in shown
        for field, x in _CURVE_AXES.items()
        if field == "records" or key == headline or (field == "seconds" and key.endswith("loss"))
    ]
    if not figures:
        return ""
    items = (
        f"<li>{line_key(looks[name])}{escape(arm.get('title') or short_name(name))}</li>" for name, arm in arms.items()
    )
    return (
        f'<h3>While learning</h3><ul class="legend">{"".join(items)}</ul><div class="charts">{"".join(figures)}</div>'
    )


def _curve(result: Result, looks: Mapping[str, Look], key: str, field: str, x: Axis) -> str:
    is_score = not key.endswith("loss")
    lines = []
    for name, arm in result["strategies"].items():
        curve = arm.get("curve") or ()
        bands = [tuple(point.get(f"{key}_interval") or ()) or None for point in curve]
        hovers = [_hover(result, name, point, key) for point in curve]
        places = [(point.get(field), point.get(key)) for point in curve]
        lines.append(Line(short_name(name), places, *looks[name], band=bands, hovers=hovers))
    xs = [place for line in lines for place, _ in line.points if is_number(place) and (place > 0 or not x.log)]
    if not xs:
        return line_chart([], x, Axis(""), title="")
    first, last = (min(xs), max(xs)) if x.log else (0.0, max(xs))
    baselines = result.get("baselines") or {}
    rules = [
        Rule(f"{short_name(name)} {score_text(metric_of(result), value)}", (first, value), (last, value))
        for name, value in baselines.items()
        if is_number(value) and is_score and key == statistics.headline_key(result)
    ]
    is_high_better = is_score and metric_of(result) == "accuracy"
    bounds = None if key.startswith("window_") else _focus(lines, rules, is_high_better)
    y = Axis(title_of(key), text=tick_text(result) if is_score else compact, bounds=bounds)
    if not x.log:
        x = dataclasses.replace(x, bounds=(first, last))
    return line_chart(lines, x, y, title=f"{y.label} by {x.label}", rules=rules)


def _hover(result: Result, name: str, point: Mapping[str, Any], key: str) -> str:
    value = point.get(key)
    text = compact(value) if key.endswith("loss") and is_number(value) else score_text(metric_of(result), value)
    return (
        f"{short_name(name)}: {text} after {point.get('records') or 0:,} records, {seconds_text(point.get('seconds'))}"
    )


def _focus(lines: Sequence[Line], rules: Sequence[Rule], is_high_better: bool) -> tuple[float, float] | None:
    """Bounds that show how the strategies differ: all of the later half, and of the beginning what is near it."""
    heights = [[y for _, y in line.points if is_number(y)] for line in lines]
    everything = [y for line in heights for y in line]
    late = [y for line in heights for y in line[len(line) // 2 :]] + [rule.start[1] for rule in rules]
    if not everything or min(late) == max(late):
        return None
    low, high = min(late), max(late)
    reach = max(0.6 * (high - low), 0.01 if is_high_better else 0.1 * abs(high))
    # The good end is never cut: a line that was better at first and fell must be seen to fall.
    low = max(min(*everything, low), low - reach) if is_high_better else min(*everything, low)
    high = max(*everything, high) if is_high_better else min(max(*everything, high), high + reach)
    margin = 0.05 * (high - low)
    return low - margin, min(high + margin, 1.0) if is_high_better and high < 1 else high + margin


def tuning(result: Result, looks: Mapping[str, Look]) -> str:
    figures = [*_grid(result, looks), *_variance(result)]
    return f'<h3>Learning rates and gradients</h3><div class="charts">{"".join(figures)}</div>' if figures else ""


def _grid(result: Result, looks: Mapping[str, Look]) -> Iterator[str]:
    lines, chosen = [], []
    for name, arm in result["strategies"].items():
        grid = sorted(arm.get("grid") or (), key=lambda row: row["learning_rate"])
        if grid:
            places = [(row["learning_rate"], row.get("score")) for row in grid]
            lines.append(Line(short_name(name), places, *looks[name]))
            picked = [place for place in places if place[0] == arm.get("learning_rate")]
            chosen.append(Line("", picked, *looks[name], is_joined=False))
    if lines:
        y = Axis("score", text=tick_text(result))
        x = Axis("learning rate η", log=True)
        chart = line_chart([*lines, *chosen], x, y, title="score by learning rate")
        yield figure("Score", "by learning rate; large: chosen", chart)


def _variance(result: Result) -> Iterator[str]:
    rows = [row for row in result.get("gradient_variance") or () if is_number(row["variance"]) and row["variance"] > 0]
    if not rows:
        return
    first, last = rows[0], rows[-1]
    places = [(row["batch_size"], row["variance"]) for row in rows]
    law = first["variance"] * first["batch_size"] / last["batch_size"]
    rule = Rule("1/B, slope −1", (first["batch_size"], first["variance"]), (last["batch_size"], law))
    x, y = Axis("batch size B", log=True), Axis("variance", log=True)
    chart = line_chart([Line("", places, is_joined=False)], x, y, title="gradient variance by batch size", rules=[rule])
    fit = statistics.gradient_variance_fit(rows)
    slope = f"; slope {fit.slope:.2f}".replace("-", "−") if fit else ""
    yield figure("Gradient variance", f"by batch size{slope}", chart)


def short_name(name: str) -> str:
    text = name.replace("_", " ")
    return text if len(text) <= 16 else text[:15] + "…"


def title_of(key: str) -> str:
    """The key of a measure as a heading: ``test_mae`` is ``Test MAE``."""
    words = key.replace("mae", "MAE").replace("_", " ")
    return words[:1].upper() + words[1:]


def metric_of(result: Result) -> str:
    return str(result.get("metric") or "accuracy")


def looks_of(arms: Mapping[str, Any]) -> dict[str, Look]:
    """A colour for each kind of strategy; within a kind the tuned one is solid and the others are dashed."""
    names = sorted(arms, key=lambda name: (not name.endswith("_tuned"), list(arms).index(name)))
    kinds = list(dict.fromkeys(statistics.kind_of(name, arms[name]) for name in arms))
    seen: dict[str, int] = {}
    looks = {}
    for name in names:
        kind = statistics.kind_of(name, arms[name])
        looks[name] = (kinds.index(kind) % NUM_COLOURS, min(seen.get(kind, 0), 2))
        seen[kind] = seen.get(kind, 0) + 1
    return looks


def line_key(look: Look) -> str:
    dash = f' stroke-dasharray="{DASHES[look[1]]}"' if look[1] else ""
    return (
        f'<svg class="key" viewBox="0 0 22 10" aria-hidden="true" style="--c:var(--series-{look[0]})">'
        f'<line x1="0" x2="22" y1="5" y2="5"{dash}/></svg>'
    )


def figure(title: str, under: str, chart: str) -> str:
    return f"<figure><figcaption>{escape(title)} <span>{escape(under)}</span></figcaption>{chart}</figure>"


def tick_text(result: Result) -> Callable[[float], str]:
    return (lambda value: f"{value * 100:.4g} %") if metric_of(result) == "accuracy" else compact
