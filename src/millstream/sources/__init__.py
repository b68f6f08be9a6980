"""Everything that records come from. Each source gives chunks with positions, as ``contracts.Source`` says.

    as_source(anything) ─▶ TensorSource, TableSource          memory      seek and jump
                           FileSource                         files       seek; jump if uncompressed Arrow
                           StdinSource                        stdin       live, once
    live_source("kafka://…") ─▶ UpstreamSource                urls, upstream   live, and again from any position
                           DatasetSource, RecordsSource, …    iterables   as fast as their code
    cached(source) ─▶ CachedSource                            cache       makes any of them jump
    Shuffled, Repeated, Mixed, Subset, hold_out               order, holdout

It does not know features, models or training.
"""

from millstream.sources.cache import CachedSource, cached
from millstream.sources.conversion import as_source
from millstream.sources.files import FileSource
from millstream.sources.followed import FollowedFile
from millstream.sources.holdout import Filtered, hold_out
from millstream.sources.iterables import BatchesSource, DatasetSource, RecordsSource
from millstream.sources.journal import JOURNAL, JournalSource
from millstream.sources.journaled import JournaledSource, journal_place
from millstream.sources.memory import TableSource, TensorSource
from millstream.sources.order import Mixed, Repeated, Shuffled, Subset
from millstream.sources.stdin import StdinSource
from millstream.sources.textfiles import has_no_records
from millstream.sources.training import check_goes_on, imported, training_sources
from millstream.sources.upstream import UpstreamSource
from millstream.sources.urls import is_live_url, live_source

__all__ = [
    "JOURNAL",
    "BatchesSource",
    "CachedSource",
    "DatasetSource",
    "FileSource",
    "Filtered",
    "FollowedFile",
    "JournalSource",
    "JournaledSource",
    "Mixed",
    "RecordsSource",
    "Repeated",
    "Shuffled",
    "StdinSource",
    "Subset",
    "TableSource",
    "TensorSource",
    "UpstreamSource",
    "as_source",
    "cached",
    "check_goes_on",
    "has_no_records",
    "hold_out",
    "imported",
    "is_live_url",
    "journal_place",
    "live_source",
    "training_sources",
]
