"""datatrove's executors as builds use them: quiet, as every task has its log in a file."""

from __future__ import annotations

import sys
from typing import Any

from datatrove.executor.local import LocalPipelineExecutor
from loguru import logger


class QuietLocalExecutor(LocalPipelineExecutor):
    """Tasks on this machine; only errors are said aloud."""

    def run(self) -> Any:
        _only_errors()
        return super().run()

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        try:
            return super()._run_for_rank(rank, max(1, local_rank), node_rank)  # worker 0 would tell everything
        finally:
            _only_errors()  # each task ends by setting its process's log back to say all


def _only_errors() -> None:
    logger.remove()
    logger.add(sys.stderr, level="ERROR")
