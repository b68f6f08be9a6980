"""Sinks: where outcomes go, each once: JSON Lines, a folder of Parquet files, a Kafka topic.

They know rows of outcomes and the state that a checkpoint keeps; they know no trainer.
"""

from millstream.sinks.jsonlines import JsonLinesSink
from millstream.sinks.kafka import KafkaSink
from millstream.sinks.opening import open_sink
from millstream.sinks.parquet import ParquetSink
from millstream.sinks.rows import label_rows, outcome_rows

__all__ = ["JsonLinesSink", "KafkaSink", "ParquetSink", "label_rows", "open_sink", "outcome_rows"]
