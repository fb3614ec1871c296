"""The paper's tables and figures, one module each, regenerated at the scale at hand (`plait paper NAME`).

A module here has `as_json() -> dict`, the data with the paper's values beside ours, and `show(console)`, the same to
read.
README.md leads from each section of the paper to the code.
"""

RESULTS = {
    "table_1": "parameters, active parameters and KV cache at 256K of Jamba-1.5 and its rivals",
    "figure_2": "latency of quantization methods at 1024 + 128 tokens, measured here with dummy weights",
    "figure_3": "latency and throughput by context length, Jamba-1.5-Mini's shape and others, measured here",
    "figure_4": "the same for Jamba-1.5-Large's, layers that don't fit extrapolated",
    "section_3_2": "activation loss: a small model driven beyond fp16 comes back, trained here",
    "table_2": "scores on eleven academic benchmarks, ours beside them from runs of `plait eval`",
    "table_3": "chatbot benchmarks judged by a strong model, the same way",
    "table_4": "RULER by context length and effective lengths, the same way",
    "table_5": "questions about whole novels, the same way",
    "table_6": "multilingual MMLU, the same way",
}
"""What `plait paper` can regenerate: module name, and what it shows."""

MEASURED = frozenset({"figure_2", "figure_3", "figure_4", "section_3_2"})
"""Those that are measured when asked for: `measure(Options)` makes the data, `show` and `draw` take it."""

TAKES_RUNS = frozenset({"table_2", "table_3", "table_4", "table_5", "table_6"})
"""Those whose `as_json` and `show` take the folders of evaluation runs, to put our scores beside the paper's."""
