"""Tables to ask about: real ones from CSV files, or made up; and a query engine over them (paper section 5.3).

The engine is DuckDB (extra `synth`): its CSV reader infers types, its decimals are exact, and a record can carry the
SQL that anyone can run again. Polars brings three times the bytes and its expressions don't fit in a record.
"""

from __future__ import annotations

import csv
import re
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from decimal import Decimal
from io import StringIO
from pathlib import Path
from random import Random
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from plait.synth.table_themes import THEMES, Theme

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

Kind = Literal["text", "integer", "decimal", "date", "boolean"]
Value = str | int | Decimal | date | bool | None
ROW = "_row"  # the engine's column of row numbers, from 1
_KINDS: dict[str, Kind] = {"BOOLEAN": "boolean", "DATE": "date", "VARCHAR": "text"}
_PLAIN_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")


@dataclass(frozen=True)
class Column:
    name: str
    kind: Kind

    @property
    def is_number(self) -> bool:
        return self.kind in ("integer", "decimal")


@dataclass(frozen=True)
class Table:
    """`rows` hold str, int, Decimal, date, bool or None, by the column's kind. The first column names the rows."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Value, ...], ...]
    source: dict[str, Any] = field(default_factory=dict)

    def cell(self, row: int, column: str) -> Value:
        """`row` counts from 1."""
        return self.rows[row - 1][[c.name for c in self.columns].index(column)]

    def as_dict(self) -> dict[str, Any]:
        """JSON-like; `from_dict` reads it."""
        columns = [[column.name, column.kind] for column in self.columns]
        rows = [[None if value is None else show(value) for value in row] for row in self.rows]
        return {"title": self.title, "columns": columns, "rows": rows, "source": self.source}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Table:
        columns = tuple(Column(name, kind) for name, kind in values["columns"])
        rows = tuple(
            tuple(_parse(text, c.kind) for c, text in zip(columns, row, strict=True)) for row in values["rows"]
        )
        return cls(values["title"], columns, rows, values["source"])


def show(value: Value) -> str:
    """A cell as it is written in tables and answers."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def _parse(text: str | None, kind: Kind) -> Value:
    if text is None:
        return None
    if kind == "boolean":
        return text == "yes"
    if kind == "date":
        return date.fromisoformat(text)
    return int(text) if kind == "integer" else Decimal(text) if kind == "decimal" else text


