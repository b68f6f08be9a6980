"""What the rows of ``streams.py`` come to: means with intervals, ours against the best of others, plots.

A row is one run: a stream, a label delay, a method, a seed. Comparisons are paired: of two methods only those seeds
count that both have, and ours is compared with River on the records that River was given.
"""

from __future__ import annotations

import dataclasses
import html
import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from millstream.studies import charts
from millstream.studies.page import DARK, LIGHT
from millstream.studies.statistics import Difference, interval, paired_difference
from stream_river import HELD_OUT

Row: TypeAlias = dict[str, Any]
Case: TypeAlias = tuple[str, str]  # stream, label delay

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
OURS, RIVER = "ours", "river-"
TOLERANCE, WORTH_HAVING = 0.1, 0.3  # points below the best fixed rate that are allowed; above it that are wanted
SHOWN_BELOW = 5.0  # points below ours, in a plot
CHART_STYLE = """text { font: 11.5px system-ui, sans-serif; fill: var(--quiet) }
.label { fill: var(--ink); paint-order: stroke; stroke: var(--ground); stroke-width: 3px; stroke-linejoin: round }
.title { font-size: 13px; font-weight: 600; fill: var(--ink) } .label.quiet { fill: var(--quiet) }
.grid { stroke: var(--grid) } .axis { stroke: var(--rule) } .rule { stroke: var(--quiet); stroke-dasharray: 2 3 }
.line { fill: none; stroke: var(--c); stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round }
.mark, .end { fill: var(--c); stroke: var(--ground); stroke-width: 1 } .band { fill: var(--c); opacity: .15 }
.hover { fill: transparent } .leader { fill: none; stroke: var(--c); stroke-width: .8; opacity: .6 }"""


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """Ours against the best of others at one stream and label delay; differences of accuracy are in points."""

    case: Case
    seeds: int
    ours: float
    sgd: str | None  # the best fixed rate in hindsight
    minus_sgd: Difference | None
    factored: str | None
    minus_factored: Difference | None
    river: str | None
    minus_river: float | None
    recovery: float | None  # records, of the mean drift
    recovery_of_sgd: float | None
    copies: float | None
    times_as_long: float | None  # as the best fixed rate
    drifts: bool  # whether drift points are known

    @property
    def is_behind(self) -> bool:
        return self.minus_sgd is not None and self.minus_sgd.mean < -TOLERANCE


# ---------------------------------------------------------------- rows to numbers


def grouped(rows: Iterable[Row]) -> dict[Case, dict[str, list[Row]]]:
    """By case and method; the rows of a method in order of seeds, and those on the most records only."""
    found: dict[Case, dict[str, list[Row]]] = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        found.setdefault((row["stream"], row["delay"]), {}).setdefault(row["method"], []).append(row)
    for methods in found.values():
        for name, runs in methods.items():
            most = max(run["records"] for run in runs)
            methods[name] = [run for run in runs if run["records"] == most]
    return found


def aggregated(rows: Iterable[Row]) -> list[Row]:
    """One row for each stream, label delay and method, over its seeds; recovery is the mean over drifts and seeds."""
    out = []
    for (stream, delay), methods in grouped(rows).items():
        for name, runs in methods.items():
            accuracies = [run["accuracy"] for run in runs]
            drifts = list(itertools.chain.from_iterable(run["drifts"] for run in runs))
            row = {"stream": stream, "label_delay": delay, "method": name, "records": runs[0]["records"]}
            row |= {"seeds": len(runs), "prequential_accuracy": statistics.mean(accuracies)}
            row |= {"interval": interval(accuracies), "kappa_temporal": _mean(run["kappa_temporal"] for run in runs)}
            row |= {"accuracy_after_drift": _mean(drift["after"] for drift in drifts), "recovery": recovery(runs)}
            row |= {"records_per_second": statistics.median(run["records_per_second"] for run in runs)}
            row |= {"copies": _mean(run["copies"] for run in runs), "drifts": [run["drifts"] for run in runs]}
            out.append(row)
    return out


