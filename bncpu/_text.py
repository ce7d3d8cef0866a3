"""CSV and its relatives, and JSON lines. DuckDB reads the rows; what a file is written in is found out here.

DuckDB is told everything, and guesses nothing: it guesses from a part of the file, leaves out lines that do not fit the
guess, and takes quotes for text if that part has none.
"""

from __future__ import annotations

import codecs
import csv
import functools
import io
import itertools
import json
import math
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bncpu import _kernels
from bncpu._tables import Column, Columnar, Located, named
from bncpu._temporary import temporary

# Bytes that tell what a file is written in, and what its columns hold: tried in order until they hold two lines.
HEAD_BYTES = (1 << 18, 1 << 22, 1 << 28)

# Bytes of one line at most. (DuckDB's own limit is 2 MB.)
LINE_BYTES = 100 << 20

COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2"}
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}

# Those that stand between columns in every line of the head count, in this order.
DELIMITERS = ("\t", ";", "|", ",")

# As pandas has them, and others that are common; of these it is said that they were found.
MISSING = (
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA"),
    *("NULL", "NaN", "n/a", "nan", "null"),
)
COMMON: tuple[str, ...] = ("None", "none", "NONE", "Null", "na", "NAN", "N.A.", "n.a.", "missing", "Missing")
COMMON += ("?", "-", "--", ".", "*", "#DIV/0!", "#VALUE!", "#REF!", "#NAME?", "#NUM!", "#NULL!")

BOOLEANS = {"true", "false"}

# A column with fewer texts than that among its numbers is said to be one of numbers with faults.
MANY = 0.2


class Text(Columnar):
    """A file of lines, each a row. It may be compressed with gzip, zstd or bzip2."""

    compression: str | None = None
    n_rows_of_head = 0
    n_bytes_of_head = 1

    def read_columns(self) -> None:
        self.duckdb = duckdb_for(self.path)
        self.found: list[str] = []
        self.missing = [*MISSING, *self.reading.missing]
        with open(self.data, "rb") as file:
            mark = file.read(4)
        self.compression = next((name for start, name in COMPRESSIONS.items() if mark.startswith(start)), None)
        head = b""
        with self.decompressed() as file:
            for n in HEAD_BYTES:
                head += file.read(n - len(head))
                if len(head.splitlines()) > 2:
                    break
            self.complete = not file.read(1)
        encoding = self.reading.encoding or self.encoding(head)
        try:
            text = codecs.getincrementaldecoder(encoding)().decode(head, final=self.complete)
        except LookupError:
            raise Located(f"--encoding must be one that Python knows, got {encoding!r}") from None
        outside = re.sub(r'"[^"]*"', "", text)
        mixed = len(set(re.findall(r"\r\n|\r|\n", outside if self.complete else outside.removesuffix("\r")))) > 1
        plain = codecs.lookup(encoding).name in ("utf-8", "utf-8-sig", "ascii")
        if not plain or mixed or self.compression == "bz2" or set("*?[") & set(str(self.data)):
            self.rewrite(encoding, None if mixed else "")
        self.head(io.StringIO(text.removeprefix("\ufeff"), newline=""))
        self.n_bytes_of_head = max(1, len(head))
        self.n_rows = self.n_rows_of_head if self.complete else None
        if self.found:
            self.said.append(", ".join(self.found))

    @property
    def n_rows_about(self) -> int:
        """How many rows there may be."""
        return int(self.n_rows_of_head * max(1.0, self.size / self.n_bytes_of_head))

    def decompressed(self) -> Any:
        """The file as bytes, without its compression."""
        return self.arrow.input_stream(str(self.data), compression=self.compression)

    def lines(self) -> Any:
        """The file as lines of text with their ends."""
        return io.TextIOWrapper(self.decompressed(), "utf-8-sig", errors="replace", newline="")

    def encoding(self, head: bytes) -> str:
        """What the file is encoded in."""
        for mark, name in MARKS.items():
            if head.startswith(mark):
                if mark != codecs.BOM_UTF8:
                    self.found.append(f"encoding {name}")
                return name
        for name in ("utf-16-le", "utf-16-be"):
            if head[:2].count(0) == 1 and head[0 if name.endswith("be") else 1] == 0:
                self.found.append(f"encoding {name}")
                return name
        try:
            codecs.getincrementaldecoder("utf-8")().decode(head, final=self.complete)
        except UnicodeDecodeError:
            undefined = set(b"\x81\x8d\x8f\x90\x9d") & set(head)
            name = "latin-1" if undefined else "cp1252"
            self.found.append(f"encoding {name}")
            return name
        return "utf-8"

    def rewrite(self, encoding: str, newline: str | None) -> None:
        """Read a temporary copy in UTF-8 instead. With newline None, all line ends become the same."""
        stack = self.reading.temporary
        if stack is None:
            raise ValueError(f"its encoding is {encoding}")
        path, copy = stack.enter_context(temporary(tempfile.gettempdir()))
        with io.TextIOWrapper(self.decompressed(), encoding, newline=newline) as text:
            while part := text.read(1 << 20):
                copy.write(part.encode())
        copy.flush()
        self.data, self.compression, self.size = Path(path), None, os.stat(path).st_size

    def head(self, text: io.StringIO) -> None:
        """Set `columns` and what else the first lines tell."""
        raise NotImplementedError

    def dtype(self, names: Sequence[str]) -> np.dtype[Any]:
        return np.dtype(np.float64)

    def record_batches(self, skipped: int, names: Sequence[str], carry: str | None) -> Iterator[Any]:
        rows, n_read = self.rows_of_a_piece(len(self.columns if carry else names)), 0
        per_row = self.n_bytes_of_head / max(1, self.n_rows_of_head)
        for rare in (False, True):
            skip = n_read
            try:
                for batch in self.queried(self.query(names, carry, rare=rare), rows):
                    n = batch.num_rows
                    if n > skip:
                        n_read += n - skip
                        self.position = min(self.size, int(n_read * per_row))
                        yield batch.slice(skip)
                    skip = max(0, skip - n)
                return
            except (self.duckdb.Error, self.arrow.ArrowException, OSError) as error:
                if rare:
                    fault = self.fault(names)
                    if fault is None:
                        raise ValueError(str(error).partition("\n")[0]) from None
                    raise Located(fault) from None

    def queried(self, query: str, rows: int) -> Iterator[Any]:
        """Record batches of `rows` rows, in the order of the file."""
        with database(os.getpid()).cursor() as cursor:
            yield from cursor.sql(query).to_arrow_reader(rows)

    def query(self, names: Sequence[str], carry: str | None, *, rare: bool) -> str:
        """SQL for the rows: `names` as numbers, with `carry` all others as they are.

        What is `rare` costs time: lines beyond DuckDB's limit, and missing values that the head has not.
        """
        raise NotImplementedError

    def fault(self, names: Sequence[str]) -> str | None:
        """The first fault of the file, found by reading it again."""
        raise NotImplementedError


