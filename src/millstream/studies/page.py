"""The frame of a page: its colours in light and dark, its style and its few lines of script.

It knows how a page looks; it does not know what the page says. The page needs nothing but a browser.
"""

from __future__ import annotations

import html
import re

__all__ = ["DARK", "LIGHT", "escape", "page"]

LIGHT = {
    "ground": "#fcfcfa", "ink": "#1b1d20", "quiet": "#63676e", "rule": "#dcdbd5", "grid": "#ebeae5", "tint": "#f3f2ed",
    "series-0": "#0a6ab5", "series-1": "#bf4a06", "series-2": "#00806a", "series-3": "#a63f86", "series-4": "#7a6a00",
    "series-5": "#63676e",
}  # fmt: skip
DARK = {
    "ground": "#15171b", "ink": "#e9e7e2", "quiet": "#9da1a9", "rule": "#353941", "grid": "#262a31", "tint": "#1d2026",
    "series-0": "#5cb3f2", "series-1": "#f58a45", "series-2": "#2fc4a4", "series-3": "#e08fc6", "series-4": "#cdbb4a",
    "series-5": "#9da1a9",
}  # fmt: skip

STYLE = """
* { box-sizing: border-box }
html { color-scheme: light dark; -webkit-text-size-adjust: 100% }
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: .94rem/1.5 system-ui,-apple-system,"Segoe UI",Roboto, "Helvetica Neue",Arial,sans-serif;
  font-variant-numeric: tabular-nums;
}
main { max-width: 1280px; margin: 0 auto; padding: 40px 28px 56px }
h1 {
  font-size: clamp(1.25rem,.95rem + 1.1vw,1.8rem); line-height: 1.3; font-weight: 600; letter-spacing: -.012em;
  margin: .35rem 0 0; max-width: 46em; text-wrap: pretty;
}
h2 {
  font-size: 1.3rem; line-height: 1.3; letter-spacing: -.008em; margin: 56px 0 4px; padding-top: 18px;
  border-top: 1px solid var(--ink);
}
h3 { font-size: .95rem; margin: 34px 0 10px }
p { margin: .4rem 0; max-width: 76ch }
.quiet,.eyebrow,figcaption span,.small { color: var(--quiet) }
.eyebrow { font-size: .85rem; margin: 0; max-width: none }
.lead { font-size: 1rem; margin-top: 10px }
.lead p { max-width: 84ch }
.strip {
  display: grid; grid-template-columns: repeat(auto-fit,minmax(150px,1fr)); margin: 28px 0 0;
  border-top: 1px solid var(--rule); border-bottom: 1px solid var(--rule);
}
.strip div { padding: 12px 16px 12px 0 }
.strip dt { font-size: .78rem; color: var(--quiet) }
.strip dd { margin: 0; font-size: 1.3rem; font-weight: 600; letter-spacing: -.01em; line-height: 1.3 }
.strip dd small { display: block; font-size: .78rem; font-weight: 400; letter-spacing: 0; color: var(--quiet) }
.scroll { overflow-x: auto; margin: 0 -28px; padding: 0 28px }
table { border-collapse: collapse; width: 100%; font-size: .875rem }
.small { font-size: .78rem }
th,td {
  padding: 7px 0 7px 18px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--grid);
  vertical-align: baseline;
}
th {
  font-weight: 400; color: var(--quiet); font-size: .78rem; vertical-align: bottom;
  border-bottom-color: var(--rule);
}
th:first-child,td:first-child,.text { text-align: left }
th:first-child,td:first-child { padding-left: 0 }
td.text { white-space: normal; min-width: 27em; font-size: .8rem; color: var(--quiet) }
.near td.text { min-width: 9em }
tbody th { font-size: .875rem; color: var(--ink); border-bottom-color: var(--grid); vertical-align: baseline }
td small { color: var(--quiet); font-size: .78rem }
td.named { white-space: normal; min-width: 15em; padding-left: 30px; text-indent: -30px }
.best td:first-child,.best .score,td.best { font-weight: 600 }
td.score small,td.best small { font-weight: 400 }
.badge {
  text-indent: 0; display: inline-block; line-height: 1.4;
  font-size: .7rem; font-weight: 600; background: var(--ink); color: var(--ground); border-radius: 3px;
  padding: 1px 5px; margin-left: 7px;
}
.key { display: inline-block; width: 22px; height: 10px; margin-right: 8px; overflow: visible }
.key.stroke { width: 5px }
.key line { stroke: var(--c); stroke-width: 2.2 }
.tall-list { max-height: 26rem; overflow: auto }
.tall-list th { position: sticky; top: 0; background: var(--ground) }
.legend {
  display: flex; flex-wrap: wrap; gap: 2px 22px; margin: 0 0 4px; padding: 0; list-style: none;
  font-size: .82rem;
}
.charts { display: grid; grid-template-columns: repeat(auto-fill,minmax(min(100%,350px),1fr)); gap: 24px 28px }
figure { margin: 0; max-width: 520px; break-inside: avoid }
figcaption { font-size: .85rem; font-weight: 600; margin-bottom: 2px }
figcaption span { font-weight: 400 }
.chart { display: block; width: 100%; height: auto; overflow: visible }
.chart text { font-size: 11.5px; fill: var(--quiet) }
.chart .label {
  fill: var(--ink); paint-order: stroke; stroke: var(--ground); stroke-width: 3px; stroke-linejoin: round;
}
.chart .label.quiet { fill: var(--quiet) }
.grid { stroke: var(--grid) }
.axis { stroke: var(--rule) }
.rule { stroke: var(--quiet); stroke-dasharray: 2 3 }
.line { fill: none; stroke: var(--c); stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round }
.mark,.end,.whisker .mean { fill: var(--c) }
.end,.mark { stroke: var(--ground); stroke-width: 1 }
.leader { fill: none; stroke: var(--c); stroke-width: .8; opacity: .6 }
.moment,.swatch { stroke: var(--c); stroke-width: 1.6 }
.moment.tall { stroke-width: 1; stroke-dasharray: 4 3; opacity: .8 }
.band { fill: var(--c); opacity: .15 }
.hover { fill: transparent }
.hover:hover,.hover.near { fill: var(--c); fill-opacity: .25; stroke: var(--c) }
.whisker { width: 140px; height: 18px; vertical-align: middle }
.whisker .range { stroke: var(--c); stroke-width: 2 }
.whisker .dot { fill: var(--c); opacity: .4 }
pre {
  background: var(--tint); padding: 12px 14px; border-radius: 4px; white-space: pre-wrap;
  overflow-wrap: anywhere; font-size: .85rem; margin: 8px 0;
}
ul.notes { margin: 0; padding-left: 1.1em; max-width: 80ch }
ul.notes li { margin: .35rem 0 }
details { margin-top: 10px; font-size: .875rem }
summary { cursor: pointer; color: var(--quiet) }
.facts {
  display: grid; grid-template-columns: max-content 1fr max-content 1fr; gap: 3px 18px; margin: 10px 0;
  font-size: .85rem;
}
.facts dt { color: var(--quiet) }
.facts dd { margin: 0; overflow-wrap: anywhere }
@media (max-width:640px) {
  main { padding: 24px 16px 40px }
  .scroll { margin: 0 -16px; padding: 0 16px }
  .strip { grid-template-columns: 1fr 1fr }
  .facts { grid-template-columns: max-content 1fr }
  .scroll:not(.near) td.text { min-width: 19em }
  th:first-child,td:first-child { position: sticky; left: 0; background: var(--ground); padding-right: 8px }
  td.named { min-width: 10.5em }
  h2 { margin-top: 44px }
}
.beside { display: grid; grid-template-columns: minmax(0, 420px) minmax(0, 1fr); gap: 20px 36px; align-items: start }
.beside .scroll { margin: 0; padding: 0 }
@media (max-width: 1000px) { .beside { grid-template-columns: minmax(0, 1fr) } }
@page { size: landscape; margin: 12mm }
@media print {
  html { font-size: 11.5px }
  body { background: none }
  main { max-width: none; padding: 0 }
  .charts { grid-template-columns: repeat(3,1fr); gap: 14px }
  .scroll { overflow: visible }
  th,td { padding-left: 9px }
  td.text { min-width: 14em }
  .whisker { width: 90px }
  h2 { margin-top: 28px }
  tr,.strip { break-inside: avoid }
  h2,h3 { break-after: avoid }
}
"""

