"""The page of a run: one HTML file that needs nothing but a browser.

It knows the history of a run as plain JSON values and lays it out; how a chart comes about is in ``run_figures``. Every
text of the run is escaped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from millstream.storage import replace, storage_errors
from millstream.studies.charts import compact
from millstream.studies.page import escape, page
from millstream.studies.run_figures import figures, look_of
from millstream.studies.statistics import is_number, score_text, seconds_text

__all__ = ["headline", "render", "write"]

Facts: TypeAlias = Mapping[str, Any]

_MOST_ROWS = 400  # of a table of events


def render(facts: Facts) -> str:
    """The whole page as HTML; it asks no other file and no network for anything."""
    parts = [_head(facts), _strip(facts), figures(facts), _events(facts), _epochs(facts)]
    body = "".join([*parts, _phases(facts), _refused(facts), _settings(facts)])
    return page(f"{facts['run']}: what it has been through", body)


def write(facts: Facts, path: str | Path) -> None:
    """Writes the page so that ``path`` holds either the old page or the whole new one; StorageError when it cannot."""
    path = Path(path)
    with storage_errors(path, do="name another place for the report: -o FILE"):
        replace(path, render(facts))


def headline(facts: Facts) -> str:
    """How the run stands, in a sentence."""
    metric, points, epochs = facts["metric"], facts["points"], facts["epochs"]
    if not points:
        return "Nothing has been learned yet"
    last = points[-1]
    tests = [epoch["test"][metric] for epoch in epochs if epoch["test"] and is_number(epoch["test"].get(metric))]
    if last.get("kind") == "fit" and tests:
        num = sum(epoch["phase"] == last.get("phase") for epoch in epochs)
        return f"{_name(metric)} {score_text(metric, tests[-1])} on validation after {_count(num, 'epoch')}"
    value = last["metrics"].get(metric)
    text = f"{_name(metric)} {_score(metric, value)} before each update, over {_count(last['records'], 'record')}"
    baselines = [(name, last["metrics"].get(name)) for name in facts["baselines"]]
    beside = [f"{_baseline(name, metric)} {_score(metric, other)}" for name, other in baselines if is_number(other)]
    return text + (f"; guessing: {', '.join(beside)}" if beside else "")


def _head(facts: Facts) -> str:
    phase = facts["phases"][-1] if facts["phases"] else {}
    settings = facts["settings"] or {}
    state = "finished" if facts["finished"] else "not finished: at work, stopped or killed"
    kinds = " → ".join(str(phase.get("kind")) for phase in facts["phases"])
    names = [f"run {facts['run']}", kinds, settings.get("model"), phase.get("source"), state]
    eyebrow = " · ".join(escape(name) for name in names if name)
    written = f"Last written {facts['written']}." if facts["written"] else ""
    problems = "".join(f"<p>{escape(problem[:1].upper() + problem[1:])}.</p>" for problem in facts["problems"])
    return (
        f'<header><p class="eyebrow">{eyebrow}</p><h1>{escape(headline(facts))}</h1>'
        f'<div class="lead">{problems}<p class="small">{escape(written)}</p></div></header>'
    )


def _strip(facts: Facts) -> str:
    """The key numbers as they are now."""
    metric, last = facts["metric"], (facts["points"] or [{}])[-1]
    phase = facts["phases"][-1] if facts["phases"] else {}
    measures = last.get("metrics", {})
    window = f"window_{metric}"
    cells = []
    if is_number(measures.get(metric)):
        cells.append((f"{_name(metric)}, since the start", _score(metric, measures[metric]), "before each update"))
    if is_number(measures.get(window)):
        num = measures.get("window_count", 0)
        cells.append((f"{_name(metric)}, last window", _score(metric, measures[window]), f"{num:,.0f} records"))
    if is_number(phase.get("learning_rate")):
        cells.append(("learning rate", f"{phase['learning_rate']:.3g}", str(phase.get("optimizer") or "")))
    if is_number(phase.get("update_size")):
        noise = phase.get("noise_scale")
        text = f"noise scale {compact(noise)}" if is_number(noise) else "records an update"
        cells.append(("update size", f"{phase['update_size']:,}", text))
    alarms = sum(event.get("what") == "drift" for event in facts["events"])
    cells.append(("drift alarms", f"{alarms:,}", f"{len(facts['events']):,} decisions in all"))
    if facts["refused"]["num"]:
        cells.append(("refused or skipped", f"{facts['refused']['num']:,}", "records"))
    if phase.get("seconds"):
        rate = f"{compact(phase['records'] / phase['seconds'])} records/s"
        cells.append(("time learning", seconds_text(phase["seconds"]), rate))
    items = (
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(small)}</small></dd></div>"
        for name, value, small in cells
    )
    return f'<dl class="strip">{"".join(items)}</dl>'


def _events(facts: Facts) -> str:
    """Every decision, with those of one position in one row."""
    rows = list(_grouped(facts["events"]))
    if not rows:
        return "<section><h2>Decisions</h2><p>None were made: no race, no alarm, no change of the batch.</p></section>"
    left_out = max(0, len(rows) - _MOST_ROWS)
    shown = [*rows[: _MOST_ROWS // 4], *rows[_MOST_ROWS // 4 + left_out :]] if left_out else rows
    body = "".join(
        f"<tr><td>{position:,}</td><td class=text><span class=what>{look_of(what).key()}{escape(what)}</span></td>"
        f'<td class="text">{escape("; ".join(details))}</td><td>{_rate(rate)}</td></tr>'
        for position, what, details, rate in shown
    )
    note = f"; {left_out:,} from the middle are not shown, --json has them" if left_out else ""
    heads = '<th>Position</th><th class="text">What</th><th class="text">Why, or who</th><th>Rate η after it</th>'
    return (
        f"<section><h2>Decisions</h2><p class=small>{len(facts['events']):,} in all{note}.</p>"
        f'<div class="scroll tall-list near"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'
        "</section>"
    )


def _grouped(events: Sequence[Facts]) -> Iterator[tuple[int, str, list[str], Any]]:
    row: tuple[int, str, list[str], Any] | None = None
    for event in events:
        what, detail = str(event.get("what", "")), str(event.get("detail", ""))
        place, rate = event.get("position", 0), event.get("learning_rate")
        if row is not None and row[:2] == (place, what):
            row = (place, what, [*row[2], detail], rate)
            continue
        if row is not None:
            yield row
        row = (place, what, [detail], rate)
    if row is not None:
        yield row


def _epochs(facts: Facts) -> str:
    """The epochs of a ``fit``, with what validation said."""
    epochs = [epoch for epoch in facts["epochs"] if epoch["kind"] == "fit"]
    if not epochs:
        return ""
    metric = facts["metric"]
    names = [name for name in dict.fromkeys((metric, "loss")) if any((e["test"] or {}).get(name) for e in epochs)]
    heads = "".join(f"<th>Validation {_name(name, lower=True)}</th>" for name in names)
    rows = []
    for epoch in epochs:
        scores = "".join(f"<td>{_score(name, (epoch['test'] or {}).get(name))}</td>" for name in names)
        rate = _rate(epoch["learning_rate"])
        rows.append(
            f"<tr><td>{epoch['epoch']:,}</td><td>{epoch['position']:,}</td>{scores}"
            f"<td>{rate}</td><td>{epoch['update_size']:,}</td></tr>"
        )
    return (
        '<section><h2>Epochs</h2><div class="scroll tall-list near"><table><thead><tr><th>Epoch</th><th>Position</th>'
        f"{heads}<th>Rate η</th><th>Update size</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _phases(facts: Facts) -> str:
    columns = (
        *(("first", "From", ","), ("records", "Records", ","), ("updates", "Updates", ","), ("epochs", "Epochs", ",")),
        *(("update_size", "Update size", ","), ("learning_rate", "Rate η", ".3g"), ("skipped", "Skipped", ",")),
    )
    heads = "".join(f"<th>{head}</th>" for _, head, _ in columns)
    rows = []
    for phase in facts["phases"]:
        values = (
            f"<td>{format(phase[name], form) if is_number(phase.get(name)) else '–'}</td>" for name, _, form in columns
        )
        state = {True: "finished", False: "not finished"}.get(phase.get("finished"), "")
        texts = "".join(f'<td class="text">{escape(phase.get(n) or "")}</td>' for n in ("optimizer", "engine"))
        rows.append(f"<tr><td>{escape(phase['kind'])} <small>{state}</small></td>{''.join(values)}{texts}</tr>")
    texts = '<th class="text">Optimizer</th><th class="text">Engine</th>'
    return (
        f'<section><h2>Phases</h2><div class="scroll near"><table><thead><tr><th>Phase</th>{heads}{texts}'
        f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _refused(facts: Facts) -> str:
    reasons = facts["refused"]["reasons"]
    if not reasons:
        return ""
    rows = (
        f'<tr><td class="text">{escape(entry["reason"])}</td><td>{entry["num"]:,}</td>'
        f'<td class="text">{escape(", ".join(entry["examples"]))}</td></tr>'
        for entry in reasons
    )
    return (
        "<section><h2>Records that were refused or skipped</h2>"
        f"<p class=small>{facts['refused']['num']:,} in all; their text is in dead_letters.jsonl.</p>"
        '<div class="scroll tall-list near"><table><thead><tr><th>Reason</th><th>Records</th>'
        f'<th class="text">The first</th></tr></thead><tbody>{"".join(rows)}</tbody></table></div></section>'
    )


def _settings(facts: Facts) -> str:
    settings, phase = facts["settings"], facts["phases"][-1] if facts["phases"] else {}
    told: dict[str, Any] = {}
    if settings is not None:
        schema = settings["schema"]
        told |= {"target": f"{schema['target']} ({schema['kind']})"}
        told |= {name: value for name, value in settings.items() if name != "schema" and not _is_off(value)}
        named = ", ".join(f"{name} ({kind})" for name, kind in schema["columns"][:40])
        rest = len(schema["columns"]) - 40
        told["columns"] = named + (f" and {rest:,} more" if rest > 0 else "")
    if phase.get("plan"):
        told |= {name.replace("_", " "): value for name, value in phase["plan"].items() if not _is_off(value)}
    delay = phase.get("label_delay")
    if delay:
        told["label delay"] = ", ".join(f"{value:g} {name}" for name, value in delay.items() if is_number(value))
    told["versions"] = ", ".join(f"{name} {value}" for name, value in facts["versions"].items())
    if facts["committed"] is not None:
        told["last commit"] = f"after record {facts['committed']:,}"
    items = (f"<dt>{escape(k.replace('_', ' '))}</dt><dd>{escape(_plain(v))}</dd>" for k, v in told.items() if v != "")
    note = (
        "" if settings is not None else "<p>The trainer was made in Python, so that its settings are in its code.</p>"
    )
    return f'<section><h2>Settings</h2>{note}<dl class="facts">{"".join(items)}</dl></section>'


def _is_off(value: Any) -> bool:
    return value in (None, "", []) or (isinstance(value, float) and value == 0)


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _score(metric: str, value: Any) -> str:
    """A score with its unit; a loss has none."""
    if metric == "loss":
        return f"{value:.4g}" if is_number(value) else "–"
    return score_text(metric, value if is_number(value) else None)


def _name(metric: str, *, lower: bool = False) -> str:
    return {"mae": "MAE"}.get(metric, metric if lower else metric.capitalize())


def _baseline(name: str, metric: str) -> str:
    return name.removesuffix(f"_{metric}").replace("_", " ")


def _rate(value: Any) -> str:
    return f"{value:.3g}" if is_number(value) else "–"


def _count(num: int, what: str) -> str:
    return f"{num:,} {what}{'s' * (num != 1)}"