class Csv(Text):
    """Rows of fields with a delimiter between them."""

    kind = "a table of text"
    delimiter: str | None = None

    def head(self, text: io.StringIO) -> None:
        given = self.reading
        self.comment, self.decimal = given.comment, given.decimal or "."
        lines = text.readlines()
        top = given.skip_rows
        comments = 0
        while top < len(lines) and (not lines[top].strip() or lines[top].startswith(given.comment or "#")):
            comments += bool(lines[top].strip())
            top += 1
        named_above = lines[top - 1].lstrip("# ") if top > given.skip_rows else ""
        if len(lines) <= top:
            raise ValueError("it is empty")
        delimiter = self.reading.delimiter or self.delimiter or self.delimiter_of(lines[top : top + 50])
        self.delimiter = "\t" if delimiter in ("\\t", "tab") else delimiter
        if len(self.delimiter) != 1:
            raise Located(f"--delimiter must be one character, got {delimiter!r}")
        self.skip = top
        records = list(self.records(lines, cut_off=not self.complete))
        if not self.complete and len(records) > 1:
            records.pop()
        first = records[0][1]
        width = len(first)
        if width > 1:
            records = [record for record in records if record[1] != [""]]
        header = given.header
        if header is None:
            header = not all(_is_number(field) or field in self.missing for field in first)
        titles = [field.strip() for field in first]
        if header:
            self.skip = records.pop(0)[2]
            evident = any(map(_is_number, first)) and given.header is None
            if evident:
                self.found.append(f"line {self.skip} as names (--no-header if it is a row)")
        else:
            above = next(csv.reader([named_above], delimiter=self.delimiter), [])
            names_above = len(above) == width and not any(map(_is_number, above))
            titles = [field.strip() for field in above] if names_above else [f"x{c}" for c in range(width)]
            if names_above:
                self.found.append(f"names from the comment in line {top}")
            elif given.header is None:
                self.found.append("no line of names (--header if its first line is one)")
        comments -= bool(not header and names_above)
        if comments and not given.comment:
            self.found.append(f"{_n(comments, 'comment line')} above the table")
        if records and all(len(fields) == width + 1 and not fields[-1] for _, fields, _ in records if fields):
            titles.append("")
        if self.delimiter != "," and not given.delimiter and type(self).delimiter is None:
            self.found.insert(0, f"delimiter {self.delimiter!r}")
        self.describe(titles, records)

    def delimiter_of(self, lines: list[str]) -> str:
        """What stands between the columns."""
        plain = [re.sub(r'"[^"]*"', "", line) for line in lines if line.strip()]
        counts = {d: [line.count(d) for line in plain] for d in DELIMITERS}
        same = [d for d in DELIMITERS if counts[d][0] and len(set(counts[d])) == 1]
        return same[0] if same else max(reversed(DELIMITERS), key=lambda d: counts[d][0])

    def records(self, lines: Iterable[str], cut_off: bool = False) -> Iterator[tuple[int, list[str], int]]:
        """The records after the lines to skip: first line, fields, last line. Lines count from 1."""
        first = number = 0

        def counted() -> Iterator[str]:
            nonlocal first, number
            for number, line in enumerate(lines, 1):
                if number > self.skip and not (self.comment and line.startswith(self.comment)):
                    first = first or number
                    yield line

        csv.field_size_limit(sys.maxsize)
        reader = csv.reader(counted(), delimiter=self.delimiter or ",", strict=True)
        try:
            for fields in reader:
                if fields or len(self.columns) < 2:  # an empty line is a missing value, or nothing
                    yield first, fields or [""], number
                first = 0
        except csv.Error as error:
            if cut_off:
                return
            what = "a quote opened here is not closed" if "end of data" in str(error) else str(error)
            raise Located(f"{str(self.path)!r}, line {first:,}: {what}") from None

    def describe(self, titles: list[str], records: list[tuple[int, list[str], int]]) -> None:
        """Set `columns` from their values in the head."""
        for line, fields, _ in records:
            if fault := self.width_fault(line, fields, len(titles)):
                raise Located(fault)
        self.n_rows_of_head = len(records)
        self.missing_text = set(self.missing)
        self.seen_missing: set[str] = set()
        columns = [_Values(self, c, records) for c in range(len(titles))]
        if self.reading.decimal is None and self.delimiter != ",":
            commas = sum(bool(re.fullmatch(r"\s*[+-]?\d*,\d+([eE][+-]?\d+)?\s*", v)) for c in columns for v in c.values)
            if commas and not any("." in v and _is_number(v) for c in columns for v in c.values):
                self.decimal = ","
                self.found.append("decimal ','")
        for column in columns:
            column.look(self.decimal, ())
        common = sorted({v for c in columns if c.n_good for v in c.bad if v in COMMON})
        if common:
            self.missing += common
            self.missing_text.update(common)
            self.found.append(f"missing: {', '.join(map(repr, common))}")
            for column in columns:
                column.look(self.decimal, common)
        units = [c for c in columns if c.n_good and c.first_is_bad and len(c.bad) == 1]
        if units and len(records) > 1 and not any(c.first_is_good for c in columns):
            line, fields, last = records[0]
            self.found.append(f"line {line} left out, as units: {', '.join(fields)}")
            self.skip = last
            self.n_rows_of_head -= 1
            for column in units:
                column.bad.clear()
        for (name, why_not), title, column in zip(named(titles).items(), titles, columns, strict=True):
            self.columns[name] = column.described(title, why_not)
        if len(self.columns) == 1 and any(not "".join(fields) for _, fields, _ in records):
            self.said.append("empty lines are missing values")

    def query(self, names: Sequence[str], carry: str | None, *, rare: bool) -> str:
        wanted = set(names)
        types, chosen = [], []
        for name, column in self.columns.items():
            learned = name in wanted
            truth = column.type == "boolean"
            kind = "VARCHAR" if carry or not learned else "BOOLEAN" if truth else "DOUBLE"
            types.append(f"{_text(name)}: '{kind}'")
            value = _name(name)
            if learned and carry:
                value = f"CASE WHEN trim({value}) IN ({', '.join(map(_text, self.missing))}) THEN NULL ELSE {value} END"
                value = f"replace({value}, ',', '.')" if self.decimal == "," else value
                value = f"CAST({value} AS {'BOOLEAN' if truth else 'DOUBLE'})"
            if learned and truth:  # a cast to DOUBLE would become one of the text
                value = f"CASE WHEN {value} THEN 1.0 WHEN NOT {value} THEN 0.0 END::DOUBLE"
            if learned or carry:
                chosen.append(f"{value} AS {_name(name)}")
        missing = self.missing if rare else [text for text in self.missing if text in self.seen_missing]
        nulls = [""] if carry else list(dict.fromkeys(["", *missing, *(f" {text}" for text in missing)]))
        options = {
            "auto_detect": "false",
            "delim": _text(self.delimiter or ","),
            "quote": "'\"'",
            "escape": "'\"'",
            "header": "false",
            "skip": str(self.skip),
            "strict_mode": "true",
            "compression": _text(self.compression or "none"),
            "columns": f"{{{', '.join(types)}}}",
            "nullstr": f"[{', '.join(map(_text, nulls))}]",
            "allow_quoted_nulls": "false" if carry else "true",
        }
        if rare:
            options["max_line_size"] = str(LINE_BYTES)
        if self.decimal != "." and not carry:
            options["decimal_separator"] = _text(self.decimal)
        if self.comment:
            options["comment"] = _text(self.comment)
        settings = ", ".join(f"{key} = {value}" for key, value in options.items())
        return f"SELECT {', '.join(chosen)} FROM read_csv({_text(str(self.data))}, {settings})"

    def fault(self, names: Sequence[str]) -> str | None:
        order, width = list(self.columns), len(self.columns)
        learned = [(order.index(name), name) for name in names]
        truths = {name for name in names if self.columns[name].type == "boolean"}
        with self.lines() as lines:
            try:
                for line, fields, _ in self.records(lines):
                    place = f"{str(self.path)!r}, line {line:,}"
                    if fault := self.width_fault(line, fields, width):
                        return fault
                    if any("\ufffd" in field for field in fields):
                        return f"{place} is not UTF-8; --encoding cp1252 may read it"
                    for c, name in learned:
                        value = fields[c].strip()
                        if value in self.missing_text:
                            continue
                        right = value.lower() in BOOLEANS if name in truths else _is_number(value, self.decimal)
                        if not right:
                            hint = f"; --missing {value!r} if it is none" if value in COMMON else ""
                            return f"{place}: {_shown(value)} in column {name!r} is no number{hint}"
            except Located as error:
                return str(error)
        return None

    def width_fault(self, line: int, fields: list[str], width: int) -> str | None:
        """What is wrong with the number of fields of a record. A delimiter at its end is not."""
        if len(fields) == width or (len(fields) == width + 1 and not fields[-1]):
            return None
        hint = "; --comment '#' leaves out such lines" if fields[0].startswith("#") else ""
        return f"{str(self.path)!r}, line {line:,} has {_n(len(fields), 'field')}, not {width}{hint}"

    def place(self, row: int) -> str:
        with self.lines() as lines:
            line, _, _ = next(itertools.islice(self.records(lines), row, None))
        return f"{str(self.path)!r}, line {line:,}"


