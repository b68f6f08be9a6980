"""The embedded journal: groups of records in a folder, durable when ``append`` returns, checked when they are read."""

from millstream.journal.groups import KINDS, Appended, Draft, Group, Head
from millstream.journal.journal import Journal
from millstream.journal.loss import accept_loss
from millstream.journal.reading import JournalReader
from millstream.journal.verifying import Verified, verify

__all__ = [
    "KINDS",
    "Appended",
    "Draft",
    "Group",
    "Head",
    "Journal",
    "JournalReader",
    "Verified",
    "accept_loss",
    "verify",
]
