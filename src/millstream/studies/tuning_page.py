"""The pages of a range test and of a search: one HTML file each, which needs nothing but a browser.

They know plain results; what may be said of them is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from millstream.storage import replace, storage_errors
from millstream.studies.charts import Axis, Line, Rule, line_chart
from millstream.studies.page import escape, page
from millstream.studies.population import RUNGS
from millstream.studies.range_test import RateRange

__all__ = ["render_range", "render_search", "write_range", "write_search"]


def write_range(found: RateRange, result: Mapping[str, Any], path: Path) -> None:
    """Writes the page of a range test, whole or not at all."""
    _write(path, render_range(found, result))


def write_search(result: Mapping[str, Any], path: Path) -> None:
    """Writes the page of a search, whole or not at all."""
    _write(path, render_search(result))


def render_range(found: RateRange, result: Mapping[str, Any]) -> str:
    """The loss at each rate with twice its standard error, and the rate that is suggested."""
    ceiling, low = found.ceiling(), min(found.losses)
    bands: list[tuple[float, float] | None] = []
    points: list[tuple[float, float | None]] = []
    for rate, loss, error in zip(found.rates, found.losses, found.errors, strict=True):
        is_shown = loss <= ceiling
        points.append((rate, loss if is_shown else None))
        bands.append((loss - 2 * error, min(loss + 2 * error, ceiling)) if is_shown else None)
    line = Line("", points, band=bands)
    bounds = (low - 0.08 * (ceiling - low), ceiling) if ceiling > low else None
    rules = []
    if found.suggestion is not None:
        foot = bounds[0] if bounds else low
        rules.append(Rule("", (found.suggestion, foot), (found.suggestion, ceiling)))
    x, y = Axis("learning rate", log=True), Axis("loss", bounds=bounds)
    chart = line_chart([line], x, y, title="Loss by learning rate", rules=rules)
    says = "No suggestion" if found.suggestion is None else f"Suggested: η = {found.suggestion:.2g}"
    around = "" if found.interval is None else f" ({found.interval[0]:.2g} to {found.interval[1]:.2g})"
    cells = [
        ("optimizer", found.optimizer),
        ("records an update", f"{found.update_size:,}"),
        ("updates of a repeat", f"{found.num_updates:,}"),
        ("repeats", f"{found.num_repeats:,}"),
        ("rate of least loss", "" if found.least is None else f"{found.least:.2g}"),
        ("diverges from", "not within this range" if found.diverged is None else f"{found.diverged:.2g}"),
    ]
    body = _head(f"Range test · {result['data']}", f"{says}{around}", found.reason) + _strip(cells)
    note = "mean of the repeats, smoothed, with twice its standard error; the rule is the suggestion"
    body += f"<figure><figcaption>Loss by learning rate <span>{note}</span></figcaption>{chart}</figure>"
    return page(f"Range test of {result['data']}", body + _command(result))


def render_search(result: Mapping[str, Any]) -> str:
    """The trials of a search: their scores on the way, and by rate."""
    trials, name = result["trials"], result["objective"]
    optimizers = sorted({trial["settings"]["optimizer"] for trial in trials})
    ceiling = _ceiling(trials)
    ways = []
    for trial in reversed(trials):  # the best one is drawn over the others
        points = [(share, min(score, ceiling)) for share, score in zip(RUNGS, trial["scores"], strict=False)]
        colour = optimizers.index(trial["settings"]["optimizer"])
        label = "best" if trial is trials[0] else ""
        ways.append(Line(label, points, colour, hovers=[_told(trial)] * len(points)))
    y = Axis(name)
    share = Axis("share of the work", lambda value: f"{value:.0%}")
    first = line_chart(ways, share, y, title=f"{name} of each trial")
    lines = []
    for colour, optimizer in enumerate(optimizers):
        mine = [t for t in trials if t["settings"]["optimizer"] == optimizer and t["settings"]["learning_rate"]]
        pairs = [(t["settings"]["learning_rate"], min(t["scores"][0], ceiling)) for t in mine]
        lines.append(Line(optimizer if mine else "", pairs, colour, is_joined=False, hovers=[_told(t) for t in mine]))
    second = line_chart(lines, Axis("learning rate", log=True), y, title=f"{name} by learning rate")
    figures = "".join(
        f"<figure><figcaption>{escape(title)} <span>{escape(note)}</span></figcaption>{chart}</figure>"
        for title, note, chart in (
            ("Each trial", "as far as it went, by colour of its optimizer", first),
            ("By learning rate", f"after {RUNGS[0] * 100:g} % of the work, where all trials have been", second),
        )
    )
    settings = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in result["settings"].items() if v is not None)
    head = _head(
        f"Search · millstream {result['for']} {result['data']}",
        f"Least {name}: {result['score']:.4g}",
        f"{settings}. Of {len(trials)} trials {sum(t['finished'] for t in trials)} went to the end.",
    )
    return page(
        f"Search on {result['data']}",
        f'{head}<div class="charts">{figures}</div>{_table(trials, name)}{_command(result)}',
    )


def _ceiling(trials: Sequence[Mapping[str, Any]]) -> float:
    """A score over which a trial is drawn no higher: one that diverged would flatten all the others."""
    scores: list[float] = sorted(trial["scores"][0] for trial in trials)
    middle = scores[len(scores) // 2]
    most: float = 1.01 * max(trials[0]["scores"])
    return max(middle + 2 * (middle - scores[0]), most)


def _told(trial: Mapping[str, Any]) -> str:
    facts = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in trial["settings"].items() if v is not None)
    return f"trial {trial['number']}: {trial['score']:.4g}, {facts}"


def _table(trials: Sequence[Mapping[str, Any]], name: str) -> str:
    names = list(dict.fromkeys(key for trial in trials for key in trial["settings"]))
    header = "".join(f"<th>{escape(text.replace('_', ' '))}</th>" for text in ("trial", *names, name, "rungs"))
    rows = []
    for trial in trials:
        cells = ["" if trial["settings"].get(key) is None else trial["settings"][key] for key in names]
        row = [trial["number"], *cells, f"{trial['score']:.4g}", len(trial["scores"])]
        rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>")
    return (
        f'<h3>Trials, the best first</h3><div class="scroll"><table><thead><tr>{header}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _head(eyebrow: str, title: str, lead: str) -> str:
    return (
        f'<header><p class="eyebrow">{escape(eyebrow)}</p><h1>{escape(title)}</h1>'
        f'<div class="lead"><p>{escape(lead)}</p></div></header>'
    )


def _strip(cells: Sequence[tuple[str, str]]) -> str:
    items = (f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in cells if value)
    return f'<dl class="strip">{"".join(items)}</dl>'


def _command(result: Mapping[str, Any]) -> str:
    use = f"\nmillstream {result['for']} {result['data']} --tuned {result['file']}" if result.get("file") else ""
    return f"<h3>Once more</h3><pre>{escape(str(result.get('command', '')) + use)}</pre>"


def _write(path: Path, text: str) -> None:
    with storage_errors(path, do="name another folder with --run"):
        replace(path, text)
