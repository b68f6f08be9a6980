"""Delimited text (CSV and its relatives): where records end, what the header says, how blocks become record batches.

Quotes work as in RFC 4180: a field that begins with ``"`` goes on to the next single ``"``, whatever is between them;
``""`` within it is one quote; a quote elsewhere is an ordinary character. Blank lines are passed over.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as arrow_csv

from millstream.errors import DataError, SettingError
from millstream.sources.text import UnparsableError, arrow_reader, first_unfit, type_in_words

__all__ = ["DELIMITERS", "MISSING", "DelimitedFormat", "Header", "read_header"]

DELIMITERS = ",;\t|"
MISSING = ("", "NA", "N/A", "NaN", "nan", "NULL", "null")
"""Texts that mean a missing value, in every column."""

_QUOTE, _LINE_FEED, _RETURN = ord('"'), ord("\n"), ord("\r")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Header:
    """The first line of a delimited text: the columns' names, the delimiter, and how many bytes and lines it took."""

    def __init__(self, names: list[str], delimiter: str, num_bytes: int, num_lines: int) -> None:
        self.names = names
        self.delimiter = delimiter
        self.num_bytes = num_bytes
        self.num_lines = num_lines


def read_header(text: bytes, where: str, *, delimiter: str | None, names: Sequence[str] | None) -> Header:
    """The header at the beginning of a text; with ``names`` given, the text has none and its first line is a record."""
    mark = len(_BYTE_ORDER_MARK) if text.startswith(_BYTE_ORDER_MARK) else 0
    ends = DelimitedFormat((), delimiter or ",", ()).ends(text[mark:], True)
    first = next((text[mark + a : mark + b] for a, b in _spans(ends) if text[mark + a : mark + b].strip(b"\r\n")), b"")
    try:
        line = first.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(got=f"{where} in another encoding", wanted="UTF-8", do="convert it, e.g. with iconv") from error
    delimiter = delimiter or sniff_delimiter(line)
    fields = _fields(line, delimiter)
    if names is not None:
        if len(names) != len(fields):
            raise DataError(
                got=f"{len(names)} names for {len(fields)} columns of {where}",
                wanted="one name for each",
                do="change names",
            )
        return Header(list(names), delimiter, mark, 0)
    if fields and all(_is_number(field) for field in fields):
        raise DataError(
            got=f"{where} with only numbers in its first line: {line[:60]!r}",
            wanted="a header",
            do="add a line with the columns' names, or give them: names=[…]",
        )
    skipped = text.index(first, mark)
    num_bytes = skipped + len(first)
    found = [field.strip() or f"column_{place + 1}" for place, field in enumerate(fields)]
    return Header(found, delimiter, num_bytes, text[:num_bytes].count(b"\n") or 1)


def sniff_delimiter(line: str) -> str:
    """The delimiter that a header uses most, outside quotes; a comma when there is none.

    >>> sniff_delimiter('"a,b";c;d')
    ';'
    """
    bare = re.sub(r'"[^"]*"', "", line)
    return max(DELIMITERS, key=bare.count)