def markdown(table: Table) -> str:
    lines = [[column.name for column in table.columns], ["---"] * len(table.columns)]
    lines += [[show(value).replace("|", "\\|") for value in row] for row in table.rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def csv_text(table: Table) -> str:
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([column.name for column in table.columns])
    writer.writerows([[show(value) for value in row] for row in table.rows])
    return text.getvalue().rstrip("\n")


def generate_table(random: Random) -> Table:
    """A made-up table: 4 to 16 rows whose names differ, and 3 to 6 further columns of one theme."""
    theme: Theme = random.choice(THEMES)
    others = random.sample(theme.columns, random.randint(min(3, len(theme.columns)), min(6, len(theme.columns))))
    names = random.sample(theme.names, min(random.randint(4, 16), len(theme.names)))
    columns = (Column(theme.key, "text"), *(Column(spec.name, _spec_kind(spec.values)) for spec in others))
    rows = tuple((name, *(_draw(spec.values, random) for spec in others)) for name in names)
    return Table(theme.title, columns, rows, {"kind": "generated", "theme": theme.title})


def _spec_kind(values: tuple[Any, ...]) -> Kind:
    if isinstance(values[0], bool):
        return "boolean"
    by_type: dict[type, Kind] = {int: "integer", float: "decimal", date: "date", str: "text"}
    return by_type[type(values[0])]


def _draw(values: tuple[Any, ...], random: Random) -> Value:
    """Words and booleans are listed; numbers and dates are a range."""
    low = values[0]
    if isinstance(low, bool | str):
        return random.choice(values)
    if isinstance(low, int):
        return random.randint(low, values[1])
    if isinstance(low, float):
        return Decimal(random.randint(round(low * 100), round(values[1] * 100))).scaleb(-2)
    return low + timedelta(days=random.randint(0, (values[1] - low).days))


def read_csv(path: Path, *, max_rows: int = 40, max_columns: int = 8) -> Table:
    """The head of a CSV file with a header, its types inferred by DuckDB.

    Numbers must be written plainly (no exponent) to count as such, so that every answer is exact; the rest is text.
    Raises ValueError for a file that isn't a table.
    """
    duckdb = _duckdb()
    try:
        typed = duckdb.connect().read_csv(str(path), header=True, sample_size=20_000)
        raw = duckdb.connect().read_csv(str(path), header=True, sample_size=20_000, all_varchar=True)
        names, types = list(raw.columns), [str(kind) for kind in typed.types]
        lines = raw.limit(max_rows).fetchall()
    except duckdb.Error as error:
        raise ValueError(f"{path} can't be read as CSV: {str(error).splitlines()[0]}") from None
    names, lines = names[:max_columns], [[text or "" for text in line[:max_columns]] for line in lines]
    if not lines or len(names) < 2 or len(typed.columns) != len(raw.columns):
        raise ValueError(f"{path} must have a header of at least two names, and rows of as many cells")
    cells = list(zip(*lines, strict=True))
    kinds = [_csv_kind(kind, column) for kind, column in zip(types, cells, strict=False)]
    values = [[_csv_value(text.strip(), kind) for text in column] for column, kind in zip(cells, kinds, strict=True)]
    columns = tuple(Column(name, kind) for name, kind in zip(names, kinds, strict=True))
    title = path.stem.replace("_", " ").replace("-", " ")
    return Table(title, columns, tuple(zip(*values, strict=True)), {"kind": "csv", "file": path.name})


def _csv_kind(inferred: str, cells: Sequence[str]) -> Kind:
    filled = [cell.strip() for cell in cells if cell.strip()]
    if inferred in ("BIGINT", "INTEGER", "DOUBLE", "HUGEINT") or inferred.startswith("DECIMAL"):
        if not filled or not all(_PLAIN_NUMBER.fullmatch(cell) for cell in filled):
            return "text"
        return "decimal" if any("." in cell for cell in filled) else "integer"
    if inferred == "DATE" and not all(re.fullmatch(r"\d{4}-\d\d-\d\d", cell) for cell in filled):
        return "text"
    if inferred == "BOOLEAN" and not {cell.lower() for cell in filled} <= {"true", "false"}:
        return "text"
    return _KINDS.get(inferred, "text")


def _csv_value(text: str, kind: Kind) -> Value:
    if not text:
        return None
    return text.lower() == "true" if kind == "boolean" else _parse(text, kind)


class TableEngine:
    """SQL over one table at a time, called `data`, with a column `_row`. Each thread has a database of its own."""

    def __init__(self) -> None:
        self._local = threading.local()

    def query(self, table: Table, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of the answer. Raises ValueError for SQL that doesn't fit the table."""
        connection = self._connection()
        try:
            if self._local.table != table:
                self._open(connection, table)
            return connection.execute(sql, list(parameters)).fetchall()
        except _duckdb().Error as error:
            self._close(connection)
            raise ValueError(f"{sql!r} can't be answered: {str(error).splitlines()[0]}") from None

    def _open(self, connection: DuckDBPyConnection, table: Table) -> None:
        """One transaction a table, never committed: a third of a small query's time was its own transaction's."""
        self._close(connection)
        connection.begin()
        self._local.is_open = True
        _load(connection, table)
        self._local.table = table

    def _close(self, connection: DuckDBPyConnection) -> None:
        if self._local.is_open:
            connection.rollback()
        self._local.table, self._local.is_open = None, False

    def _connection(self) -> DuckDBPyConnection:
        if not hasattr(self._local, "connection"):
            duckdb = _duckdb()
            connection = duckdb.connect(config={"threads": 1, "enable_external_access": False})
            connection.execute("PRAGMA disable_optimizer")  # planning, not running, is what costs on a few dozen rows
            self._local.connection, self._local.table, self._local.is_open = connection, None, False
        return self._local.connection


def _duckdb() -> ModuleType:
    try:
        import duckdb
    except ImportError:
        raise ValueError("tables need DuckDB: pip install 'plait[synth]'") from None
    return duckdb


def quoted(name: str) -> str:
    """A column's name in SQL."""
    return '"' + name.replace('"', '""') + '"'


def _load(connection: DuckDBPyConnection, table: Table) -> None:
    """A list per column, since planning a row of marks per row of the table took longer than any query on it."""
    names = [ROW, *(column.name for column in table.columns)]
    types = ["INTEGER", *(_sql_type(table, i) for i in range(len(table.columns)))]
    lists = [list(range(1, len(table.rows) + 1)), *(list(cells) for cells in zip(*table.rows, strict=True))]
    columns = (
        f"unnest(${i}::{kind}[]) AS {quoted(name)}"
        for i, (name, kind) in enumerate(zip(names, types, strict=True), start=1)
    )
    connection.execute(f"CREATE TABLE data AS SELECT {', '.join(columns)}", lists)


def _sql_type(table: Table, index: int) -> str:
    kind = table.columns[index].kind
    if kind != "decimal":
        return {"text": "VARCHAR", "integer": "BIGINT", "date": "DATE", "boolean": "BOOLEAN"}[kind]
    return f"DECIMAL(28, {_places(row[index] for row in table.rows)})"


def _places(values: Iterable[Value]) -> int:
    """Digits behind the point of the longest."""
    return max((-int(value.as_tuple().exponent) for value in values if isinstance(value, Decimal)), default=0)
