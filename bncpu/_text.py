"""Text as a table, and CSV and its relatives. DuckDB reads the rows; what a file is written in is found out here.

DuckDB is told everything, and guesses nothing: it guesses from a part of the file, leaves out lines that do not fit the
guess, and takes quotes for text if that part has none.
"""

from __future__ import annotations

import codecs
import csv
import enum
import functools
import io
import itertools
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
from bncpu._tables import Column, Columnar, Located, fill, named
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

# What may surround a value. A line end or a space of another script is part of a text.
BLANKS = " \t"

# Units that look like words.
UNITS = re.compile(r"[mck]?m|m?s|min|h|k?g|[KCFVAN]|k?Wh?|[hkM]?Pa|[kMG]?Hz|eV|mol|psu|ppm|dB|px|deg|rad|USD|EUR")

# A column with fewer texts than that among its numbers is said to be one of numbers with faults.
MANY = 0.2


class TooShort(Exception):
    """A head that does not hold two records."""


class Text(Columnar):
    """A file of lines, each a row. It may be compressed with gzip, zstd or bzip2.

    DuckDB reads `data`. That is a temporary copy in UTF-8 where the file, `source`, is anything else, is compressed, or
    has lines that are no rows. `source` is read for its head, and for the place of a fault.
    """

    compression: str | None = None
    encoding = "utf-8-sig"
    one_line_end = False  # whether line ends outside of quotes are made one
    drops_lines = False  # whether DuckDB must not see all lines
    rows_only = False  # whether `data` has only rows
    n_rows_of_head = 0
    n_bytes_of_head = 1

    def read_columns(self) -> None:
        self.duckdb = duckdb_for(self.path)
        self.missing = [*MISSING, *(text.strip(" \t") for text in self.reading.missing)]
        with open(self.source, "rb") as file:
            mark = file.read(4)
        self.compression = next((name for start, name in COMPRESSIONS.items() if mark.startswith(start)), None)
        for n in HEAD_BYTES:
            with self.decompressed() as file:
                head = file.read(n)
                self.complete = not file.read(1)
            self.found: list[str] = []
            try:
                self.encoding = self.given_encoding() or self.encoding_of(head)
                text = codecs.getincrementaldecoder(self.encoding)().decode(head, final=self.complete)
                self.head(io.StringIO(text.removeprefix("\ufeff"), newline="").readlines())
                break
            except TooShort:
                self.columns = {}
                if self.complete:
                    n_skipped = self.reading.skip_rows
                    raise ValueError(
                        f"it has no more than {n_skipped:,} lines" if n_skipped else "it is empty"
                    ) from None
        else:
            raise ValueError(f"its first {HEAD_BYTES[-1]:,} bytes are one record")
        self.n_bytes_of_head = max(1, len(head))
        if self.is_copied():
            self.copy()
        self.after_head()
        if self.found:
            self.said.append(", ".join(self.found))

    @property
    def n_rows_about(self) -> int:
        """How many rows there may be."""
        return int(self.n_rows_of_head * max(1.0, self.size / self.n_bytes_of_head))

    def decompressed(self) -> Any:
        """The file as bytes, without its compression."""
        return self.arrow.input_stream(str(self.source), compression=self.compression)

    def lines(self, errors: str = "replace") -> Any:
        """The file as lines of text with their ends."""
        return io.TextIOWrapper(self.decompressed(), self.encoding, errors=errors, newline="")

    def given_encoding(self) -> str | None:
        """The encoding that was asked for."""
        given = self.reading.encoding
        if given is None:
            return None
        try:
            "".encode(given)  # fails for one of bytes, such as zlib
            return "utf-8-sig" if codecs.lookup(given).name == "utf-8" else given
        except (LookupError, TypeError, ValueError):
            raise Located(f"--encoding must be one of text that Python knows, got {given!r}") from None

    def encoding_of(self, head: bytes) -> str:
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
        return "utf-8-sig"

    def not_encoded(self) -> str:
        """What is wrong with a line that cannot be decoded."""
        if self.encoding == "utf-8-sig":
            return "is not UTF-8; --encoding cp1252 may read it"
        return f"is not {self.encoding}; --encoding may say what it is"

    def is_copied(self) -> bool:
        """Whether DuckDB needs a copy."""
        differs = self.compression is not None or self.encoding != "utf-8-sig"
        return differs or self.one_line_end or self.drops_lines or bool(set("*?[") & set(str(self.data)))

    def copy(self) -> None:
        """Let DuckDB read a temporary copy: UTF-8, and rows only."""
        stack = self.reading.temporary
        if stack is None:
            raise ValueError(f"it needs a temporary copy, as its encoding is {self.encoding}, or it is compressed")
        path, copy = stack.enter_context(temporary(tempfile.gettempdir()))
        self.rows_only = self.one_line_end or self.drops_lines
        with self.lines("strict") as lines:
            parts = self.rows_of(lines) if self.rows_only else iter(functools.partial(lines.read, 1 << 20), "")
            fill(copy, (part.encode() for part in parts), self.path)
        self.data, self.size = Path(path), os.stat(path).st_size

    def rows_of(self, lines: Iterable[str]) -> Iterator[str]:
        """What `copy` keeps."""
        raise NotImplementedError

    def head(self, lines: list[str]) -> None:
        """Set `columns` and what else the first lines tell; `TooShort` if they are too few."""
        raise NotImplementedError

    def after_head(self) -> None:
        """Look at more than the head."""

    def dtype(self, names: Sequence[str]) -> np.dtype[Any]:
        return np.dtype(np.float64)

    def record_batches(self, skipped: int, names: Sequence[str], carry: str | None) -> Iterator[Any]:
        rows, n_read = self.rows_of_a_piece(len(self.columns if carry else names)), 0
        per_row = self.n_bytes_of_head / max(1, self.n_rows_of_head)
        for effort in Effort:
            skip = n_read
            try:
                for batch in self.queried(names, carry, rows, effort):
                    n = batch.num_rows
                    if n > skip:
                        n_read += n - skip
                        self.position = min(self.size, int(n_read * per_row))
                        yield batch.slice(skip)
                    skip = max(0, skip - n)
                return
            except (self.duckdb.Error, self.arrow.ArrowException, OSError) as error:
                if effort is Effort.USUAL:
                    continue
                fault = self.fault(names)
                if fault is not None:
                    raise Located(fault) from None
                if effort is Effort.ALL or not self.can_do_more():
                    raise ValueError(str(error).partition("\n")[0]) from None

    def can_do_more(self) -> bool:
        """Whether the file may be read in another way, after it was read to its end without a fault."""
        return False

    def queried(self, names: Sequence[str], carry: str | None, rows: int, effort: Effort) -> Iterator[Any]:
        """Record batches of `rows` rows: `names` as numbers, with `carry` all others as they are."""
        raise NotImplementedError

    def asked(self, query: str, rows: int) -> Iterator[Any]:
        """Record batches of `rows` rows, in the order of the file."""
        with database(os.getpid()).cursor() as cursor:
            yield from cursor.sql(query).to_arrow_reader(rows)

    def in_order(self, columns: dict[str, Any]) -> Any:
        """A record batch of these columns, in the order of the table."""
        names = [name for name in self.columns if name in columns]
        return self.arrow.RecordBatch.from_arrays([columns[name] for name in names], names=names)

    def fault(self, names: Sequence[str]) -> str | None:
        """The first fault of the file, found by reading it again."""
        raise NotImplementedError


