"""The report of a comparison: one HTML file that needs nothing but a browser.

It knows the result of a comparison as plain JSON values and lays it out; what may be claimed is in ``statistics``, how
a chart comes about is in ``figures``, how it looks is in ``page``. Every text of the result is escaped.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from millstream.storage import replace, storage_errors
from millstream.studies import statistics
from millstream.studies.charts import NUM_COLOURS, Axis, Line, compact, interval_mark, line_chart
from millstream.studies.figures import (
    Look,
    curves,
    figure,
    line_key,
    looks_of,
    metric_of,
    short_name,
    tick_text,
    title_of,
    tuning,
)
from millstream.studies.page import escape, page
from millstream.studies.run_figures import courses
from millstream.studies.statistics import Contest, is_number, score_text, seconds_text

__all__ = ["render", "write"]

Result: TypeAlias = Mapping[str, Any]


def render(result: Result) -> str:
    """The whole page as HTML; it asks no other file and no network for anything."""
    models = [result, *_others(result)]
    sections = [_model(model, is_titled=len(models) > 1) for model in models]
    body = [_head(result), *sections, _reproduce(result)]
    return page(f"{_name(result)}: batch and online compared", "".join(body))


def write(result: Result, path: str | Path) -> None:
    """Writes the page so that ``path`` holds either the old page or the whole new one; StorageError when it cannot."""
    path = Path(path)
    with storage_errors(path, do="name another place for the report"):
        replace(path, render(result))


def _name(result: Result) -> str:
    return f"{result.get('model', 'model')} on {result.get('data', 'data')}"


def _others(result: Result) -> Sequence[Result]:
    return result.get("others") or ()


def _score(result: Result, value: float | None) -> str:
    return escape(score_text(metric_of(result), value))


def _around(result: Result, around: Sequence[float] | None) -> str:
    """An interval as ``96.6 – 97.0``, the unit being that of the value beside it."""
    if not around:
        return ""
    if metric_of(result) == "accuracy":  # Student's interval does not know that a share ends at 0 and 1
        around = [min(max(end, 0.0), 1.0) for end in around]
    low, high = (score_text(metric_of(result), end).removesuffix(" %") for end in around)
    return f"{low} – {high}"


def _verdict(result: Result) -> str:
    return str(result.get("verdict") or statistics.verdict(result))


def _head(result: Result) -> str:
    info = result.get("data_info") or {}
    seeds = result.get("seeds") or 1
    budget = result.get("budget") or f"{seeds} seed{'s' * (seeds > 1)}"
    facts = [
        f"{result.get('model')} on {result.get('data')}",
        "in time order" if info.get("ordered") else "",
        budget,
        f"{info['test_records']:,} test records" if info.get("test_records") else "",
    ]
    note = f'<p class="quiet">{escape(info["note"])}</p>' if info.get("note") else ""
    eyebrow = " · ".join(escape(fact) for fact in facts if fact)
    others = [f"<p><b>{escape(other.get('model'))}:</b> {escape(_verdict(other))}</p>" for other in _others(result)]
    heading = f'<p class="eyebrow">{eyebrow}</p><h1>{escape(_verdict(result))}</h1>'
    return f'<header>{heading}<div class="lead">{"".join(others)}</div>{note}</header>{_strip(result)}'


def _strip(result: Result) -> str:
    """The key numbers: who won, by how much, and what it cost."""
    found = statistics.contest(result)
    if found is None:
        return ""
    arms = result["strategies"]
    best = arms[found.winner]
    cells = [
        (f"best: {short_name(found.winner)}", _score(result, best[found.key]), _interval_of(result, best, found.key))
    ]
    if found.rival is not None and found.difference is not None:
        rival = arms[found.rival]
        around = _interval_of(result, rival, found.key)
        cells.append((f"next: {short_name(found.rival)}", _score(result, rival[found.key]), around))
        cells.append(("difference", *_difference_texts(result, found)))
    baselines = [(name, value) for name, value in (result.get("baselines") or {}).items() if is_number(value)]
    cells += [(f"baseline: {short_name(name)}", _score(result, value), "learns nothing") for name, value in baselines]
    if is_number(best.get("records_per_second")):
        rate = f"{compact(best['records_per_second'])}/s"
        cells.append(("speed", rate, f"{best.get('engine') or result.get('engine')} engine"))
    target = result.get(f"target_{metric_of(result)}")
    if is_number(best.get("time_to_target")) and is_number(target):
        text = f"until {score_text(metric_of(result), target)}"
        cells.append(("time to target", seconds_text(best["time_to_target"]), text))
    items = (f"<div><dt>{escape(k)}</dt><dd>{v}<small>{escape(small)}</small></dd></div>" for k, v, small in cells)
    return f'<dl class="strip">{"".join(items)}</dl>'


def _interval_of(result: Result, arm: Mapping[str, Any], key: str) -> str:
    return _around(result, arm.get(f"{key}_interval"))


def _difference_texts(result: Result, found: Contest) -> tuple[str, str]:
    """The difference with its unit, and whether it is more than noise."""
    difference = found.difference
    if difference is None:
        return "", ""

    def signed(value: float) -> str:
        text = f"{value * 100:+.2f}" if metric_of(result) == "accuracy" else f"{value:+#.3g}"
        return text.replace("-", "−")

    text = signed(difference.mean) + (" points" if metric_of(result) == "accuracy" else "")
    if difference.interval is None:
        return text, "noise not known"
    low, high = map(signed, difference.interval)
    return text, f"{low} to {high}; {'more than' if difference.is_more_than_noise else 'within the'} noise"


def _model(result: Result, *, is_titled: bool) -> str:
    """All of one model: table, curves, delays, tuning, notes."""
    looks = looks_of(result["strategies"])
    title = escape(result.get("model")) if is_titled else "Strategies"
    parts = [_table(result, looks), curves(result, looks), _delays(result), tuning(result, looks), _courses(result)]
    parts.append(_notes(result))
    return f"<section><h2>{title}</h2>{''.join(parts)}</section>"


def _columns(result: Result) -> list[tuple[str, str, Callable[[Any], str]]]:
    """Heading, key in a strategy, and how its value reads."""
    metric = metric_of(result)
    scores = [f"test_{metric}", f"prequential_{metric}"]
    if statistics.headline_key(result) != scores[0]:
        scores.reverse()
    score, target = functools.partial(_score, result), result.get(f"target_{metric}")
    return [
        *((title_of(key), key, score) for key in scores),
        ("Test loss", "test_loss", _LOSS),
        ("Rate η", "learning_rate", _number(".3g")),
        ("Records", "records", _number(",")),
        ("Updates", "updates", _number(",")),
        ("Time", "seconds", seconds_text),
        ("Records/s", "records_per_second", _number(",.0f")),
        (f"To {_score(result, target)}" if is_number(target) else "To target", "time_to_target", seconds_text),
    ]


def _number(pattern: str) -> Callable[[Any], str]:
    """How a number reads; what is not one is shown as it is."""
    return lambda value: format(value, pattern) if is_number(value) else escape(value)


_LOSS = _number(".3f")  # a unit of its own: its interval would read as one of the score


def _table(result: Result, looks: Mapping[str, Look]) -> str:
    arms = result["strategies"]
    columns = [column for column in _columns(result) if any(arm.get(column[1]) is not None for arm in arms.values())]
    found = statistics.contest(result)
    key = found.key if found else statistics.headline_key(result)
    heads = "".join(f"<th>{head}</th>" + "<th></th>" * (column == key) for head, column, _ in columns)
    rows = []
    for name, arm in arms.items():
        is_best = found is not None and name == found.winner
        title = line_key(looks[name]) + escape(arm.get("title") or short_name(name))
        title += '<span class="badge">best</span>' * is_best + _diverged(arm)
        named, cells = f'<td class="named">{title}</td>', []
        for _, column, text in columns:
            value = arm.get(column)
            shown = "–" if value is None or value != value else text(value)
            if column == "learning_rate" and arm.get("sets_rate"):
                shown += " <small>at last</small>"
            around = _interval_of(result, arm, column) if text is not _LOSS else ""
            mark = ' class="score"' if column == key else ""
            cells.append(f"<td{mark}>{shown}{f' <small>{around}</small>' if around else ''}</td>")
            if column == key:
                cells.append(f"<td>{_whisker(arms, arm, key, looks[name])}</td>")
        rows.append(f"<tr{' class=best' * is_best}>{named}{''.join(cells)}</tr>")
    seeds = result.get("seeds") or 1
    dots = f"; faint dots: each of the {seeds} seeds" if seeds > 1 else ""
    return (
        f'<div class="scroll"><table>'
        f"<thead><tr><th>Strategy</th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        f'<p class="small">Small figures: 95 % intervals{dots}.</p>{_runs(result)}'
    )


def _diverged(arm: Mapping[str, Any]) -> str:
    """How many runs have no part in the figures because they diverged."""
    runs = arm.get("runs") or ()
    lost = sum(bool(run.get("diverged")) for run in runs)
    return f' <small class="quiet">{lost} of {len(runs)} runs diverged</small>' if lost else ""


def _whisker(arms: Mapping[str, Any], arm: Mapping[str, Any], key: str, look: Look) -> str:
    """The row's part of a dot plot on the scale of all rows."""
    values: list[float] = []
    for other in arms.values():
        values += [other.get(key), *statistics.run_values(other, key).values(), *(other.get(f"{key}_interval") or ())]
    values = [value for value in values if is_number(value)]
    if not is_number(arm.get(key)) or min(values) == max(values):
        return ""
    around = arm.get(f"{key}_interval")
    dots = list(statistics.run_values(arm, key).values())
    pair = (around[0], around[1]) if around else None
    return interval_mark(arm[key], pair, dots, low=min(values), high=max(values), colour=look[0])