def recovery(runs: Sequence[Row]) -> float | None:
    """Mean records until back within a point of before, over drifts and seeds; never back counts as all there were."""
    return _mean(
        drift["most"] if drift["recovery"] is None else drift["recovery"] for run in runs for drift in run["drifts"]
    )


def best(methods: dict[str, list[Row]], start: str, key: str = "accuracy") -> str | None:
    """The method whose name begins so with the highest mean; those with most seeds only."""
    known = {name: runs for name, runs in methods.items() if name.startswith(start)}
    most = max((len(runs) for runs in known.values()), default=0)
    full = [name for name, runs in known.items() if len(runs) == most]
    return max(full, key=lambda name: statistics.mean(run[key] for run in known[name]), default=None)


def minus(ours: Sequence[Row], others: Sequence[Row]) -> Difference:
    """Points of accuracy, over the seeds that both have."""
    a, b = ({run["seed"]: 100 * run["accuracy"] for run in runs} for runs in (ours, others))
    seeds = sorted(a.keys() & b.keys())
    return paired_difference([a[seed] for seed in seeds], [b[seed] for seed in seeds])


def verdicts(rows: Iterable[Row]) -> list[Verdict]:
    """One for each case that ours was measured on."""
    return [_verdict(case, methods) for case, methods in grouped(rows).items() if OURS in methods]


def _verdict(case: Case, methods: dict[str, list[Row]]) -> Verdict:
    ours = methods[OURS]
    sgd, factored = best(methods, "sgd "), best(methods, "factored ")
    # The trees of River are given the first records only, so that all are compared there, on the first seed.
    first = {n: [r for r in runs if r["seed"] == ours[0]["seed"]] for n, runs in methods.items()}
    river = best({n: runs for n, runs in first.items() if runs}, RIVER, "accuracy_of_first")
    return Verdict(
        case,
        len(ours),
        100 * statistics.mean(run["accuracy"] for run in ours),
        sgd,
        minus(ours, methods[sgd]) if sgd else None,
        factored,
        minus(ours, methods[factored]) if factored else None,
        river,
        100 * (ours[0]["accuracy_of_first"] - first[river][0]["accuracy_of_first"]) if river else None,
        recovery(ours),
        recovery(methods[sgd]) if sgd else None,
        _mean(run["copies"] for run in ours),
        _seconds(ours) / _seconds(methods[sgd]) if sgd else None,
        any(run["drifts"] for run in ours),
    )


def _seconds(runs: Sequence[Row]) -> float:
    return statistics.median(run["seconds"] for run in runs)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


# ---------------------------------------------------------------- numbers to text


def text(rows: Sequence[Row]) -> str:
    """All tables, as Markdown."""
    if not rows:
        return "Nothing was measured yet."
    parts = []
    held_out = [row for row in rows if row["stream"] in HELD_OUT]
    others = [row for row in rows if row["stream"] not in HELD_OUT]
    for title, some in (("Streams that nobody tuned on", held_out), ("Streams that the race was tuned on", others)):
        if some:
            found = verdicts(some)
            parts += [f"### {title}", summary(found), comparison(found), all_methods(some)]
    return "\n\n".join(parts)


def summary(found: Sequence[Verdict]) -> str:
    """The counts that matter, in sentences."""
    known = [one for one in found if one.minus_sgd is not None]
    behind = [one for one in known if one.is_behind]
    drifting = [one for one in known if one.drifts]
    ahead = [one for one in drifting if one.minus_sgd and one.minus_sgd.mean >= WORTH_HAVING]
    near = f"{len(known) - len(behind)} of {len(known)}"
    lines = [f"- Not more than {TOLERANCE} points below the best fixed rate of SGD: {near}."]
    if behind:
        lines.append("- **Below it by more**: " + "; ".join(_behind(one) for one in behind) + ".")
    lines.append(f"- Above it by {WORTH_HAVING} points or more, of those that drift: {len(ahead)} of {len(drifting)}.")
    river = [one for one in found if one.minus_river is not None]
    if river:
        won = sum(one.minus_river > 0 for one in river if one.minus_river is not None)
        lines.append(f"- Above the best of River's models, on the same records: {won} of {len(river)}.")
    ratios = [_ratio(one) for one in drifting if not one.case[0].endswith("-gradual") and one.recovery_of_sgd]
    if ratios:
        half = sum(ratio <= 0.5 for ratio in ratios if ratio is not None)
        lines.append(f"- Back after an abrupt drift in at most half the records: {half} of {len(ratios)}.")
    return "\n".join(lines)


