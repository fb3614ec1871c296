"""The server's log: one JSON object a line on stderr."""

from __future__ import annotations

import logging
import sys
import time
from functools import lru_cache
from typing import Any

from pydantic_core import to_json

logger = logging.getLogger("plait.serve")

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": f"{_second(int(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        fields |= {  # names that begin with _ are other handlers'
            name: value for name, value in vars(record).items() if name not in _STANDARD and name[0] != "_"
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return to_json(fields, fallback=repr, inf_nan_mode="null").decode("utf-8", "replace")


@lru_cache(2)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def log_json_lines() -> None:
    """Sends the server's and uvicorn's messages to stderr as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("plait.serve", "uvicorn"):
        named = logging.getLogger(name)
        named.handlers, named.propagate = [handler], False
        named.setLevel(logging.INFO)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
