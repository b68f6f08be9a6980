"""Run: pytest tests/test_charts.py"""

from __future__ import annotations

import doctest
import itertools
import math
import re
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.studies import charts, figures, page, scales
from millstream.studies.charts import Axis, Line, Moment, Rule, line_chart, ticks


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-6, 1e6), st.floats(1.001, 1e9), st.booleans())
def test_ticks_are_round_few_and_within(low: float, ratio: float, log: bool) -> None:
    high = low * ratio
    found = ticks(low, high, log=log)
    assert len(found) <= 9
    assert found == sorted(set(found))
    assert all(low * (1 - 1e-6) <= value <= high * (1 + 1e-6) for value in found)
    steps = found if log and ratio > 4 else [b - a for a, b in itertools.pairwise(found)]
    for value in steps:
        digits = value / 10 ** math.floor(math.log10(value) + 1e-6)
        assert min(abs(digits - lead) for lead in (1, 2, 5, 10)) < 1e-3


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1) | st.none() | st.just(math.nan), min_size=1, max_size=12), st.booleans())
def test_any_values_make_a_drawing_within_its_frame(values: list[float | None], log: bool) -> None:
    line = Line("a", [(10.0**k, value) for k, value in enumerate(values)])
    text = line_chart([line], Axis("x", log=True), Axis("y", log=log), title="t")
    ElementTree.fromstring(text)
    assert "nan" not in text
    for x in re.findall(r'cx="([-\d.]+)"', text):
        assert 0 <= float(x) <= charts.WIDTH
    for y in re.findall(r'cy="([-\d.]+)"', text):
        assert 0 <= float(y) <= charts.HEIGHT


def test_a_missing_value_leaves_a_gap() -> None:
    points = [(0.0, 1.0), (1.0, 2.0), (2.0, None), (3.0, 2.0), (4.0, 1.0)]
    text = line_chart([Line("a", points)], Axis("x"), Axis("y"), title="t")
    path = re.search(r'class="line"[^>]* d="([^"]*)"', text)
    assert path is not None
    assert path[1].count("M") == 2 and path[1].count("L") == 2


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.9, 0.91), min_size=2, max_size=6))
def test_names_at_the_ends_of_lines_do_not_cover_each_other(ends: list[float]) -> None:
    lines = [Line(f"strategy {k}", [(0.0, 0.0), (1.0, end)], k) for k, end in enumerate(ends)]
    text = line_chart(lines, Axis("x"), Axis("y"), title="t")
    labels = [(float(x), float(y)) for x, y in re.findall(r'class="label" [^>]*x="([-\d.]+)" y="([-\d.]+)"', text)]
    assert len(labels) == len(ends)
    width = charts.LETTER * len("strategy 0")
    for place, (x, y) in enumerate(labels):
        assert x >= 0 and x + width <= charts.WIDTH + 0.1
        for other_x, other_y in labels[place + 1 :]:
            assert abs(x - other_x) >= width - 0.1 or abs(y - other_y) >= charts.LINE_HEIGHT - 0.15


def test_bands_rules_and_hovers_are_drawn() -> None:
    line = Line("a", [(1, 0.5), (2, 0.6)], band=[(0.4, 0.6), (0.5, 0.7)], hovers=["first", "second"])
    text = line_chart([line], Axis("x"), Axis("y"), title="t", rules=[Rule("law", (1, 0.5), (2, 0.5))])
    assert text.count('class="band"') == 1 and text.count('class="rule"') == 1
    assert "<title>first</title>" in text and "law" in text
    assert 'aria-label="t. a ends at 0.6"' in text


def test_moments_are_strokes_at_the_top_or_lines_and_say_what_they_are() -> None:
    moments = [Moment("2: drift, <alarm>", 2, 1, is_tall=True), Moment("3: leads, a", 3)]
    text = line_chart([Line("a", [(1, 0.5), (4, 0.6)])], Axis("x"), Axis("y"), title="t", moments=moments)
    ElementTree.fromstring(text)
    assert text.count('class="moment"') == text.count('class="moment tall"') == 1
    assert "<title>2: drift, &lt;alarm&gt;</title>" in text
    heights = [float(y) for y in re.findall(r'class="moment[^>]* y2="([\d.]+)"', text)]
    assert heights == [charts.HEIGHT - charts.BOTTOM, charts.TOP]


# ---- colours


def luminance(colour: str) -> float:
    channels = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [page.LIGHT, page.DARK], ids=["light", "dark"])
def test_text_and_lines_stand_out_from_the_ground(theme: dict[str, str]) -> None:
    assert contrast(theme["ink"], theme["ground"]) > 12
    assert contrast(theme["quiet"], theme["ground"]) > 4.5  # WCAG AA for text
    for k in range(charts.NUM_COLOURS):
        assert contrast(theme[f"series-{k}"], theme["ground"]) > 4.5


@pytest.mark.parametrize("theme", [page.LIGHT, page.DARK], ids=["light", "dark"])
@pytest.mark.parametrize(
    "missing",  # what a dichromat sees, as linear RGB (Viénot, Brettel and Mollon 1999)
    [
        np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]]),
        np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]]),
    ],
    ids=["protan", "deutan"],
)
def test_the_first_colours_differ_for_colour_blind_eyes(theme: dict[str, str], missing: np.ndarray) -> None:
    def seen(colour: str) -> np.ndarray:
        channels = np.array([int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)])
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        x, y, z = (
            np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
            @ np.clip(missing @ linear, 0, 1)
            / [0.9505, 1, 1.089]
        )
        fx, fy, fz = (v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z))
        return np.array([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)])

    shades = [seen(theme[f"series-{k}"]) for k in range(4)]
    distances = [float(np.linalg.norm(a - b)) for k, a in enumerate(shades) for b in shades[k + 1 :]]
    assert min(distances) > 12


@pytest.mark.parametrize("module", [charts, scales, page, figures])
def test_examples_in_the_docstrings(module: Any) -> None:
    assert doctest.testmod(module).failed == 0
