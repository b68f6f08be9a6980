"""Named columns to tensors: guess a schema, mend it by hand, and turn records into what a model is given.

    schema = infer(table, target="label")     what the columns mean
    features = Features(schema)               statistics that follow the stream
    chunk = features.transform(chunk, learn=True)

This package knows Arrow columns and schemas; it knows no source, model or engine.
"""

from millstream.features.declaration import describe, parse_override
from millstream.features.features import Features
from millstream.features.inference import infer
from millstream.features.numbers import Standardizer

__all__ = ["Features", "Standardizer", "describe", "infer", "parse_override"]
