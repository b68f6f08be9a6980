"""Millstream: train PyTorch models in batches and online; same model, same loop, same checkpoint.

    import millstream
    trainer = millstream.Trainer(model, "cross_entropy", optimizer)
    trainer.fit(source, batch_size=64, epochs=5)  # batch
    trainer.learn(source)                         # online: predict, score, update

Names are loaded when they are first used, so that the command line need not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "CheckpointError": "errors",
    "Chunk": "contracts",
    "DataError": "errors",
    "DivergenceError": "errors",
    "FactoredRMSprop": "engines",
    "Features": "features",
    "Field": "schema",
    "FileSource": "sources",
    "LearningError": "errors",
    "MillstreamError": "errors",
    "MissingPackageError": "errors",
    "ModelError": "errors",
    "Schema": "schema",
    "SettingError": "errors",
    "StorageError": "errors",
    "Target": "schema",
    "Trainer": "trainer",
    "as_source": "sources",
    "change": "decisions",
    "check": "studies.check",
    "compile": "engines",
    "follow": "assembly",
    "hold_out": "sources",
    "infer": "features",
    "load": "assembly",
    "lr_range": "studies.range_test",
}

__all__ = [
    "CheckpointError",
    "Chunk",
    "DataError",
    "DivergenceError",
    "FactoredRMSprop",
    "Features",
    "Field",
    "FileSource",
    "LearningError",
    "MillstreamError",
    "MissingPackageError",
    "ModelError",
    "Schema",
    "SettingError",
    "StorageError",
    "Target",
    "Trainer",
    "as_source",
    "change",
    "check",
    "compile",
    "follow",
    "hold_out",
    "infer",
    "load",
    "lr_range",
]

if TYPE_CHECKING:
    from millstream.assembly import follow, load
    from millstream.contracts import Chunk
    from millstream.decisions import change
    from millstream.engines import FactoredRMSprop, compile
    from millstream.errors import (
        CheckpointError,
        DataError,
        DivergenceError,
        LearningError,
        MillstreamError,
        MissingPackageError,
        ModelError,
        SettingError,
        StorageError,
    )
    from millstream.features import Features, infer
    from millstream.schema import Field, Schema, Target
    from millstream.sources import FileSource, as_source, hold_out
    from millstream.studies.check import check
    from millstream.studies.range_test import lr_range
    from millstream.trainer import Trainer


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