class Effort(enum.Enum):
    """What a query may take: what is rare costs time, so a file is read again for it."""

    USUAL = 0
    RARE = 1  # lines beyond DuckDB's limit, and missing values that the head has not
    ALL = 2  # and what reading all of the file has found


class Csv(Text):
    """Rows of fields with a delimiter between them."""

    kind = "a table of text"
    sep: str | None = None  # what a line of Excel says is between columns
    delimiter: str | None = None

    def head(self, lines: list[str]) -> None:
        given = self.reading
        self.comment, self.decimal, self.one_line_end = given.comment, given.decimal or ".", False
        top, above = given.skip_rows, []
        mark = re.fullmatch(r"sep=(.)\s*", lines[top]) if top < len(lines) else None  # Excel's
        self.sep, top = (None, top) if mark is None else (mark[1], top + 1)
        while top < len(lines) and (
            self.is_comment(lines[top]) or (not lines[top].strip() and given.header is not False)
        ):
            if lines[top].strip():
                above.append(lines[top])
            top += 1
        self.skip = top
        self.delimiter = self.delimiter_of(lines[top : top + 50])
        records = list(self.records(lines, cut_off=not self.complete))
        if not self.complete:
            records = records[:-1]
        if len(records) < (1 if self.complete else 2):
            raise TooShort
        first = records[0][1]
        if len(first) > 1:
            records = [record for record in records if record[1] != [""]]
        titles, is_header = self.titles_of(records, above)
        if is_header:
            self.skip = records.pop(0)[2]
        if records and all(len(fields) == len(titles) + 1 and not fields[-1] for _, fields, _ in records):
            titles.append("")
        ends = {line[len(line.rstrip("\r\n")) :] for _, line, inside in self.numbered(lines) if not inside}
        self.one_line_end = len(ends - {""} - ({"\r"} if not self.complete and lines[-1].endswith("\r") else set())) > 1
        self.describe(titles, records, is_header)
        # DuckDB skips records where we skip lines, and takes what follows a comment's mark anywhere for one.
        skipped = lines[: self.skip]
        self.drops_lines = self.comment is not None or any(line.count('"') % 2 for line in skipped)
        self.n_rows = self.n_rows_of_head if self.complete else None

    def is_comment(self, line: str) -> bool:
        """Whether a line above the table is a comment."""
        mark = self.comment or "#"
        texts = (*MISSING, *COMMON) if self.comment is None else ()
        return line.startswith(mark) and not any(text and line.startswith(text) for text in texts)

    def titles_of(self, records: list[tuple[int, list[str], int]], above: list[str]) -> tuple[list[str], bool]:
        """The names of the columns, and whether the first record holds them."""
        given, first = self.reading, records[0][1]
        numbers = [_is_number(field.strip(BLANKS)) for field in first]
        header = given.header
        if header is None:
            header = not all(
                number or field.strip(BLANKS) in self.missing for number, field in zip(numbers, first, strict=True)
            )
        last = above[-1].lstrip("# ").rstrip("\r\n") if above else ""
        names = [name.strip(BLANKS) for name in next(csv.reader([last], delimiter=self.delimiter or ","), [])]
        fits = len(names) == len(first) and not any(map(_is_number, names)) and (len(names) > 1 or " " not in last)
        n_comments = len(above)
        if fits and last and given.header is None and any(numbers):
            self.found.append(f"names from the comment in line {records[0][0] - 1}")
            titles, header, n_comments = names, False, n_comments - 1
        elif header:
            titles = [field.strip(BLANKS) for field in first]
            if any(numbers) and given.header is None:
                self.found.append(f"line {records[0][0]} as names (--no-header if it is a row)")
        else:
            titles = [f"x{c}" for c in range(len(first))]
            if given.header is None:
                self.found.append("no line of names (--header if its first line is one)")
        if n_comments and not given.comment:
            self.found.append(f"{_n(n_comments, 'comment line')} above the table")
        return titles, header

    def delimiter_of(self, lines: list[str]) -> str:
        """What stands between the columns."""
        given = self.reading.delimiter or type(self).delimiter
        if given is not None:
            return "\t" if given in ("\\t", "tab") else given
        if self.sep is not None:
            return self.sep
        plain = [line for line in re.sub(r'"[^"]*"', '""', "".join(lines)).splitlines() if line.strip()]
        counts = {d: [line.count(d) for line in plain] or [0] for d in DELIMITERS}
        same = [d for d in DELIMITERS if counts[d][0] and len(set(counts[d])) == 1]
        found = same[0] if same else max(reversed(DELIMITERS), key=lambda d: counts[d][0])
        if found != ",":
            self.found.append(f"delimiter {found!r}")
        return found

    def numbered(self, lines: Iterable[str]) -> Iterator[tuple[int, str, bool]]:
        """The lines after those to skip, without comments: number, line, and whether a quote is open at its end."""
        inside = False
        for number, line in enumerate(lines, 1):
            if number > self.skip and (inside or not (self.comment and line.startswith(self.comment))):
                inside ^= line.count('"') % 2 == 1
                yield number, line, inside

    def rows_of(self, lines: Iterable[str]) -> Iterator[str]:
        for _, line, inside in self.numbered(lines):
            yield line if inside or not self.one_line_end else line.rstrip("\r\n") + "\n"

    def records(self, lines: Iterable[str], cut_off: bool = False) -> Iterator[tuple[int, list[str], int]]:
        """The records after the lines to skip: first line, fields, last line. Lines count from 1."""
        first = number = 0

        def counted() -> Iterator[str]:
            nonlocal first, number
            for number, line, _ in self.numbered(lines):
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

    def describe(self, titles: list[str], records: list[tuple[int, list[str], int]], is_header: bool) -> None:
        """Set `columns` from their values in the head."""
        for line, fields, _ in records:
            if fault := self.width_fault(line, fields, len(titles)):
                raise Located(fault)
        self.n_rows_of_head = len(records)
        self.missing_text = set(self.missing)
        self.seen_missing: set[str] = set()
        columns = [_Values(self, c, records) for c in range(len(titles))]
        if self.reading.decimal is None:
            self.decimal = self.decimal_of(columns)
        for column in columns:
            column.look(self.decimal)
        common = sorted({v for c in columns if c.n_good for v in c.bad if v in COMMON})
        if common:
            self.missing += common
            self.missing_text.update(common)
            self.found.append(f"missing: {', '.join(map(repr, common))}")
            for column in columns:
                column.look(self.decimal)
        if is_header and len(records) > 1 and self.has_units(columns, records[0][1]):
            line, fields, last = records[0]
            self.found.append(f"line {line} left out, as units: {', '.join(fields)}")
            self.skip = last
            self.n_rows_of_head -= 1
            for column in columns:
                column.bad = {} if column.n_good else column.bad
        for (name, why_not), title, column in zip(named(titles).items(), titles, columns, strict=True):
            self.columns[name] = column.described(title, why_not)
        if len(self.columns) == 1 and any(not "".join(fields) for _, fields, _ in records):
            self.said.append("empty lines are missing values")

    def decimal_of(self, columns: list[_Values]) -> str:
        """What stands in front of fractions; in a table with commas between columns it is a point."""
        values = [value for column in columns for value in column.values]
        commas = [value for value in values if re.fullmatch(r"[+-]?\d*,\d+([eE][+-]?\d+)?", value)]
        if self.delimiter == "," or not commas:
            return "."
        points = [value for value in values if "." in value and _is_number(value)]
        thousands = [value for value in (points or commas) if not re.fullmatch(r"[+-]?[1-9]\d{0,2}([.,]\d{3})+", value)]
        if not thousands:
            value = (points or commas)[0]
            raise Located(f"{str(self.path)!r}: {value!r} may be a fraction or thousands; say which by --decimal")
        if points:
            return "."
        self.found.append("decimal ','")
        return ","

    @staticmethod
    def has_units(columns: list[_Values], first: list[str]) -> bool:
        """Whether the first record below the names is a line of units: no number, above numbers only."""
        units = [(c, field.strip(BLANKS)) for c, field in zip(columns, first, strict=False) if c.n_good]
        if not units or not all(c.first_is_bad and len(c.bad) == 1 for c, _ in units):
            return False
        clear = [
            bool(re.search(r"[\[\]()/^%\u00b0\u00b5\u00b2\u00b3]", text)) or bool(UNITS.fullmatch(text))
            for _, text in units
        ]
        return any(clear) if len(units) == 1 else any(clear) or all(len(text) <= 5 for _, text in units)

    def queried(self, names: Sequence[str], carry: str | None, rows: int, effort: Effort) -> Iterator[Any]:
        learned = self.asked(self.query(names, effort, numbers=True), rows)
        rest = [name for name in self.columns if name not in set(names)] if carry else []
        if not rest:
            yield from (self.in_order(dict(zip(names, batch.columns, strict=True))) for batch in learned)
            return
        # In a query of their own, so that what is missing in a number stays what it is in a text.
        others = self.asked(self.query(rest, effort, numbers=False), rows)
        for batch, other in zip(learned, others, strict=True):
            columns = dict(zip([*names, *rest], [*batch.columns, *other.columns], strict=True))
            yield self.in_order(columns)

    def query(self, names: Sequence[str], effort: Effort, *, numbers: bool) -> str:
        """SQL for the columns `names`, as numbers or as text."""
        order = list(self.columns)
        kinds = dict.fromkeys(order, "VARCHAR")
        if numbers:
            kinds |= {name: "DOUBLE" for name in names if self.columns[name].type != "boolean"}
        # Names of DuckDB's own, as its names are the same in capitals.
        types = ", ".join(f"'c{k}': '{kinds[name]}'" for k, name in enumerate(order))
        at = {name: f"c{k}" for k, name in enumerate(order)}
        chosen = [_truth(at[name]) if numbers and self.columns[name].type == "boolean" else at[name] for name in names]
        options = {
            "auto_detect": "false",
            "hive_partitioning": "false",
            "delim": sql_text(self.delimiter or ","),
            "quote": "'\"'",
            "escape": "'\"'",
            "header": "false",
            "skip": "0" if self.rows_only else str(self.skip),
            "strict_mode": "true",
            "compression": "'none'",
            "columns": f"{{{types}}}",
            "nullstr": f"[{', '.join(map(sql_text, self.nulls(effort) if numbers else ['']))}]",
            "allow_quoted_nulls": "true" if numbers else "false",
        }
        if effort is not Effort.USUAL:
            options["max_line_size"] = str(LINE_BYTES)
        if self.decimal != "." and numbers:
            options["decimal_separator"] = sql_text(self.decimal)
        settings = ", ".join(f"{key} = {value}" for key, value in options.items())
        return f"SELECT {', '.join(chosen)} FROM read_csv({sql_text(str(self.data))}, {settings})"

    def nulls(self, effort: Effort) -> list[str]:
        """The texts that are missing values, with the blanks around them that there are."""
        texts = ["", *(self.seen_missing if effort is Effort.USUAL else {*self.missing, *self.seen_missing})]
        return [
            text
            for text in dict.fromkeys(texts)
            if not any(c in text for c in (self.delimiter or ",", '"', "\n", "\r"))
        ]

    def can_do_more(self) -> bool:
        """Line ends that change after the head; missing values with blanks, which `fault` has found."""
        self.one_line_end = True
        self.copy()
        return True

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
                        return f"{place} {self.not_encoded()}"
                    for c, name in learned:
                        value = fields[c].strip(BLANKS)
                        if value in self.missing_text:
                            self.seen_missing.add(fields[c])
                            continue
                        right = value.lower() in BOOLEANS if name in truths else _is_number(value, self.decimal)
                        if not right:
                            hint = f"; --missing {value!r} if it is none" if value in COMMON else ""
                            return f"{place}: {shown(value)} in column {name!r} is no number{hint}"
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
        self.raw = [fields[c] for _, fields, _ in records if c < len(fields)]
        self.values = [value.strip(BLANKS) for value in self.raw]

    def look(self, decimal: str) -> None:
        """Count numbers and others."""
        missing = self.table.missing_text
        try:  # most columns hold numbers only
            plain = decimal == "." and not self.table.reading.missing
            plain = plain and all(map(math.isfinite, map(float, self.values)))
            plain = plain and "_" not in "".join(self.values)
        except ValueError:
            plain = False
        there = Counter(self.values[:1] if plain else self.values)
        self.n_missing = sum(n for value, n in there.items() if value in missing)
        if self.n_missing:
            self.table.seen_missing.update(
                raw for raw, value in zip(self.raw, self.values, strict=True) if value in missing
            )
        self.truths = {value.lower() for value in there if value not in missing} <= BOOLEANS
        self.bad = {v: n for v, n in there.items() if v not in missing and not _is_number(v, decimal)}
        self.n_good = len(self.values) - self.n_missing - sum(self.bad.values())
        self.first_is_bad = bool(self.values) and self.values[0] in self.bad

    def described(self, title: str, why_not: str) -> Column:
        """The column as its table knows it."""
        n = len(self.values)
        empty = self.n_missing == n
        truths, n_bad = self.truths and not empty, sum(self.bad.values())
        numeric = truths or not self.bad
        if not numeric:
            found = [(line, value) for line, value in zip(self.lines, self.values, strict=True) if value in self.bad]
            why_not = why_not or why_not_learned(found, self.n_good + n_bad)
        elif empty and n and not title:
            why_not = "it has no name"
        of = "" if self.table.complete else f" of the first {n:,}"
        kind = "empty" if empty else "boolean" if truths else "number" if numeric else "text"
        return Column(title, kind, numeric, empty, why_not, f"{self.n_missing:,}{of}")