class Tsv(Csv):
    """Rows of fields with tabs between them."""

    delimiter = "\t"


class _Values:
    """The values of a column in the head of a file."""

    def __init__(self, table: Csv, c: int, records: list[tuple[int, list[str], int]]) -> None:
        self.table = table
        self.lines = [line for line, fields, _ in records if c < len(fields)]
        self.values = [fields[c].strip() for _, fields, _ in records if c < len(fields)]

    def look(self, decimal: str, more: Iterable[str]) -> None:
        """Count numbers and others; `more` are missing values that were found meanwhile."""
        missing = self.table.missing_text
        try:  # most columns hold numbers only
            plain = (
                decimal == "." and all(map(math.isfinite, map(float, self.values))) and "_" not in "".join(self.values)
            )
        except ValueError:
            plain = False
        there = Counter(self.values[:1] if plain else self.values)
        self.n_missing = sum(n for value, n in there.items() if value in missing)
        self.table.seen_missing |= missing & set(there)
        self.truths = {value.lower() for value in there if value not in missing} <= BOOLEANS
        self.bad = {v: n for v, n in there.items() if v not in missing and not _is_number(v, decimal)}
        self.n_good = len(self.values) - self.n_missing - sum(self.bad.values())
        first = self.values[0] if self.values else ""
        self.first_is_bad, self.first_is_good = first in self.bad, first not in self.bad and first not in missing

    def described(self, title: str, why_not: str) -> Column:
        """The column as its table knows it."""
        n = len(self.values)
        empty = self.n_missing == n
        truths, n_bad = self.truths and not empty, sum(self.bad.values())
        numeric = truths or not self.bad
        if not numeric:
            found = [(line, value) for line, value in zip(self.lines, self.values, strict=True) if value in self.bad]
            why_not = why_not or _why_not(found, self.n_good + n_bad)
        elif empty and n and not title:
            why_not = "it has no name"
        of = "" if self.table.complete else f" of the first {n:,}"
        kind = "empty" if empty else "boolean" if truths else "number" if numeric else "text"
        return Column(title, kind, numeric, empty, why_not, f"{self.n_missing:,}{of}")


