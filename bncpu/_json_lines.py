"""JSON lines: an object with names and values in each. DuckDB reads the rows."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from bncpu._tables import Column, Located, named
from bncpu._text import LINE_BYTES, Effort, Text, TooShort, shown, sql_text, why_not_learned


class JsonLines(Text):
    """An object of JSON in each line."""

    kind = "JSON lines, an object with names and values in each"

    def head(self, lines: list[str]) -> None:
        self.seen: dict[str, list[tuple[int, Any]]] = {}
        n = 0
        for number, line in enumerate(lines, 1):
            if not line.strip() or (not self.complete and number == len(lines)):
                continue
            n += 1
            for name, value in self.parsed(line, number).items():
                self.seen.setdefault(name, []).append((number, value))
        if not n:
            raise TooShort
        self.n_rows_of_head = n
        self.one_line_end = any(line.endswith("\r") for line in lines)
        self.n_rows = n if self.complete else None

    def rows_of(self, lines: Iterable[str]) -> Iterator[str]:
        return (line.rstrip("\r\n") + "\n" for line in lines)

    def after_head(self) -> None:
        """The names and types of all objects: those of one may come late."""
        n = self.n_rows_of_head
        query = "json_group_structure(json), count(*) FILTER (json_type(json) <> 'OBJECT')"
        try:
            structure, n_others = next(self.asked(f"SELECT {query} FROM {self.objects(Effort.RARE)}", 1)).columns
        except (self.duckdb.Error, self.arrow.ArrowException) as error:
            raise Located(self.fault(()) or str(error).partition("\n")[0]) from None
        if n_others[0].as_py():
            raise Located(self.fault(()) or f"{str(self.path)!r} has lines that are no objects")
        kinds = json.loads(structure[0].as_py())
        columns = {}
        titles = [*self.seen, *(name for name in kinds if name not in self.seen)]
        for (name, why_not), title in zip(named(titles).items(), titles, strict=True):
            values = [(number, value) for number, value in self.seen.get(title, ()) if value is not None]
            others = [(number, value) for number, value in values if not isinstance(value, (int, float))]
            kind = kinds.get(title)
            numeric, empty = kind in ("DOUBLE", "BIGINT", "UBIGINT", "HUGEINT", "BOOLEAN", "NULL"), kind == "NULL"
            missing = f"{n - len(values):,}" + ("" if self.complete else f" of the first {n:,}")
            if not numeric:
                why_not = why_not or why_not_learned(others, len(values)) or self.late(title, bool(values))
            about = "empty" if empty else "number" if numeric else "other"
            columns[name] = Column(title, about, numeric, empty, why_not, missing)
        self.columns = columns

    def late(self, title: str, are_numbers: bool) -> str:
        """Why a column is not learned that has only numbers in the head, or nothing."""
        if not are_numbers:
            return "not numbers"
        self.columns = {title: Column(title, "number")}
        fault = self.fault([title]) or ""
        found = re.search(r", (line [\d,]+): (.*) in column ", fault, flags=re.DOTALL)
        return f"numbers but for {found[2]} in {found[1]}" if found else "not numbers"

    def objects(self, effort: Effort) -> str:
        """The file as a table of DuckDB with the column `json`."""
        settings = "format = 'newline_delimited', hive_partitioning = false"
        settings += f", maximum_object_size = {LINE_BYTES}" if effort is not Effort.USUAL else ""
        return f"read_json_objects({sql_text(str(self.data))}, {settings})"

    def parsed(self, line: str, number: int) -> dict[str, Any]:
        """An object; `Located` if it is none."""
        place = f"{str(self.path)!r}, line {number:,}"

        def once(entries: list[tuple[str, Any]]) -> dict[str, Any]:
            if len(dict(entries)) < len(entries):
                raise ValueError("a name stands twice")
            return dict(entries)

        def refused(constant: str) -> None:
            raise ValueError(f"{constant} is no number of JSON")

        try:
            row = json.loads(line, object_pairs_hook=once, parse_constant=refused)
        except (ValueError, RecursionError) as error:
            raise Located(f"{place} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise Located(f"{place} is no object of names and values")
        return row

    def queried(self, names: Sequence[str], carry: str | None, rows: int, effort: Effort) -> Iterator[Any]:
        rest = [name for name in self.columns if name not in set(names)] if carry else []

        def values(of: Sequence[str], how: str) -> str:
            paths = [sql_text("/" + self.columns[name].title.replace("~", "~0").replace("/", "~1")) for name in of]
            return f"{how}(json, [{', '.join(paths)}])" if of else "NULL"

        text = "json_extract" if carry and carry.startswith((".jsonl", ".ndjson")) else "json_extract_string"
        chosen = [f"v[{k}]::DOUBLE" for k in range(1, 1 + len(names))]
        chosen += [f"w[{k}]::VARCHAR" for k in range(1, 1 + len(rest))]
        inner = f"SELECT {values(names, 'json_extract')} AS v, {values(rest, text)} AS w FROM {self.objects(effort)}"
        numbered = ", ".join(f"{value} AS c{k}" for k, value in enumerate(chosen))
        for batch in self.asked(f"SELECT {numbered} FROM ({inner})", rows):
            yield self.in_order(dict(zip([*names, *rest], batch.columns, strict=True)))

    def fault(self, names: Sequence[str]) -> str | None:
        titles = [self.columns[name].title for name in names]
        with self.lines() as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                if "\ufffd" in line:
                    return f"{str(self.path)!r}, line {number:,} {self.not_encoded()}"
                try:
                    row = self.parsed(line, number)
                except Located as error:
                    return str(error)
                for title in titles:
                    value = row.get(title)
                    if value is not None and not isinstance(value, (int, float)):
                        return f"{str(self.path)!r}, line {number:,}: {shown(value)} in column {title!r} is no number"
        return None

    def place(self, row: int) -> str:
        with self.lines() as lines:
            there = (number for number, line in enumerate(lines, 1) if line.strip())
            return f"{str(self.path)!r}, line {next(itertools.islice(there, row, None)):,}"
