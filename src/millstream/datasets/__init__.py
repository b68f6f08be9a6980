"""Named data sets: public ones, fetched once, checked and cached, and drifting streams that are generated.

``load("elec2").train`` is a source like any other, and ``load("elec2").schema`` says what its columns mean.
"""

from millstream.datasets.generators import GeneratorSource
from millstream.datasets.library import DataSet, Description, describe, fetch, load, names

__all__ = ["DataSet", "Description", "GeneratorSource", "describe", "fetch", "load", "names"]