class JsonLines(Text):
    """An object of JSON in each line."""

    kind = "JSON lines, an object with names and values in each"

    def head(self, text: io.StringIO) -> None:
        seen: dict[str, list[tuple[int, Any]]] = {}
        n = 0
        for number, line in enumerate(text.readlines(), 1):
            if not line.strip() or (not self.complete and not line.endswith("\n")):
                continue
            n += 1
            for name, value in self.parsed(line, number).items():
                seen.setdefault(name, []).append((number, value))
        self.n_rows_of_head = n
        for (name, why_not), title in zip(named(list(seen)).items(), seen, strict=True):
            values = [(number, value) for number, value in seen[title] if value is not None]
            others = [(number, value) for number, value in values if not isinstance(value, (int, float))]
            numeric = not others
            kind = "number" if values and numeric else "other" if values else "empty"
            missing = f"{n - len(values):,}" + ("" if self.complete else f" of the first {n:,}")
            why_not = why_not or _why_not(others, len(values))
            self.columns[name] = Column(title, kind, numeric, not values, why_not, missing)

    def parsed(self, line: str, number: int) -> dict[str, Any]:
        """An object; `Located` if it is none."""
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise Located(f"{str(self.path)!r}, line {number:,} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise Located(f"{str(self.path)!r}, line {number:,} is no object of names and values")
        return row

    def query(self, names: Sequence[str], carry: str | None, *, rare: bool) -> str:
        wanted = set(names)
        types = [f"{_text(c.title)}: '{'DOUBLE' if name in wanted else 'JSON'}'" for name, c in self.columns.items()]
        chosen = []
        for name, column in self.columns.items():
            value = _name(column.title)
            if name not in wanted:
                value = f"CAST({value} AS VARCHAR)" if carry == ".jsonl" else f"{value} ->> '$'"
            if name in wanted or carry:
                chosen.append(f"{value} AS {_name(name)}")
        settings = f"format = 'newline_delimited', columns = {{{', '.join(types)}}}"
        settings += f", maximum_object_size = {LINE_BYTES}" if rare else ""
        if self.compression:
            settings += f", compression = {_text(self.compression)}"
        return f"SELECT {', '.join(chosen)} FROM read_json({_text(str(self.data))}, {settings})"

    def fault(self, names: Sequence[str]) -> str | None:
        titles = [self.columns[name].title for name in names]
        with self.lines() as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    row = self.parsed(line, number)
                except Located as error:
                    return str(error)
                for title in titles:
                    value = row.get(title)
                    if value is not None and not isinstance(value, (int, float)):
                        return f"{str(self.path)!r}, line {number:,}: {_shown(value)} in column {title!r} is no number"
        return None

    def place(self, row: int) -> str:
        with self.lines() as lines:
            there = (number for number, line in enumerate(lines, 1) if line.strip())
            return f"{str(self.path)!r}, line {next(itertools.islice(there, row, None)):,}"


def _why_not(others: Sequence[tuple[int, Any]], n: int) -> str:
    """Why a column with these values that are no numbers, of `n` values, is not learned."""
    if not others or len(others) >= MANY * n:
        return "not numbers" if others else ""
    line, value = others[0]
    more = f" and {len(others) - 1:,} more" if len(others) > 1 else ""
    return f"numbers but for {_shown(value)} in line {line:,}{more}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:20]}... of {len(text):,} characters"


def _is_number(text: str, decimal: str = ".") -> bool:
    if decimal != ".":
        text = text.replace(".", "_").replace(decimal, ".")
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text and text.isascii()


def _n(n: int, thing: str) -> str:
    return f"{n:,} {thing}" + ("" if n == 1 else "s")


def _text(value: str) -> str:
    """A string of SQL."""
    return "'" + value.replace("'", "''") + "'"


def _name(value: str) -> str:
    """A name of SQL."""
    return '"' + value.replace('"', '""') + '"'


@functools.lru_cache(maxsize=1)
def database(process: int) -> Any:
    """One for all files of a process: its threads take longer to start than a small file to be read."""
    import duckdb

    never = ("autoinstall_known_extensions", "autoload_known_extensions")  # what it does not need
    settings: dict[str, Any] = {"preserve_insertion_order": True, "threads": _kernels.max_threads(), "temp_directory": ""}
    return duckdb.connect(config={**settings, **dict.fromkeys(never, False)})


def duckdb_for(path: Path) -> Any:
    try:
        import duckdb
    except ImportError:
        raise ImportError(f"{path.suffix} files need duckdb: pip install 'bncpu[io]'") from None
    return duckdb
