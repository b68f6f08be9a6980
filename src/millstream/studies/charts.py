"""Small charts as SVG text: lines, bands, points and straight reference lines, legible without a script.

It knows points, scales and where a label finds room; it does not know what a strategy or a result is. Colours are the
custom properties ``--series-0`` … of the page, so that a chart is right in light, dark and print. A chart is 420 units
wide and scales with its column.
"""

from __future__ import annotations

import dataclasses
import html
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from millstream.studies.scales import Axis, Scale, compact, extent, is_drawable, ticks

__all__ = [
    "DASHES",
    "NUM_COLOURS",
    "Axis",
    "Line",
    "Moment",
    "Point",
    "Rule",
    "compact",
    "interval_mark",
    "line_chart",
    "ticks",
]

NUM_COLOURS = 6
WIDTH, HEIGHT = 420, 252
TOP, BOTTOM, LEFT = 10, 36, 44
LETTER = 6.2  # width of a letter at the size of a label, on the wide side
LINE_HEIGHT = 14
MOST_MARKS = 24
MOST_HOVERS = 80
DASHES = ("", "5 3", "1.5 3")

Point: TypeAlias = tuple[float | None, float | None]
Box: TypeAlias = tuple[float, float, float, float]  # left, top, right, bottom


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """One series, in order of x; a None leaves a gap, an empty ``label`` leaves the end of the line unnamed."""

    label: str
    points: Sequence[Point]
    colour: int = 0
    dash: int = 0  # 0 solid, 1 dashed, 2 dotted
    band: Sequence[tuple[float, float] | None] = ()  # one (low, high) per point
    is_joined: bool = True  # False draws the points only
    hovers: Sequence[str] = ()  # one text per point
    has_marks: bool = True  # whether the points of a short line are marked


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
    """A straight grey line through two points, for a baseline or a law."""

    label: str
    start: tuple[float, float]
    end: tuple[float, float]


@dataclasses.dataclass(frozen=True, slots=True)
class Moment:
    """Something that happened at an x, with what is told of it: a line through the chart, or a stroke at its top."""

    text: str
    x: float
    colour: int = 0
    is_tall: bool = False


def line_chart(
    lines: Sequence[Line],
    x: Axis,
    y: Axis,
    *,
    title: str,
    rules: Sequence[Rule] = (),
    moments: Sequence[Moment] = (),
) -> str:
    """An SVG of all lines on one pair of axes; a sentence in its place when there is nothing to draw."""
    xs = [point[0] for line in lines for point in line.points if point[1] is not None]
    ys = [value for line in lines for value in _heights(line)] + [rule.start[1] for rule in rules]
    x_extent, y_extent = extent(xs, x, padding=0.0), extent(ys, y, padding=0.06)
    if x_extent is None or y_extent is None:
        return '<p class="empty">Nothing to draw: no finite values.</p>'
    longest = max((len(line.label) for line in lines), default=0)
    right = WIDTH - min(124.0, 12 + LETTER * longest)
    x_scale = Scale(*x_extent, LEFT, right, x.log)
    y_scale = Scale(*y_extent, HEIGHT - BOTTOM, TOP, y.log)
    spoken = html.escape(_spoken(title, lines, y))
    inner = f"{LEFT - 4} {TOP - 4} {right - LEFT + 8:.1f} {HEIGHT - TOP - BOTTOM + 8}"
    place = 'x="{}" y="{}" width="{}" height="{}"'.format(*inner.split())
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{spoken}">',
        *_axes(x, y, x_scale, y_scale),
        *(_moment(moment, x_scale) for moment in moments),
        f'<svg {place} viewBox="{inner}">',  # a viewport of its own cuts what lies outside, without an id
        *(_rule(rule, x_scale, y_scale) for rule in rules),
        *(_band(line, x_scale, y_scale) for line in lines),
        *(_path(line, x_scale, y_scale) for line in lines),
        "</svg>",
        *_labels(lines, rules, x_scale, y_scale),
        *(text for line in lines for text in _hovers(line, x, y, x_scale, y_scale)),
        *(_hover(moment.text, moment.colour, x_scale(moment.x), TOP - 3) for moment in moments),
        "</svg>",
    ]
    return "".join(parts)


