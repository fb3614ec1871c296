"""Questions about a table whose answers a query engine computes: extraction, aggregation, attribution (section 5.3).

Every question carries its SQL, the answer, and its evidence: the rows (from 1) and columns that the answer rests on.
A form gives no question where the table makes it ambiguous: two rows of one name, a tie for the highest value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

from plait.synth.tables import ROW, Column, Table, TableEngine, quoted, show

TASKS = ("extraction", "aggregation", "attribution")


@dataclass(frozen=True)
class Question:
    """`sql` gives the answer's values as its first column; `evidence_sql` the row numbers."""

    task: str
    form: str
    text: str
    sql: str
    evidence_sql: str
    parameters: tuple[Any, ...]  # of both
    columns: tuple[str, ...]
    answer: tuple[str, ...] = ()
    rows: tuple[int, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Question:
        lists = {key: tuple(values[key]) for key in ("parameters", "columns", "answer", "rows")}
        return cls(**{**values, **lists})


def ask_about(
    table: Table, engine: TableEngine, random: Random, n: int, tasks: Sequence[str] = TASKS
) -> list[Question]:
    """Up to `n` different questions; fewer where the table has none left after some tries."""
    found: dict[str, Question] = {}
    for _ in range(4 * n):
        if len(found) == n:
            break
        drafted = random.choice(_FORMS[random.choice(tasks)])(table, random)
        if drafted is not None and drafted.text not in found:
            answered = answer_by_query(drafted, table, engine)
            if answered is not None:
                found[answered.text] = answered
    return list(found.values())


def answer_by_query(question: Question, table: Table, engine: TableEngine) -> Question | None:
    """The question with answer and rows from the engine; None if there is no answer, or too many to list."""
    parameters = question.parameters
    values = engine.query(table, question.sql, parameters)
    is_same = question.evidence_sql == question.sql
    rows = values if is_same else engine.query(table, question.evidence_sql, parameters)
    answer = tuple(show(value) for value, *_ in values)
    if not answer or not rows or len(answer) > 8 or "" in answer:
        return None
    if question.form in _SINGLE and len(answer) != 1:
        return None
    return Question(**{**asdict(question), "answer": answer, "rows": tuple(row for (row,) in rows)})


Form = Callable[[Table, Random], Question | None]


def _value_of(table: Table, random: Random) -> Question | None:
    row, column, key = random.randrange(len(table.rows)), random.choice(table.columns[1:]), table.columns[0]
    name = show(table.rows[row][0])
    if not name:
        return None
    text = random.choice(
        (
            f"What is the value of {column.name!r} for {name}?",
            f"Give {column.name!r} of the {key.name!r} {name}.",
            f"Look up {name}: what does the column {column.name!r} say?",
        )
    )
    where = f"WHERE {quoted(key.name)}::VARCHAR = $1"
    return _question("extraction", "value", text, column.name, where, (name,), (key, column))


def _names_where(table: Table, random: Random) -> Question | None:
    key, column = table.columns[0], random.choice(table.columns[1:])
    threshold = random.choice(table.rows)[table.columns.index(column)]
    if threshold is None:
        return None
    value = show(threshold)
    if column.is_number:
        sign, words = random.choice(((">", "greater than"), ("<", "less than")))
    elif column.kind == "date":
        sign, words = random.choice(((">", "later than"), ("<", "earlier than")))
    else:
        sign, words = "=", "equal to"
        value = value if column.kind != "boolean" else str(threshold).lower()
    text = f"List every {key.name!r} whose {column.name!r} is {words} {show(threshold)}."
    where = f"WHERE {quoted(column.name)} {sign} $1::{_CAST[column.kind]}"
    return _question("extraction", "names_where", text, key.name, where, (value,), (key, column))


def _total(table: Table, random: Random) -> Question | None:
    column = _number_column(table, random)
    if column is None:
        return None
    name = quoted(column.name)
    form, words, sql = random.choice(
        (
            ("sum", "What is the total of {c} over all rows?", f"sum({name})"),
            (
                "average",
                "What is the average of {c} over all rows, rounded to two decimals?",
                f"round(avg({name})::DECIMAL(38, 10), 2)::DECIMAL(38, 2)",
            ),
            ("highest", "What is the highest value of {c}?", f"max({name})"),
            ("lowest", "What is the lowest value of {c}?", f"min({name})"),
        )
    )
    text = words.format(c=repr(column.name))
    evidence = f"SELECT {ROW} FROM data ORDER BY 1"
    if form in ("highest", "lowest"):
        evidence = f"SELECT {ROW} FROM data WHERE {name} = (SELECT {sql} FROM data) ORDER BY 1"
    return Question("aggregation", form, text, f"SELECT {sql} FROM data", evidence, (), (column.name,))


def _count_where(table: Table, random: Random) -> Question | None:
    listed = _names_where(table, random)
    if listed is None:
        return None
    condition = listed.sql.partition(" WHERE ")[2].partition(" ORDER BY ")[0]
    text = (
        "In how many rows is " + listed.text.partition(" whose ")[2].replace("' is ", "' ", 1).removesuffix(".") + "?"
    )
    sql = f"SELECT count(*) FROM data WHERE {condition}"
    return Question("aggregation", "count", text, sql, listed.evidence_sql, listed.parameters, listed.columns[1:])


def _sum_where(table: Table, random: Random) -> Question | None:
    column = _number_column(table, random)
    groups = [c for c in table.columns[1:] if c.kind == "text"]
    if column is None or not groups:
        return None
    group = random.choice(groups)
    value = show(random.choice(table.rows)[table.columns.index(group)])
    if not value:
        return None
    text = f"Add up {column.name!r} for all rows where {group.name!r} is {value}."
    where = f"WHERE {quoted(group.name)} = $1"
    return Question(
        "aggregation",
        "sum_where",
        text,
        f"SELECT sum({quoted(column.name)}) FROM data {where}",
        f"SELECT {ROW} FROM data {where} ORDER BY 1",
        (value,),
        (group.name, column.name),
    )


def _which_is_highest(table: Table, random: Random) -> Question | None:
    column, key = _number_column(table, random), table.columns[0]
    if column is None:
        return None
    function, word = random.choice((("max", "highest"), ("min", "lowest")))
    name = quoted(column.name)
    where = f"WHERE {name} = (SELECT {function}({name}) FROM data)"
    text = f"Which {key.name!r} has the {word} {column.name!r}?"
    return _question("aggregation", "which", text, key.name, where, (), (key, column))


def _difference(table: Table, random: Random) -> Question | None:
    column, key = _number_column(table, random), table.columns[0]
    names = [show(row[0]) for row in table.rows]
    if column is None or len(set(names)) != len(names) or len(names) < 2:
        return None
    first, second = random.sample(names, 2)
    text = f"By how much do {first} and {second} differ in {column.name!r}?"
    where = f"WHERE {quoted(key.name)} IN ($1, $2)"
    name = quoted(column.name)
    return Question(
        "aggregation",
        "difference",
        text,
        f"SELECT max({name}) - min({name}) FROM data {where}",
        f"SELECT {ROW} FROM data {where} ORDER BY 1",
        (first, second),
        (key.name, column.name),
    )


def _row_that_says(table: Table, random: Random) -> Question | None:
    row, column, key = random.choice(table.rows), random.choice(table.columns[1:]), table.columns[0]
    name, value = show(row[0]), show(row[table.columns.index(column)])
    if not name or not value:
        return None
    text = f"Someone claims: the {column.name!r} of {name} is {value}. Which row of the table supports this?"
    where = f"WHERE {quoted(key.name)}::VARCHAR = $1"
    return _question("attribution", "row", text, ROW, where, (name,), (key, column))


def _rows_needed(table: Table, random: Random) -> Question | None:
    inner = _names_where(table, random)
    if inner is None:
        return None
    text = "Which rows of the table does one need to answer this? " + inner.text
    return Question(
        "attribution", "rows", text, inner.evidence_sql, inner.evidence_sql, inner.parameters, inner.columns
    )


def _column_needed(table: Table, random: Random) -> Question | None:
    inner = random.choice((_total, _which_is_highest))(table, random)
    if inner is None:
        return None
    text = "Which columns of the table does one need to answer this? " + inner.text
    sql = "SELECT unnest([" + ", ".join("'" + name.replace("'", "''") + "'" for name in inner.columns) + "])"
    return Question("attribution", "columns", text, sql, inner.evidence_sql, inner.parameters, inner.columns)


def _question(
    task: str,
    form: str,
    text: str,
    wanted: str,
    where: str,
    parameters: tuple[str, ...],
    columns: tuple[Column, ...],
) -> Question:
    wanted_sql = ROW if wanted == ROW else quoted(wanted)
    return Question(
        task,
        form,
        text,
        f"SELECT {wanted_sql} FROM data {where} ORDER BY {ROW}",
        f"SELECT {ROW} FROM data {where} ORDER BY {ROW}",
        parameters,
        tuple(column.name for column in columns),
    )


def _number_column(table: Table, random: Random) -> Column | None:
    """A column of numbers without empty cells."""
    full = [
        c for i, c in enumerate(table.columns) if i and c.is_number and all(row[i] is not None for row in table.rows)
    ]
    return random.choice(full) if full else None


_CAST = {"text": "VARCHAR", "integer": "BIGINT", "decimal": "DECIMAL(38, 12)", "date": "DATE", "boolean": "BOOLEAN"}
_SINGLE = {"value", "row", "which", "sum", "average", "highest", "lowest", "count", "sum_where", "difference"}
_FORMS: dict[str, tuple[Form, ...]] = {
    "extraction": (_value_of, _names_where),
    "aggregation": (_total, _count_where, _sum_where, _which_is_highest, _difference),
    "attribution": (_row_that_says, _rows_needed, _column_needed),
}
