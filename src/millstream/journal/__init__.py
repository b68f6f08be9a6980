"""The embedded journal: groups of records in a folder, durable when ``append`` returns, checked when they are read."""

from millstream.journal.groups import DECISIONS, KINDS, Appended, Draft, Group, Head, Kind
from millstream.journal.journal import Journal
from millstream.journal.loss import accept_loss
from millstream.journal.mark import identity
from millstream.journal.reading import JournalReader
from millstream.journal.segments import is_full
from millstream.journal.verifying import Verified, verify

__all__ = [
    "DECISIONS",
    "KINDS",
    "Appended",
    "Draft",
    "Group",
    "Head",
    "Journal",
    "JournalReader",
    "Kind",
    "Verified",
    "accept_loss",
    "identity",
    "is_full",
    "verify",
]