def _heights(line: Line) -> Iterator[float | None]:
    yield from (y for _, y in line.points)
    for pair in line.band:
        if pair is not None:
            yield from pair


def _spoken(title: str, lines: Sequence[Line], y: Axis) -> str:
    """What a screen reader says in place of the chart."""
    ends = [(line.label, [y for _, y in line.points if is_drawable(y)]) for line in lines if line.label]
    return f"{title}. " + "; ".join(f"{label} ends at {y.text(heights[-1])}" for label, heights in ends if heights)


def _axes(x: Axis, y: Axis, x_scale: Scale, y_scale: Scale) -> Iterator[str]:
    left, right, bottom = x_scale.first, x_scale.last, y_scale.first
    for value in ticks(y_scale.low, y_scale.high, log=y.log):
        at, text = y_scale(value), html.escape(y.text(value))
        yield f'<line class="grid" x1="{left}" x2="{right:.1f}" y1="{at:.1f}" y2="{at:.1f}"/>'
        yield f'<text class="tick" x="{left - 6}" y="{at + 3.6:.1f}" text-anchor="end">{text}</text>'
    yield f'<line class="axis" x1="{left}" x2="{right:.1f}" y1="{bottom}" y2="{bottom}"/>'
    marks: list[tuple[float, str]]
    if x.names:
        marks = [(float(place), name) for place, name in enumerate(x.names)]
    else:
        marks = [(value, x.text(value)) for value in ticks(x_scale.low, x_scale.high, log=x.log)]
    for value, text in marks:
        at = x_scale(value)
        yield f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
        yield f'<text class="tick" x="{at:.1f}" y="{bottom + 15}" text-anchor="middle">{html.escape(text)}</text>'
    middle = (left + right) / 2
    yield f'<text class="name" x="{middle:.1f}" y="{HEIGHT - 5}" text-anchor="middle">{html.escape(x.label)}</text>'


def _runs(line: Line, x_scale: Scale, y_scale: Scale) -> Iterator[list[tuple[float, float]]]:
    """The pixels of the line, cut where a value is missing."""
    run: list[tuple[float, float]] = []
    for x, y in line.points:
        if x is not None and y is not None and x_scale.shows(x) and y_scale.shows(y):
            run.append((x_scale(x), y_scale(y)))
        elif run:
            yield run
            run = []
    if run:
        yield run