def _runs(result: Result) -> str:
    """Each seed's own score, folded away."""
    key, arms = statistics.headline_key(result), result["strategies"]
    seeds = sorted({run["seed"] for arm in arms.values() for run in arm.get("runs") or ()})
    if len(seeds) < 2:
        return ""
    heads = "".join(f"<th>seed {seed}</th>" for seed in seeds)
    rows = []
    for name, arm in arms.items():
        values = statistics.run_values(arm, key)
        cells = "".join(f"<td>{_score(result, values.get(seed))}</td>" for seed in seeds)
        rows.append(f"<tr><td>{escape(arm.get('title') or short_name(name))}</td>{cells}</tr>")
    summary = f"<summary>{title_of(key)} of each seed</summary>"
    return (
        f'<details>{summary}<div class="scroll"><table><thead>'
        f"<tr><th>Strategy</th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></details>"
    )


def _delays(result: Result) -> str:
    """The score at each label delay: a chart and a table."""
    rows: Sequence[Result] = [{**result, **row} for row in result.get("delays") or ()]
    if not rows or [str(row["delay"]) for row in rows] == ["0"]:  # the table above says it all
        return ""
    key = statistics.headline_key(rows[0])
    arms = {name: arm for row in reversed(rows) for name, arm in row["strategies"].items()}
    looks = looks_of(arms)
    lines = []
    for name, look in looks.items():
        cells = [row["strategies"].get(name) or {} for row in rows]
        bands = [tuple(cell.get(f"{key}_interval") or ()) or None for cell in cells]
        lines.append(Line(short_name(name), [(i, cell.get(key)) for i, cell in enumerate(cells)], *look, band=bands))
    rows_baselines = [row.get("baselines") or {} for row in rows]
    for name in dict.fromkeys(name for baselines in rows_baselines for name in baselines):
        places = [(i, baselines.get(name)) for i, baselines in enumerate(rows_baselines)]
        lines.append(Line(short_name(name), places, NUM_COLOURS - 1, 2))
    x = Axis("label delay", names=[str(row["delay"]) for row in rows])
    chart = line_chart(lines, x, Axis("", text=tick_text(result)), title=f"{key} by label delay")
    drawing = figure(title_of(key), "by label delay", chart)
    heads = "".join(f"<th>{line_key(looks[name])}{escape(short_name(name))}</th>" for name in arms)
    body = "".join(_delay_row(row, key, list(arms)) for row in rows)
    heads = f'<tr><th>Delay</th>{heads}<th class="text">Verdict</th></tr>'
    table = f"<table><thead>{heads}</thead><tbody>{body}</tbody></table>"
    return f'<h3>When labels come late</h3><div class="beside">{drawing}<div class="scroll">{table}</div></div>'


