"""Table QA: questions on tables, or on paragraphs made of them, answered by a query engine (paper section 5.3)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from random import Random
from typing import Any, Literal

from plait.data import Document
from plait.synth.pipeline import Ask, Dropped, ordered_map
from plait.synth.record import Record, random_for
from plait.synth.table_questions import TASKS, Question, answer_by_query, ask_about
from plait.synth.table_text import read_back_request, verbalise_request, wrong_paragraph, wrong_reading
from plait.synth.tables import Column, Table, TableEngine, csv_text, generate_table, markdown

Layout = Literal["markdown", "csv", "paragraphs"]
_QUESTION = "\n\nQuestion: "
_BARREN_TABLES = 200  # tables in a row that give no question, before that is an error


class TableQA:
    """`layouts` without `paragraphs` need no model: the answers are the engine's, not a model's."""

    name = "table_qa"

    def __init__(
        self,
        *,
        tables: Sequence[Table] = (),
        layouts: Sequence[Layout] = ("markdown", "csv"),
        tasks: Sequence[str] = TASKS,
        questions_per_table: int = 4,
        distractors: Sequence[Document] = (),
        max_distractors: int = 4,
        reads_back: bool = True,
    ) -> None:
        """`tables` are asked about in turn; without any they are made up. `distractors` are cut to paragraphs.

        `reads_back`: a model reads every paragraph's cells back and must get all of them right.
        """
        unknown = sorted(set(tasks) - set(TASKS)) + sorted(set(layouts) - {"markdown", "csv", "paragraphs"})
        if unknown or not tasks or not layouts or questions_per_table < 1:
            raise ValueError(f"tasks={tasks} and layouts={layouts} must be among {TASKS} and markdown, csv, paragraphs")
        self.tables = tuple(tables)
        self.layouts = tuple(layouts)
        self.tasks = tuple(tasks)
        self.questions_per_table = questions_per_table
        self.reads_back = reads_back
        self.max_distractors = max_distractors
        self._paragraphs = [p for document in distractors for p in paragraphs_of(document.text)]
        self._engine = TableEngine()

    def settings(self) -> dict[str, Any]:
        return {
            "tables": [table.source for table in self.tables] or "generated",
            "layouts": self.layouts,
            "tasks": self.tasks,
            "questions_per_table": self.questions_per_table,
            "distractor_paragraphs": len(self._paragraphs),
            "max_distractors": self.max_distractors,
            "reads_back": self.reads_back,
        }

    def prompts(self, n: int, seed: int) -> Iterator[Record]:
        """Tables are asked about in two threads, since the engine leaves Python's lock; the order is that of one."""

        def ask(index: int) -> tuple[Table, list[Question], Random]:
            random = random_for("table_qa", seed, index)
            table = self.tables[index % len(self.tables)] if self.tables else generate_table(random)
            return table, ask_about(table, self._engine, random, self.questions_per_table, self.tasks), random

        made = barren = 0
        for table, questions, random in ordered_map(ask, count(), 2, chunk=4):
            barren = 0 if questions else barren + 1
            if barren == _BARREN_TABLES:
                raise ValueError(f"{barren} tables gave no question of {self.tasks}: give tables with more columns")
            for question in questions[: n - made]:
                yield self._prompt(f"table_qa-{seed}-{made}", table, question, random, seed)
                made += 1
            if made == n:
                return

    def _prompt(self, identity: str, table: Table, question: Question, random: Random, seed: int) -> Record:
        names = [str(row[0]).casefold() for row in table.rows]
        free = random.sample(self._paragraphs, min(self.max_distractors, len(self._paragraphs)))
        free = [text for text in free if not any(name in text.casefold() for name in names)]
        facts = {
            "table": table.as_dict(),
            "question": question.as_dict(),
            "layout": random.choice(self.layouts),
            "before": free[: len(free) // 2],
            "after": free[len(free) // 2 :],
            "names_evidence": random.random() < 0.5 and question.task != "attribution",
        }
        return Record(identity, self.name, facts=facts, source={**table.source, "seed": seed})

    def respond(self, record: Record, ask: Ask) -> Sequence[Record]:
        table = Table.from_dict(record.facts["table"])
        question = Question.from_dict(record.facts["question"])
        if record.facts["layout"] == "paragraphs":
            requests = [verbalise_request(table, row, record.source["seed"]) for row in range(1, len(table.rows) + 1)]
            record = record.with_facts(paragraphs=[ask(request)[0].strip() for request in requests])
        prompt = user_text(table, question, record.facts)
        answer = answer_text(question, names_evidence=record.facts["names_evidence"])
        return [
            record.with_messages({"role": "user", "content": prompt}, {"role": "assistant", "content": answer}),
        ]

    def check(self, record: Record, ask: Ask) -> Record:
        """Computes the answer anew, compares what the messages say with it, and reads paragraphs back."""
        table = Table.from_dict(record.facts["table"])
        question = Question.from_dict(record.facts["question"])
        try:
            computed = answer_by_query(question, table, self._engine)
        except ValueError as error:
            raise Dropped(f"answer isn't the engine's: {error}") from None
        if computed is None or (computed.answer, computed.rows) != (question.answer, question.rows):
            found = None if computed is None else (computed.answer, computed.rows)
            raise Dropped(f"answer isn't the engine's: {question.answer} {question.rows}, computed {found}")
        if record.answer != answer_text(question, names_evidence=record.facts["names_evidence"]):
            raise Dropped(f"answer text isn't the answer: {record.answer}")
        if record.messages[0]["content"] != user_text(table, question, record.facts):
            raise Dropped("context isn't the table: the prompt differs from what the facts give")
        self._check_distractors(table, record.facts)
        if record.facts["layout"] == "paragraphs":
            self._check_paragraphs(table, record.facts["paragraphs"], ask)
        return record.with_scores(computed=1.0)

    def _check_distractors(self, table: Table, facts: dict[str, Any]) -> None:
        around = "\n".join([*facts["before"], *facts["after"]]).casefold()
        for row in table.rows:
            if str(row[0]).casefold() in around:
                raise Dropped(f"distractor names a row: {row[0]}")

    def _check_paragraphs(self, table: Table, paragraphs: Sequence[str], ask: Ask) -> None:
        if len(paragraphs) != len(table.rows):
            raise Dropped("cell missing in the text: not one paragraph a row")
        for row, paragraph in enumerate(paragraphs, start=1):
            wrong = wrong_paragraph(table, row, paragraph)
            if wrong is None and self.reads_back:
                wrong = wrong_reading(table, row, ask(read_back_request(table, row, paragraph))[0])
            if wrong is not None:
                raise Dropped(wrong)

    def edit(self, records: Iterable[Record]) -> Iterator[Record]:
        """Facts as they matter to a reader: question and evidence, not the whole table a second time."""
        for record in records:
            kept = {key: value for key, value in record.facts.items() if key in ("question", "layout")}
            yield replace(record, facts=kept)


def user_text(table: Table, question: Question, facts: dict[str, Any]) -> str:
    """Distractors, the table in its layout, more distractors, the question."""
    layout = facts["layout"]
    if layout == "paragraphs":
        body = "\n\n".join(f"[Row {i}] {text}" for i, text in enumerate(facts["paragraphs"], start=1))
    else:
        columns = (Column("Row", "integer"), *table.columns)
        numbered = replace(table, columns=columns, rows=tuple((i, *row) for i, row in enumerate(table.rows, start=1)))
        body = markdown(numbered) if layout == "markdown" else csv_text(numbered)
    ask_for_evidence = " Name the rows and columns that you used." if facts["names_evidence"] else ""
    parts = [*facts["before"], f"{table.title}\n\n{body}", *facts["after"]]
    return "\n\n".join(parts) + _QUESTION + question.text + ask_for_evidence


def answer_text(question: Question, *, names_evidence: bool) -> str:
    answer = "; ".join(question.answer)
    if question.form in ("row", "rows"):
        answer = f"Row{'s' if len(question.answer) > 1 else ''} {', '.join(question.answer)}"
    if not names_evidence:
        return answer
    rows = ", ".join(map(str, question.rows))
    return f"{answer}\n\nRows: {rows}. Columns: {', '.join(question.columns)}."


def paragraphs_of(text: str, *, least: int = 200, most: int = 1500) -> list[str]:
    """Paragraphs of `least` to `most` characters, line breaks inside them as spaces."""
    found = (" ".join(block.split()) for block in re.split(r"\n\s*\n", text))
    return [paragraph for paragraph in found if least <= len(paragraph) <= most]