# The page is whole without it: the nearest point lights up and its text stands in the caption.
SCRIPT = """
for (const chart of document.querySelectorAll('.chart')) {
  const caption = chart.closest('figure').querySelector('figcaption span'), text = caption.textContent;
  const points = [...chart.querySelectorAll('.hover')];
  let near;
  chart.onpointermove = event => {
    const frame = chart.getBoundingClientRect(), scale = frame.width / chart.viewBox.baseVal.width;
    const x = (event.clientX - frame.x) / scale, y = (event.clientY - frame.y) / scale;
    const distance = point => Math.hypot(point.cx.baseVal.value - x, point.cy.baseVal.value - y);
    near?.classList.remove('near');
    near = points.reduce((a, b) => distance(a) < distance(b) ? a : b, points[0]);
    near?.classList.add('near');
    caption.textContent = near?.textContent ?? text;
  };
  chart.onpointerleave = () => { near?.classList.remove('near'); caption.textContent = text; };
}
"""


def page(title: str, body: str) -> str:
    """A whole HTML document around ``body``, which is HTML already; ``title`` is text."""
    light, dark = ("".join(f"--{name}:{value};" for name, value in theme.items()) for theme in (LIGHT, DARK))
    theme = f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{theme}{STYLE}</style></head>"
        f"<body><main>{body}</main><script>{SCRIPT}</script></body></html>\n"
    )


def escape(value: object) -> str:
    """A value as HTML text, with the space before a unit kept whole.

    >>> escape("<b> 96.8 %")
    '&lt;b&gt; 96.8&nbsp;%'
    """
    return re.sub(r"(?<=\d) (?=%|(?:s|ms|min|h)\b)|(?<=η) (?==)|(?<=η =) ", "&nbsp;", html.escape(str(value)))