def _behind(one: Verdict) -> str:
    assert one.minus_sgd is not None
    return f"{one.case[0]} at {one.case[1]}: {one.minus_sgd.mean:+.2f}"


def _ratio(one: Verdict) -> float | None:
    if one.recovery is None or not one.recovery_of_sgd:
        return None
    return one.recovery / one.recovery_of_sgd


def comparison(found: Sequence[Verdict]) -> str:
    """Ours beside the best of others, a line for each stream and label delay."""
    head = ["stream", "labels late by", "ours, %", "best SGD", "ours − SGD", "best factored", "ours − factored"]
    head += ["best of River", "ours − River", "back after drift", "copies", "time ÷ SGD"]
    body = []
    for one in found:
        mark = "**" if one.is_behind else ""
        line = [one.case[0], one.case[1], f"{one.ours:.2f}", _rate(one.sgd), f"{mark}{_points(one.minus_sgd)}{mark}"]
        line += [_rate(one.factored), _points(one.minus_factored)]
        line += [(one.river or "–").removeprefix(RIVER), "–" if one.minus_river is None else f"{one.minus_river:+.2f}"]
        line += [_records(one), _number(one.copies, ".1f"), _number(one.times_as_long, ".1f")]
        body.append(line)
    return _table(head, body)


def all_methods(rows: Sequence[Row]) -> str:
    """Accuracy of every method that is not one of many rates; of these the best."""
    head: list[str] = ["stream", "labels late by"]
    body = []
    names: list[str] = []
    for methods in grouped(rows).values():
        names += [name for name in methods if name not in names and not name.startswith(("sgd ", "factored "))]
    for case, methods in grouped(rows).items():
        shown = [methods.get(name) for name in names]
        body.append([*case, *("–" if runs is None else _accuracy(runs) for runs in shown)])
    rates = ["records/s, median"]
    for name in names:
        runs = [run["records_per_second"] for methods in grouped(rows).values() for run in methods.get(name, ())]
        rates.append(f"{statistics.median(runs):,.0f}")
    body.append([rates[0], "", *rates[1:]])
    return _table([*head, *names], body)


def _accuracy(runs: Sequence[Row]) -> str:
    return f"{100 * statistics.mean(run['accuracy'] for run in runs):.2f}"


def _rate(name: str | None) -> str:
    return "–" if name is None else name.partition(" ")[2]


def _points(difference: Difference | None) -> str:
    if difference is None or math.isnan(difference.mean):
        return "–"
    around = difference.interval
    return f"{difference.mean:+.2f}" + ("" if around is None else f" ({around[0]:+.2f} … {around[1]:+.2f})")


def _records(one: Verdict) -> str:
    if one.recovery is None or one.recovery_of_sgd is None:
        return "–"
    return f"{one.recovery:,.0f} / {one.recovery_of_sgd:,.0f}"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else f"{value:{form}}"


def _table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", "---", *["---:"] * (len(head) - 2)], *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# ---------------------------------------------------------------- plots


def write(document: Path, rows: Sequence[Row]) -> None:
    """Puts tables and plots between the two marks of a document, and the plots beside it."""
    before, begin, rest = document.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{document} lacks {BEGIN} or {END}")
    pictures = []
    for name, title, drawn in (
        ("rates", "Accuracy over the fixed rate; dotted: ours", rate_charts(rows)),
        ("drift", "Accuracy over the stream", drift_charts(rows)),
    ):
        if not drawn:
            continue
        for theme, colours in (("light", LIGHT), ("dark", DARK)):
            path = document.with_name(f"{document.stem}-{name}-{theme}.svg")
            path.write_text(sheet(drawn, colours), encoding="utf-8")
        stem = f"{document.stem}-{name}"
        pictures.append(
            f'<picture><source media="(prefers-color-scheme: dark)" srcset="{stem}-dark.svg">'
            f'<img src="{stem}-light.svg" alt="{html.escape(title)}"></picture>'
        )
    results = "\n\n".join([text(rows), *pictures])
    document.write_text(f"{before}{BEGIN}\n{results}\n{END}{after}", encoding="utf-8")