class DelimitedFormat:
    """Records of a delimited text with these columns, in the order of the text."""

    name = "csv"

    def __init__(self, names: Sequence[str], delimiter: str, missing: Sequence[str]) -> None:
        if len(delimiter) != 1 or delimiter in '"\r\n' or not delimiter.isascii():
            raise SettingError(got=f"delimiter={delimiter!r}", wanted="one ASCII character", do="use for example ';'")
        self.names = list(names)
        self.delimiter = delimiter
        self.missing = list(missing)
        self._delimiter = ord(delimiter)
        mark = re.escape(delimiter.encode())
        field = rb'(?:"(?:[^"]++|"")*+(?:"|\Z))?[^' + mark + rb"\r\n]*+"
        self._record = re.compile(field + rb"(?:" + mark + field + rb")*+(?:\r\n|\r|\n|\Z)")

    def ends(self, data: bytes, final: bool) -> npt.NDArray[np.int64]:
        return self._scan(data, final)[0]

    def last_end(self, data: bytes) -> int:
        if b'"' not in data and not _has_lone_return(data):
            return data.rfind(b"\n") + 1
        ends = self._scan(data, False)[0]
        return int(ends[-1]) if len(ends) else 0

    def is_blank(self, record: bytes) -> bool:
        return record in (b"\n", b"\r\n", b"\r")

    def num_lines(self, data: bytes) -> int:
        lone = data.count(b"\r") - data.count(b"\r\n") if b"\r" in data else 0
        return data.count(b"\n") + lone

    def line_ends(self, data: bytes) -> npt.NDArray[np.int64]:
        return _line_ends(data, True)

    def parse(self, data: bytes, schema: pa.Schema) -> pa.RecordBatch:
        table = self._read(data, schema)
        return table.combine_chunks().to_batches()[0] if table.num_rows else _empty(schema)

    def infer(self, data: bytes, declared: Mapping[str, pa.DataType]) -> pa.Schema:
        """The columns of some whole records, of the types that their values suggest; ragged records are passed over."""
        try:
            return _texts_are_utf8(self._read(data, None).schema)
        except UnparsableError:
            pass
        even = b"".join(
            data[first:last] for first, last in _spans(self.ends(data, True)) if self._is_even(data[first:last])
        )
        try:
            return _texts_are_utf8(self._read(even, None).schema)
        except UnparsableError:
            return pa.schema([pa.field(name, declared.get(name, pa.string())) for name in self.names])

    def explain(self, record: bytes, schema: pa.Schema) -> tuple[str, str]:
        if self._scan(record, True)[1]:
            return "a quote that is never closed", 'a " at the end of the field'
        try:
            text = record.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes that are not UTF-8", "UTF-8"
        fields = _fields(text.rstrip("\r\n"), self.delimiter)
        if len(fields) != len(self.names):
            return f"{len(fields)} fields", f"{len(self.names)}, as in the header"
        field = first_unfit(schema, lambda part: self._read(record, part))
        if field is not None:
            value = fields[self.names.index(field.name)][:60]
            return f"{value!r} in column {field.name!r}", type_in_words(field.type)
        return "a record that cannot be read", f"{len(self.names)} fields"

    def _is_even(self, record: bytes) -> bool:
        """Whether a record has as many fields as there are columns."""
        text = record.decode("utf-8", errors="replace").rstrip("\r\n")
        is_open = b'"' in record and self._scan(record, True)[1]
        return not is_open and len(_fields(text, self.delimiter)) == len(self.names)

    def _read(self, data: bytes, schema: pa.Schema | None) -> pa.Table:
        if b'"' in data and self._scan(data, True)[1]:
            raise UnparsableError
        try:
            return arrow_csv.read_csv(
                arrow_reader(data),
                read_options=self._read_options(data),
                parse_options=arrow_csv.ParseOptions(delimiter=self.delimiter, newlines_in_values=b'"' in data),
                convert_options=self._convert_options(schema),
            )
        except (pa.ArrowInvalid, UnicodeDecodeError) as error:
            raise UnparsableError from error

    def _read_options(self, data: bytes) -> Any:
        # One block must hold the longest record. Without threads, Arrow is ten times slower on small pieces.
        return arrow_csv.ReadOptions(column_names=self.names, use_threads=True, block_size=max(len(data), 16))

    def _convert_options(self, schema: pa.Schema | None) -> Any:
        return arrow_csv.ConvertOptions(
            column_types=schema,
            include_columns=None if schema is None else schema.names,
            null_values=self.missing,
            strings_can_be_null=True,
            quoted_strings_can_be_null=True,
        )

    def _scan(self, data: bytes, final: bool) -> tuple[npt.NDArray[np.int64], bool]:
        """The place after each record, and whether the bytes end within quotes."""
        array = np.frombuffer(data, dtype=np.uint8)
        lines = _line_ends(data, final)
        is_open = False
        if b'"' in data:
            quotes = np.flatnonzero(array == _QUOTE)
            if not self._pairs(array, quotes):
                return self._walk(data, final)
            lines = lines[np.searchsorted(quotes, lines) % 2 == 0]
            is_open = len(quotes) % 2 == 1
        ends = lines + 1
        if final and len(data) and (not len(ends) or ends[-1] < len(data)):
            ends = np.append(ends, len(data))
        return ends.astype(np.int64), is_open

    def _pairs(self, array: npt.NDArray[np.uint8], quotes: npt.NDArray[np.int64]) -> bool:
        """Whether each odd quote opens a field and each even one closes it, so that counting them is enough."""
        edges = np.array([self._delimiter, _LINE_FEED, _RETURN, _QUOTE], dtype=np.uint8)
        opening, closing = quotes[0::2], quotes[1::2]
        before = array[np.maximum(opening - 1, 0)]
        after = array[np.minimum(closing + 1, len(array) - 1)]
        opened = np.isin(before, edges) | (opening == 0)
        closed = np.isin(after, edges) | (closing == len(array) - 1)
        return bool(opened.all() and closed.all())

    def _walk(self, data: bytes, final: bool) -> tuple[npt.NDArray[np.int64], bool]:
        """The same as ``_scan``, record by record, for texts with quotes in odd places."""
        ends = [match.end() for match in self._record.finditer(data) if match.end() > match.start()]
        is_open = bool(ends) and self._is_open(data[ends[-2] if len(ends) > 1 else 0 :])
        unfinished = data[-1:] not in (b"\n", b"\r") or is_open or (data.endswith(b"\r") and not final)
        if not final and ends and unfinished:
            ends.pop()
        return np.array(ends, dtype=np.int64), is_open

    def _is_open(self, record: bytes) -> bool:
        """Whether the last field of one record begins with a quote that is never closed."""
        mark = re.escape(self.delimiter.encode())
        closed = rb'(?:"(?:[^"]++|"")*+"[^' + mark + rb'\r\n]*+|(?!")[^' + mark + rb"\r\n]*+)"
        return re.fullmatch(closed + rb"(?:" + mark + closed + rb")*+[\r\n]*", record) is None


def _texts_are_utf8(found: pa.Schema) -> pa.Schema:
    """Arrow takes a column with a byte that is not UTF-8 for a binary one; here it is a text with a bad record."""
    return pa.schema([field.with_type(pa.string()) if pa.types.is_binary(field.type) else field for field in found])


def _spans(ends: npt.NDArray[np.int64]) -> Any:
    return zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)


def _line_ends(data: bytes, final: bool) -> npt.NDArray[np.int64]:
    """Places of line feeds, and of lone carriage returns; one that is the last byte is lone only if nothing follows."""
    array = np.frombuffer(data, dtype=np.uint8)
    lines = np.flatnonzero(array == _LINE_FEED)
    if not _has_lone_return(data):
        return lines
    returns = np.flatnonzero(array == _RETURN)
    is_last = returns + 1 == len(array)
    followers = array[np.minimum(returns + 1, len(array) - 1)]
    return np.sort(np.concatenate([lines, returns[np.where(is_last, final, followers != _LINE_FEED)]]))


def _has_lone_return(data: bytes) -> bool:
    return b"\r" in data and data.count(b"\r") != data.count(b"\r\n")


def _fields(record: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([record], delimiter=delimiter), [])
    except csv.Error:  # a field longer than the module's limit
        return record.split(delimiter)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], type=field.type) for field in schema], schema=schema)
