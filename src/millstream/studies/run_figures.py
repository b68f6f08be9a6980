"""The figures of a run over its records: measures, loss, learning rate, size of an update, with what was decided.

It knows points and events as plain JSON values, and which kind of event looks how.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from millstream.studies.charts import NUM_COLOURS, Axis, Line, Moment, Point, line_chart
from millstream.studies.figures import figure, tick_text
from millstream.studies.page import escape
from millstream.studies.statistics import is_number, score_text

__all__ = ["EventLook", "course", "courses", "figures", "look_of", "moments_of", "rate_lines"]

Facts: TypeAlias = Mapping[str, Any]

_MOST_POINTS = 500  # of a line
_GREY = NUM_COLOURS - 1
_FIRST_STEPS = 0.05  # of the records, in which what is far off is cut
_APART = 200  # places along a chart at which strokes can be told apart


@dataclasses.dataclass(frozen=True, slots=True)
class EventLook:
    """How a kind of event is drawn: through the whole chart, or as a stroke at its top."""

    colour: int
    is_tall: bool = False

    def key(self) -> str:
        """The stroke, for a legend or a row."""
        dash = ' stroke-dasharray="4 2"' if self.is_tall else ""
        return (
            f'<svg class="key stroke" viewBox="0 0 5 10" aria-hidden="true" style="--c:var(--series-{self.colour})">'
            f'<line x1="2.5" x2="2.5" y1="0" y2="10"{dash}/></svg>'
        )


_LOOKS = {
    "drift": EventLook(1, True),
    "rate falls": EventLook(4, True),
    "training ends": EventLook(3, True),
    "batch grows": EventLook(2, True),
    "phase begins": EventLook(_GREY, True),
    "leads": EventLook(0),
    "all run again": EventLook(3),
    "stopped": EventLook(_GREY),
}


def look_of(what: str) -> EventLook:
    """That of a kind of event; one that is not known is a grey stroke."""
    return _LOOKS.get(what, EventLook(_GREY))


def figures(facts: Facts) -> str:
    """All figures over the records of the run, below one legend of what happened."""
    points: Sequence[Facts] = facts["points"]
    if not points:
        return ""
    metric, moments = facts["metric"], moments_of(facts)
    drawn = []
    if metric != "loss":
        drawn.append(_measure(facts, metric, facts["baselines"], moments))
    drawn += [_measure(facts, "loss", (), moments), _rates(facts, moments), _sizes(facts, moments)]
    return f'<h2>Over its records</h2>{_legend(facts)}<div class="charts">{"".join(drawn)}</div>'


def courses(facts: Facts, title: str) -> str:
    """Learning rate and size of an update alone."""
    moments = moments_of(facts)
    drawn = _rates(facts, moments) + _sizes(facts, moments)
    return f'<p class="small">{escape(title)}</p>{_legend(facts)}<div class="charts">{drawn}</div>'


def _legend(facts: Facts) -> str:
    counts: dict[str, int] = {}
    for event in facts["events"]:
        counts[str(event.get("what"))] = counts.get(str(event.get("what")), 0) + 1
    told = [(what, f"{what} ({num:,})") for what, num in counts.items()]
    told += [("phase begins", "a phase begins")] * (len(facts["phases"]) > 1)
    items = "".join(f"<li>{look_of(what).key()}{escape(text)}</li>" for what, text in told)
    return f'<ul class="legend">{items}</ul>' if items else ""


def moments_of(facts: Facts) -> list[Moment]:
    """The events as moments; those of a kind that fall on one place of a chart are one."""
    end = max(1, facts["position"])
    events = [(e["position"], str(e.get("what")), str(e.get("detail", ""))) for e in facts["events"] if "position" in e]
    events += [(phase["first"], "phase begins", str(phase.get("kind"))) for phase in facts["phases"][1:]]
    places: dict[tuple[int, str], list[tuple[int, str]]] = {}
    for position, what, detail in events:
        places.setdefault((position * _APART // end, what), []).append((position, detail))
    found = []
    for (_, what), inside in places.items():
        look, (position, detail) = look_of(what), inside[0]
        more = f" and {len(inside) - 1} more" if len(inside) > 1 else ""
        found.append(Moment(f"{position:,}: {what}, {detail}{more}", min(position, end), look.colour, look.is_tall))
    return sorted(found, key=lambda moment: (moment.is_tall, moment.x), reverse=True)


def _axis(facts: Facts) -> Axis:
    return Axis("records", bounds=(0.0, float(max(1, facts["position"]))))


def course(points: Sequence[Facts], name: str) -> list[Point]:
    """A measure over the run, with a gap between phases, as each begins anew."""
    apart = max(1, -(-len(points) // _MOST_POINTS))
    found: list[Point] = []
    for number, group in itertools.groupby(points, key=lambda point: point.get("phase")):
        inside = [(p["position"], p["metrics"].get(name)) for p in group]
        kept = inside[::-1][::apart][::-1]  # the last one is always there
        found += [(kept[0][0], None)] * bool(found and number is not None)
        found += [(place, value if is_number(value) else None) for place, value in kept]
    return found


def _measure(facts: Facts, name: str, baselines: Sequence[str], moments: Sequence[Moment]) -> str:
    """A measure over the last window and since the start, validation after each epoch, and what guessing gives."""
    points = facts["points"]
    has_window = any(is_number(point["metrics"].get(f"window_{name}")) for point in points)
    window = course(points, f"window_{name}") if has_window else []
    tests = [(e["position"], e["test"].get(name)) for e in facts["epochs"] if e["test"]]
    lines = [Line("window", window, 0)] if window else []
    lines.append(Line("since start", course(points, name), 0, 1 if window else 0))
    if any(is_number(value) for _, value in tests):
        lines.append(Line("validation", tests, 1))
    guesses = []
    for number, baseline in enumerate(baselines):
        label = baseline.removesuffix(f"_{name}").replace("_", " ")
        chosen = f"window_{baseline}" if window else baseline
        guesses.append(Line(label, course(points, chosen), (_GREY, 4)[number % 2], 2))
    bounds = _bounds(lines, guesses, facts["position"], is_high_better=name == "accuracy")
    lines += [line for line in guesses if bounds is None or _is_within(line, bounds)]
    y = Axis("", text=tick_text({"metric": name}), bounds=bounds)
    told = [_told(line, name) for line in lines]
    chart = line_chart(told, _axis(facts), y, title=f"{name} by records", moments=moments)
    num = next((p["metrics"]["window_count"] for p in reversed(points) if "window_count" in p["metrics"]), None)
    under = "before each update" + (f"; window of {num:,.0f}" if num else "")
    return figure({"mae": "MAE"}.get(name, name.capitalize()), under, chart)


def _bounds(
    lines: Sequence[Line], guesses: Sequence[Line], end: int, *, is_high_better: bool
) -> tuple[float, float] | None:
    """Ends of the axis that show all but the first steps of learning, and the best guess, but no poor one."""

    def heights(line: Line, first: float) -> list[float]:
        return [y for x, y in line.points if x is not None and x >= first and is_number(y)]

    sign = 1 if is_high_better else -1
    all_guesses = [found for found in (heights(guess, 0) for guess in guesses) if found]
    best = max(all_guesses, key=lambda found: sign * sum(found) / len(found), default=[])
    late = [y for line in lines for y in heights(line, _FIRST_STEPS * end)] + best
    everything = [y for line in lines for y in heights(line, 0)] + best
    if len(late) < 4 or min(late) == max(late):
        return None
    low, high = (min(late), max(everything)) if is_high_better else (min(everything), max(late))
    margin = 0.06 * (high - low)
    return low - margin, min(high + margin, 1.0) if is_high_better and high < 1 else high + margin


def _is_within(line: Line, bounds: tuple[float, float]) -> bool:
    return any(y is not None and bounds[0] <= y <= bounds[1] for _, y in line.points)


def _told(line: Line, name: str) -> Line:
    texts = []
    for x, y in line.points:
        value = (f"{y:.4g}" if name == "loss" else score_text(name, y)) if is_number(y) else "–"
        texts.append(f"{line.label}: {value} after {x or 0:,.0f} records")
    return dataclasses.replace(line, hovers=texts)


def rate_lines(points: Sequence[Facts], events: Sequence[Facts], end: int) -> list[Line]:
    """The learning rate as steps, a line for each kind of optimizer, with a gap where another kind leads.

    Where several race, the events tell who leads from where on; else the points do.
    """
    changes: list[tuple[int, float, str]] = []
    races = any(event.get("what") == "leads" for event in events)
    before = None
    for point in points:  # within a chunk a line has the rate of the chunk's end; after an epoch it is exact
        place = point.get("phase"), point.get("epoch", 0)
        is_exact = not races or (before is not None and place != before and place[1] > 0)
        before = place
        if is_exact and is_number(point.get("learning_rate")):
            changes.append((point["position"], point["learning_rate"], str(point.get("optimizer") or "rate")))
    name = "" if races or not changes else changes[0][2]
    for event in events:
        if not is_number(event.get("learning_rate")) or "position" not in event:
            continue
        name = str(event["detail"]) if event.get("what") == "leads" else name
        if name:
            changes.append((event["position"], event["learning_rate"], name))
    # Of what happens at one position, the last holds: who was stopped is told before who leads.
    last = {change[0]: change for change in sorted(changes, key=lambda change: change[0])}
    return _steps(list(last.values()), end)


def _steps(changes: Sequence[tuple[int, float, str]], end: int) -> list[Line]:
    kinds = list(dict.fromkeys(_kind(name) for _, _, name in changes))
    points: dict[str, list[Point]] = {kind: [] for kind in kinds}
    texts: dict[str, list[str]] = {kind: [] for kind in kinds}
    before = ""
    for place, (position, rate, name) in enumerate(changes):
        kind = _kind(name)
        until = changes[place + 1][0] if place + 1 < len(changes) else end
        if kind != before and points[kind]:
            points[kind].append((position, None))
            texts[kind].append("")
        points[kind] += [(position, rate), (max(position, until), rate)]
        texts[kind] += [f"{name}, η {rate:.3g} from record {position:,} on"] * 2
        before = kind
    return [
        Line(kind, points[kind], place % NUM_COLOURS, hovers=texts[kind], has_marks=False)
        for place, kind in enumerate(kinds)
    ]


def _kind(name: str) -> str:
    """An optimizer without its rate: ``factored 0.003`` is ``factored``."""
    kind, _, rate = name.rpartition(" ")
    try:
        float(rate)
    except ValueError:
        return name
    return kind or name


def _rates(facts: Facts, moments: Sequence[Moment]) -> str:
    lines = rate_lines(facts["points"], facts["events"], facts["position"])
    under = "log scale; " + ("who leads is named" if len(lines) > 1 else "of the optimizer that answers")
    chart = line_chart(lines, _axis(facts), Axis("", log=True), title="learning rate by records", moments=moments)
    return figure("Learning rate η", under, chart)


def _sizes(facts: Facts, moments: Sequence[Moment]) -> str:
    """Records of an update, beside how many would be as much signal as noise."""
    points = facts["points"]
    sizes = [(p["position"], p.get("update_size")) for p in points]
    noise = [(p["position"], p.get("noise_scale")) for p in points]
    if {size for _, size in sizes} <= {1, None} and not any(is_number(value) for _, value in noise):
        return ""  # one record an update, and nothing that could be measured
    changes = [(place, float(size), "update size") for place, size in sizes if is_number(size)]
    changes = [(0, changes[0][1], "update size"), *changes] if changes else []
    lines = _steps(changes, facts["position"])
    lines.append(Line("noise scale", noise, 2, 1))
    chart = line_chart(lines, _axis(facts), Axis("", log=True), title="update size by records", moments=moments)
    return figure("Update size", "records an update averages, and the noise scale; log scale", chart)