def _path(line: Line, x_scale: Scale, y_scale: Scale) -> str:
    runs = list(_runs(line, x_scale, y_scale))
    style = f'style="--c:var(--series-{line.colour % NUM_COLOURS})"'
    parts = []
    if line.is_joined:
        drawn = "".join("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in run) for run in runs if len(run) > 1)
        dash = f' stroke-dasharray="{DASHES[line.dash]}"' if DASHES[line.dash] else ""
        parts.append(f'<path class="line" {style} d="{drawn}"{dash}/>' if drawn else "")
    few, radius = line.has_marks and sum(map(len, runs)) <= MOST_MARKS, 2.4 if line.is_joined else 3.6
    for run in runs:
        marked = run if few or not line.is_joined or len(run) == 1 else []
        parts += [f'<circle class="mark" {style} cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>' for x, y in marked]
    return "".join(parts)


def _band(line: Line, x_scale: Scale, y_scale: Scale) -> str:
    lows: list[Point] = [(x, pair[0] if pair else None) for (x, _), pair in zip(line.points, line.band, strict=False)]
    highs: list[Point] = [(x, pair[1] if pair else None) for (x, _), pair in zip(line.points, line.band, strict=False)]
    parts = []
    for low, high in zip(
        _runs(dataclasses.replace(line, points=lows), x_scale, y_scale),
        _runs(dataclasses.replace(line, points=highs), x_scale, y_scale),
        strict=False,  # on a logarithmic axis a low end may not be positive
    ):
        outline = "L".join(f"{x:.1f} {y:.1f}" for x, y in [*high, *reversed(low)])
        parts.append(f'<path class="band" style="--c:var(--series-{line.colour % NUM_COLOURS})" d="M{outline}Z"/>')
    return "".join(parts)


def _rule(rule: Rule, x_scale: Scale, y_scale: Scale) -> str:
    (x1, y1), (x2, y2) = rule.start, rule.end
    return (
        f'<line class="rule" x1="{x_scale(x1):.1f}" y1="{y_scale(y1):.1f}" '
        f'x2="{x_scale(x2):.1f}" y2="{y_scale(y2):.1f}"/>'
    )


def _moment(moment: Moment, x_scale: Scale) -> str:
    at, foot = x_scale(moment.x), HEIGHT - BOTTOM if moment.is_tall else TOP
    kind = "moment tall" if moment.is_tall else "moment"
    style = f'style="--c:var(--series-{moment.colour % NUM_COLOURS})"'
    return f'<line class="{kind}" {style} x1="{at:.1f}" x2="{at:.1f}" y1="{TOP - 8}" y2="{foot}"/>'


def _labels(lines: Sequence[Line], rules: Sequence[Rule], x_scale: Scale, y_scale: Scale) -> Iterator[str]:
    """Each name beside the end of its line, where it covers neither a line nor another name."""
    taken = [
        pixel for line in lines if line.is_joined for run in _runs(line, x_scale, y_scale) for pixel in _dense(run)
    ]
    placed: list[Box] = []
    ends = []
    for line in lines:
        pixels = [pixel for run in _runs(line, x_scale, y_scale) for pixel in run]
        if line.label and pixels:
            ends.append((pixels[-1], line))
    for (x, y), line in sorted(ends, key=lambda end: end[0][1]):
        width = LETTER * len(line.label)
        box = _find_room(_beside(x, min(max(y, TOP), y_scale.first), width), width, taken, placed)
        placed.append(box)
        middle = (box[1] + box[3]) / 2
        style = f'style="--c:var(--series-{line.colour % NUM_COLOURS})"'
        if abs(middle - y) > LINE_HEIGHT / 2 and box[0] > x:
            yield f'<path class="leader" {style} d="M{x + 3:.1f} {y:.1f}L{box[0] - 2:.1f} {middle:.1f}"/>'
        yield f'<circle class="end" {style} cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
        yield f'<text class="label" {style} x="{box[0]:.1f}" y="{middle + 3.8:.1f}">{html.escape(line.label)}</text>'
    straight = [((x_scale(r.start[0]), y_scale(r.start[1])), (x_scale(r.end[0]), y_scale(r.end[1]))) for r in rules]
    taken += [pixel for span in straight for pixel in _dense(span)]
    for rule, span in zip(rules, straight, strict=True):
        width = LETTER * len(rule.label)
        box = _find_room(_along(span, width), width, taken, placed)
        placed.append(box)
        foot = (box[1] + box[3]) / 2 + 3.8
        yield f'<text class="label quiet" x="{box[0]:.1f}" y="{foot:.1f}">{html.escape(rule.label)}</text>'


def _dense(run: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Points along a polyline, at most four units apart."""
    for (x1, y1), (x2, y2) in itertools.pairwise(run):
        steps = max(1, math.ceil(math.hypot(x2 - x1, y2 - y1) / 4))
        yield from ((x1 + (x2 - x1) * k / steps, y1 + (y2 - y1) * k / steps) for k in range(steps + 1))


def _beside(x: float, y: float, width: float) -> list[tuple[float, float, float]]:
    """(left, middle, cost) of places for a name right of a point, moved up or down, over it, or left of it."""
    shifts = [sign * step * LINE_HEIGHT / 4 for step in range(24) for sign in (1, -1)]
    places = [(x + 7, y + shift, abs(shift)) for shift in shifts]
    places += [(x - width / 2, y + shift, abs(shift) + 6) for shift in shifts if abs(shift) >= LINE_HEIGHT * 0.7]
    return places + [(x - width - 7, y + shift, abs(shift) + 10) for shift in shifts]


def _along(ends: tuple[tuple[float, float], tuple[float, float]], width: float) -> list[tuple[float, float, float]]:
    """(left, middle, cost) of places for a name just over or under a straight line, from its start to its end."""
    (x1, y1), (x2, y2) = ends
    places: list[tuple[float, float, float]] = []
    for step in range(21):
        left = x1 + step / 20 * max(0.0, x2 - x1 - width)
        on = y1 + (left + width / 2 - x1) / max(1.0, x2 - x1) * (y2 - y1)
        places += [(left, on + shift, step + abs(shift)) for shift in (-8, 9, -14, 15, -20, 21, -26, 27)]
    return places


def _find_room(
    places: Sequence[tuple[float, float, float]],
    width: float,
    taken: Sequence[tuple[float, float]],
    placed: Sequence[Box],
) -> Box:
    """The box of a name at the place that costs least, with what it covers counted in."""
    best, best_cost = (0.0, 0.0, 0.0, 0.0), math.inf
    for left, middle, cost in places:
        box = (left, middle - LINE_HEIGHT / 2, left + width, middle + LINE_HEIGHT / 2)
        if cost >= best_cost:
            continue
        outside = max(0.0, LEFT - box[0], box[2] - WIDTH, -box[1], box[3] - (HEIGHT - BOTTOM))
        cost += 50 * outside + 1000 * sum(_overlap(box, other) for other in placed)
        cost += 12 * sum(box[0] - 2 < px < box[2] and box[1] < py < box[3] for px, py in taken)
        if cost < best_cost:
            best, best_cost = box, cost
    return best


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _hovers(line: Line, x: Axis, y: Axis, x_scale: Scale, y_scale: Scale) -> Iterator[str]:
    shown = [
        (place, px, py)
        for place, (px, py) in enumerate(line.points)
        if px is not None and py is not None and x_scale.shows(px) and y_scale.shows(py)
    ]
    for place, px, py in shown[:: max(1, math.ceil(len(shown) / MOST_HOVERS))]:
        at = y_scale(py)
        if not TOP - 4 <= at <= y_scale.first + 4:
            continue
        where = x.names[int(px)] if x.names else x.text(px)
        text = line.hovers[place] if line.hovers else f"{line.label}: {y.text(py)} at {where} {x.label}"
        yield _hover(text, line.colour, x_scale(px), at)


def _hover(text: str, colour: int, x: float, y: float) -> str:
    return (
        f'<circle class="hover" style="--c:var(--series-{colour % NUM_COLOURS})" cx="{x:.1f}" '
        f'cy="{y:.1f}" r="7"><title>{html.escape(text)}</title></circle>'
    )


def interval_mark(
    value: float, around: tuple[float, float] | None, dots: Sequence[float], *, low: float, high: float, colour: int
) -> str:
    """One row of a table's dot plot: the value, its interval as a whisker, and each run as a faint dot.

    ``low`` and ``high`` are the ends of the scale that all rows share.
    """
    scale = Scale(low, high, 5, 135)
    style = f'style="--c:var(--series-{colour % NUM_COLOURS})"'
    parts = [
        f'<svg class="whisker" viewBox="0 0 140 18" aria-hidden="true" {style}>',
        '<line class="grid" x1="5" x2="135" y1="9" y2="9"/>',
    ]
    if around is not None:
        ends = [min(max(scale(end), 1), 139) for end in around]
        parts.append(f'<line class="range" x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="9" y2="9"/>')
    parts += [f'<circle class="dot" cx="{scale(dot):.1f}" cy="9" r="2.2"/>' for dot in dots]
    parts.append(f'<circle class="mean" cx="{scale(value):.1f}" cy="9" r="3.6"/></svg>')
    return "".join(parts)