def why_not_learned(others: Sequence[tuple[int, Any]], n: int) -> str:
    """Why a column with these values that are no numbers, of `n` values, is not learned."""
    if not others or len(others) >= MANY * n:
        return "not numbers" if others else ""
    line, value = others[0]
    more = f" and {len(others) - 1:,} more" if len(others) > 1 else ""
    return f"numbers but for {shown(value)} in line {line:,}{more}"


def shown(value: Any) -> str:
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


def _truth(name: str) -> str:
    """SQL for a column of texts that say true or false."""
    word = f"lower(trim({name}))"
    cases = f"WHEN {name} IS NULL THEN NULL WHEN {word} = 'true' THEN 1.0 WHEN {word} = 'false' THEN 0.0"
    return f"CASE {cases} ELSE error('no boolean') END::DOUBLE AS {name}"


def sql_text(value: str) -> str:
    """A string of SQL."""
    return "'" + value.replace("'", "''") + "'"


@functools.lru_cache(maxsize=1)
def database(process: int) -> Any:
    """One for all files of a process: its threads take longer to start than a small file to be read."""
    import duckdb

    never = ("autoinstall_known_extensions", "autoload_known_extensions")  # what it does not need
    settings: dict[str, Any] = {
        "preserve_insertion_order": True,
        "threads": _kernels.max_threads(),
        "temp_directory": "",
    }
    return duckdb.connect(config={**settings, **dict.fromkeys(never, False)})


def duckdb_for(path: Path) -> Any:
    try:
        import duckdb
    except ImportError:
        raise ImportError(f"{path.suffix} files need duckdb: pip install 'bncpu[io]'") from None
    return duckdb
