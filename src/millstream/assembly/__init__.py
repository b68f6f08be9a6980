"""From names to data and to a trainer, as the command line and saved runs speak of them.

opening   what a person named as data: a public data set, files, a pipe; and what its columns mean
optimizers  optimizers by name
recipes   a recipe, which is JSON and saved with every checkpoint, and the trainer that it makes
replicas  what a run has published, asked by others
"""

from millstream.assembly.opening import Data, check_name, is_known, open_data, open_questions, require_columns
from millstream.assembly.optimizers import OPTIMIZERS
from millstream.assembly.recipes import Recipe, build, from_state, load, snapshot
from millstream.assembly.replicas import Replica, follow

__all__ = [
    "OPTIMIZERS",
    "Data",
    "Recipe",
    "Replica",
    "build",
    "check_name",
    "follow",
    "from_state",
    "is_known",
    "load",
    "open_data",
    "open_questions",
    "require_columns",
    "snapshot",
]