def _delay_row(row: Result, key: str, names: Sequence[str]) -> str:
    found = statistics.contest(row)
    cells = []
    for name in names:
        arm = row["strategies"].get(name) or {}
        mark = ' class="best"' if found is not None and name == found.winner else ""
        around = _interval_of(row, arm, key)
        cells.append(f"<td{mark}>{_score(row, arm.get(key))}{f' <br><small>{around}</small>' if around else ''}</td>")
    return f'<tr><th>{escape(row["delay"])}</th>{"".join(cells)}<td class="text">{escape(_verdict(row))}</td></tr>'


def _courses(result: Result) -> str:
    """Rates and batch sizes over the records of the arms that set them, with what was decided."""
    found = []
    for arm in result["strategies"].values():
        points = [{**point, "position": point["records"], "metrics": {}} for point in arm.get("course") or ()]
        if points:
            facts = {"points": points, "events": arm.get("events") or (), "phases": (), "position": arm["records"]}
            found.append(courses(facts, str(arm.get("title") or arm.get("name"))))
    heading = "<h3>Rates and sizes that nobody gave, in the run with the median score</h3>"
    return f"{heading}{''.join(found)}" if found else ""


def _notes(result: Result) -> str:
    notes = "".join(f"<li>{escape(note)}</li>" for note in result.get("notes") or ())
    return f'<h3>Notes</h3><ul class="notes">{notes}</ul>' if notes else ""


def _reproduce(result: Result) -> str:
    command = f"<pre>{escape(result['command'])}</pre>" if result.get("command") else ""
    versions = ", ".join(f"{name} {version}" for name, version in (result.get("versions") or {}).items())
    names = ("data", "loss", "optimizer", "engine", "budget", "seed", "seeds", "threads", "machine", "created")
    facts = [(name, result.get(name)) for name in names] + [("versions", versions or None)]
    items = (f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in facts if value is not None)
    return f'<section><h2>How to reproduce</h2>{command}<dl class="facts">{"".join(items)}</dl></section>'
