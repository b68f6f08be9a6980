"""Running measures of what was predicted before each update: since the start, and over a window.

``Metrics`` is what a trainer holds; ``exact`` holds the same measures as pure functions of arrays. Nothing here knows
models, sources or losses: it is given outputs, targets and losses.
"""

from millstream.metrics.running import Metrics

__all__ = ["Metrics"]