def sheet(drawn: Sequence[tuple[str, str]], colours: dict[str, str]) -> str:
    """Charts with titles, two in a line, as one SVG with colours of its own."""
    width, height = charts.WIDTH + 24, charts.HEIGHT + 34
    lines = math.ceil(len(drawn) / 2)
    variables = "".join(f"--{name}:{value};" for name, value in colours.items())
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * width} {lines * height}" width="{2 * width}">',
        f"<style>svg {{ {variables} }}\n{CHART_STYLE}</style>",
        f'<rect width="100%" height="100%" fill="{colours["ground"]}"/>',
    ]
    for number, (title, chart) in enumerate(drawn):
        x, y = number % 2 * width + 12, number // 2 * height
        parts.append(f'<text class="title" x="{x + 4}" y="{y + 20}">{html.escape(title)}</text>')
        place = f'<svg x="{x}" y="{y + 28}" width="{charts.WIDTH}" height="{charts.HEIGHT}" '
        parts.append(chart.replace("<svg ", place, 1))
    return "\n".join([*parts, "</svg>\n"])


def rate_charts(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """For each stream: accuracy at each fixed rate, a line for each label delay; ours as a straight dotted line."""
    streams: dict[str, list[tuple[str, dict[str, list[Row]]]]] = {}
    for (stream, delay), methods in grouped(rows).items():
        if OURS in methods:
            streams.setdefault(stream, []).append((delay, methods))
    drawn = []
    for stream, cases in streams.items():
        lines = []
        # What is far below is left out, or nothing would be seen of what is near.
        least = min(_percent(methods[OURS]) for _, methods in cases) - SHOWN_BELOW
        for number, (delay, methods) in enumerate(sorted(cases)):
            rates = sorted((float(_rate(name)), _percent(runs)) for name, runs in methods.items() if name[:4] == "sgd ")
            if len(rates) < 2:
                continue
            name = "at once" if delay == "0" else f"late {delay}"
            shown = [(rate, value if value >= least else None) for rate, value in rates]
            mine = _percent(methods[OURS])
            lines.append(charts.Line(name, shown, colour=number))
            lines.append(charts.Line("", [(rates[0][0], mine), (rates[-1][0], mine)], colour=number, dash=2))
        if lines:
            x, y = charts.Axis("learning rate of SGD", log=True), charts.Axis("accuracy, %")
            drawn.append((stream, charts.line_chart(lines, x, y, title=stream)))
    return drawn


def drift_charts(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Accuracy over the stream, labels at once, where drift points are known."""
    drawn = []
    for (stream, delay), methods in grouped(rows).items():
        if delay != "0" or OURS not in methods or not any(run["drifts"] for run in methods[OURS]):
            continue
        shown: list[tuple[str, str | None]] = [("ours", OURS), ("best SGD", best(methods, "sgd "))]
        shown += [("forest", "river-forest")]
        lines = [
            charts.Line(label, _curve(methods[name]), colour=number)
            for number, (label, name) in enumerate(shown)
            if name in methods
        ]
        chart = charts.line_chart(lines, charts.Axis("records"), charts.Axis("accuracy, %"), title=stream)
        drawn.append((stream, chart))
    return drawn


def _percent(runs: Sequence[Row]) -> float:
    return 100 * statistics.mean(run["accuracy"] for run in runs)


def _curve(runs: Sequence[Row]) -> list[tuple[float, float]]:
    """The mean over seeds, two of the curve's points at a time."""
    num = runs[0]["records"]
    values = [statistics.mean(column) for column in zip(*(run["curve"] for run in runs), strict=True)]
    pairs = [statistics.mean(values[place : place + 2]) for place in range(0, len(values) - 1, 2)]
    return [((place + 0.5) * num / len(pairs), 100 * value) for place, value in enumerate(pairs)]
