"""Fine-tuning the model that ships on what synthesis wrote: the loss on the assistant's words falls."""

from pathlib import Path
from statistics import mean

import plait.recipes
from plait.recipes import load_recipe
from plait.recipes.sft import sft_demo, sft_long
from plait.synth import MixPart, TableQA, run_pipeline, write_sft
from plait.synth.sft import Side
from plait.text import ChatTemplate, Tokenizer
from plait.train.loop import train
from plait.train.metrics import read_metrics

DEMO = Path(plait.recipes.__file__).parents[1] / "demo"


def test_a_mix_of_synthesized_conversations_is_learned(tmp_path: Path) -> None:
    chat = run_pipeline(TableQA(layouts=("csv",)), tmp_path / "tables", n=150).chat
    tokenizer, template = Tokenizer.from_folder(DEMO), ChatTemplate.from_folder(DEMO)
    for side, name in ((Side(0.1, held_out=False), "train"), (Side(0.1, held_out=True), "heldout")):
        write_sft([MixPart(chat)], tokenizer, template, tmp_path / name, side=side, max_tokens=512)
    settings = {
        "data.train": tmp_path / "train", "data.heldout": tmp_path / "heldout", "steps": 6, "seq": 256, "batch": 2,
        "eval_rows": 4, "eval_every": 6, "log_every": 1, "optim.warmup_steps": 1, "device": "cpu",
        "probes.ruler_samples": 0, "probes.recall_samples": 0,
    }  # fmt: skip
    config = load_recipe("sft_demo", [f"{key}={value}" for key, value in settings.items()])
    result = train(config, tmp_path / "run")
    losses = [record["ce"] for record in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert result.step == 6
    assert mean(losses[-2:]) < mean(losses[:2]) - 0.5
    assert result.heldout_loss < losses[0]


def test_recipes_start_where_they_say() -> None:
    assert (DEMO / "config.json").is_file()
    for recipe in (sft_demo, sft_long):
        config = recipe()
        assert Path(config.start) == Path(config.data.tokenizer) == DEMO
        assert config.seq <= config.model.max_context
