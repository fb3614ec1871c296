"""Table 3: chatbot benchmarks, answers judged by a strong model (paper section 6.2)."""

from __future__ import annotations

from plait.paper.score_table import MODELS, ScoreTable, Source

TABLE = ScoreTable(
    title="Table 3",
    row_heading="benchmark",
    columns=MODELS,
    rows={
        "Arena-Hard": ("46.1", "21.3", "43.2†", "65.4", "55.7", "70.4"),
        "WildBench": ("42.4", "33.6†", "42.7", "48.5", "49.8†", "56.3†"),
    },
    sources={
        "Arena-Hard": (Source("arena_hard_judge", "win_rate"),),
        "WildBench": (Source("wild_bench_judge", "by_kind"),),
    },
    notes=(
        "† evaluation run by the paper's authors. Both are judged by GPT-4 Turbo there; another judge, another scale.",
    ),
)

as_json = TABLE.as_json
show = TABLE.show
