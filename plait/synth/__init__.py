"""Synthetic post-training data (paper section 5.3): sample or generate prompts, generate responses, filter, post-edit.

A skill (`TableQA`, `DocumentQA`, `ToolUse`, `Steerability`) says what happens to a record, `run_pipeline` runs the four
steps into a folder, a `Requester` carries requests to any `text.Generator`, and `write_sft` turns chat files into token
shards with a loss mask.
"""

from plait.synth.cache import AnswerCache
from plait.synth.decontaminate import Decontaminator, read_evaluation_set
from plait.synth.document_qa import DocumentQA
from plait.synth.function_sources import read_functions
from plait.synth.pipeline import Dropped, Outcome, Skill, run_pipeline
from plait.synth.record import Record, from_chat
from plait.synth.requester import Requester, RequestError, RequestLimits
from plait.synth.sft import MixPart, Side, encode_chat, write_sft
from plait.synth.steerability import Steerability
from plait.synth.table_qa import TableQA
from plait.synth.tables import read_csv
from plait.synth.tool_records import ToolRecords
from plait.synth.tool_use import ToolUse

__all__ = [
    "AnswerCache",
    "Decontaminator",
    "DocumentQA",
    "Dropped",
    "MixPart",
    "Outcome",
    "Record",
    "RequestError",
    "RequestLimits",
    "Requester",
    "Side",
    "Skill",
    "Steerability",
    "TableQA",
    "ToolRecords",
    "ToolUse",
    "encode_chat",
    "from_chat",
    "read_csv",
    "read_evaluation_set",
    "read_functions",
    "run_pipeline",
    "write_sft",
]
