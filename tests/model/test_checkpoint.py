"""Checkpoints in the public layout: every spelling loads, what was loaded is written back, nothing is half-written."""

import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from plait.config import ModelConfig, presets
from plait.model import checkpoint
from plait.model.checkpoint import config_from_public, config_to_public, load_model, public_tensors, save_model
from plait.model.init import init_weights
from plait.model.network import LanguageModel
from plait.quant import quantize

CONFIG = ModelConfig(
    vocab_size=40, d_model=16, d_ff=24, n_layers=3, n_heads=4, n_kv_heads=2, attn_period=3, attn_offset=1, n_experts=3,
    dtype="float32",
)  # fmt: skip
DENSE = replace(CONFIG, n_experts=1, top_k=1)
MAMBA2 = replace(CONFIG, mamba_kind="mamba2", d_ssm_head=8, proj_bias=True)
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENS = torch.arange(12)[None]


def _model(config: ModelConfig = CONFIG, dtype: torch.dtype = torch.float32) -> LanguageModel:
    model = init_weights(LanguageModel(config), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():  # no bias may stay 0 and no norm 1
            parameter += torch.randn(parameter.shape, generator=generator) * 0.1
            parameter.copy_(parameter.to(dtype))  # what stays in fp32 is as exact as a published file is
    return model.to_dtype(dtype).eval()


def _same(a: LanguageModel, b: LanguageModel) -> None:
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype, name
        assert torch.equal(left[name], right[name]), name


def _rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    tensors = change(load_file(folder / WEIGHTS))
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / WEIGHTS, metadata={"format": "pt"})


def _set(folder: Path, **keys: object) -> None:
    public = json.loads((folder / "config.json").read_text())
    kept = {k: v for k, v in {**public, **keys}.items() if v is not ...}
    (folder / "config.json").write_text(json.dumps(kept))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("shard_bytes", [1, 3000, 10**9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("config", [CONFIG, replace(DENSE, tie_embeddings=True), MAMBA2], ids=["moe", "tied", "mamba2"])
def test_save_then_load_gives_the_same_model(
    tmp_path: Path, config: ModelConfig, dtype: torch.dtype, shard_bytes: int, fused: bool
) -> None:
    model = _model(config, dtype)
    save_model(model, tmp_path / "m", fused_experts=fused, shard_bytes=shard_bytes)
    again = load_model(tmp_path / "m")
    _same(model, again)
    assert not again.training
    assert replace(again.config, dtype="float32") == config
    if shard_bytes < 10**9:
        index = json.loads((tmp_path / "m" / INDEX).read_text())
        files = {name: file for file in (tmp_path / "m").glob("*.safetensors") for name in load_file(file)}
        assert {name: file.name for name, file in files.items()} == index["weight_map"]
        sizes = [sum(t.numel() * t.element_size() for t in load_file(f).values()) for f in set(files.values())]
        assert sum(sizes) == index["metadata"]["total_size"]
        assert len(sizes) > 2
    else:
        assert not (tmp_path / "m" / INDEX).exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("fused", [False, True])
def test_export_is_bit_identical_to_the_file_that_was_loaded(tmp_path: Path, dtype: torch.dtype, fused: bool) -> None:
    save_model(_model(dtype=dtype), tmp_path / "a", fused_experts=fused)
    save_model(load_model(tmp_path / "a"), tmp_path / "b", fused_experts=fused)
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "b" / WEIGHTS).read_bytes()
    assert (tmp_path / "a" / "config.json").read_bytes() == (tmp_path / "b" / "config.json").read_bytes()
    assert {t.dtype for t in load_file(tmp_path / "a" / WEIGHTS).values()} == {dtype}


def test_bf16_loads_in_fp32_with_equal_values_and_back(tmp_path: Path) -> None:
    save_model(_model(dtype=torch.bfloat16), tmp_path / "a")
    wide = load_model(tmp_path / "a", dtype=torch.float32)
    stored = load_file(tmp_path / "a" / WEIGHTS)
    for name, tensor in public_tensors(dict(wide.state_dict()), wide.config):
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, stored[name].float())
    save_model(wide.to_dtype(torch.bfloat16), tmp_path / "b")
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "b" / WEIGHTS).read_bytes()


@pytest.mark.parametrize("config", [CONFIG, MAMBA2], ids=["mamba", "mamba2"])
def test_what_lives_in_exponentials_stays_fp32_and_loses_nothing(tmp_path: Path, config: ModelConfig) -> None:
    model = _model(config, torch.bfloat16)
    mixer = model.layers[0].mixer
    assert {mixer.A_log.dtype, mixer.D.dtype, mixer.dt_bias.dtype} == {torch.float32}
    with torch.no_grad():
        mixer.A_log += 1e-5  # trained a little: no longer a bf16 number
    save_model(model, tmp_path / "m")
    folder = "mamba" if config is CONFIG else "mamba2"
    stored = load_file(tmp_path / "m" / WEIGHTS)
    assert stored[f"model.layers.0.{folder}.A_log"].dtype == torch.float32
    assert stored[f"model.layers.0.{folder}.D"].dtype == torch.bfloat16
    _same(model, load_model(tmp_path / "m"))


def test_fp16_and_fp64_on_request(tmp_path: Path) -> None:
    save_model(_model(), tmp_path / "m")
    half = load_model(tmp_path / "m", dtype=torch.float16)
    assert half.dtype == torch.float16
    assert half.layers[0].mixer.A_log.dtype == torch.float32
    double = load_model(tmp_path / "m", dtype=torch.float64)
    assert {p.dtype for p in double.parameters()} == {torch.float64}
    with pytest.raises(ValueError, match=r"dtype=torch.int8 must be one of torch.float32, torch.bfloat16"):
        load_model(tmp_path / "m", dtype=torch.int8)
    with pytest.raises(ValueError, match=r"a model in torch.float64 has no public form"):
        save_model(double, tmp_path / "double")
    assert not (tmp_path / "double").exists()


@pytest.mark.parametrize("with_head", [False, True])
def test_a_tied_file_may_carry_its_head(tmp_path: Path, with_head: bool) -> None:
    model = _model(replace(DENSE, tie_embeddings=True))
    save_model(model, tmp_path / "m")
    assert "lm_head.weight" not in load_file(tmp_path / "m" / WEIGHTS)
    if with_head:
        _rewrite(tmp_path / "m", lambda t: {**t, "lm_head.weight": t["model.embed_tokens.weight"]})
    _same(model, load_model(tmp_path / "m"))
    _rewrite(tmp_path / "m", lambda t: {**t, "lm_head.weight": t["model.embed_tokens.weight"] + 1})
    with pytest.raises(ValueError, match=r"ties lm_head.weight to the embeddings, but the file's own differs"):
        load_model(tmp_path / "m")
    _rewrite(tmp_path / "m", lambda t: {**t, "lm_head.weight": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match=r"lm_head.weight has shape \[2, 2\]; config.json asks for \[40, 16\]"):
        load_model(tmp_path / "m")


@pytest.mark.parametrize(
    ("config", "old", "new"),
    [
        (CONFIG, ".feed_forward.", ".moe."),
        (DENSE, ".feed_forward.", ".feed_forward.experts.0."),
        (DENSE, ".feed_forward.", ".moe.experts.0."),
    ],
)
@pytest.mark.parametrize("fused", [False, True])
def test_early_spellings(tmp_path: Path, config: ModelConfig, old: str, new: str, fused: bool) -> None:
    model = _model(config)
    save_model(model, tmp_path / "m", fused_experts=fused)
    _rewrite(tmp_path / "m", lambda t: {name.replace(old, new): tensor for name, tensor in t.items()})
    _same(model, load_model(tmp_path / "m"))


def test_two_spellings_of_one_tensor_are_one_too_many(tmp_path: Path) -> None:
    save_model(_model(), tmp_path / "m")
    _rewrite(tmp_path / "m", lambda t: t | {n.replace("feed_forward", "moe"): x for n, x in t.items() if "router" in n})
    with pytest.raises(ValueError, match=r"1 tensors are no part of the model .*: model.layers.1.moe.router.weight"):
        load_model(tmp_path / "m")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_dtype_comes_from_the_file_where_the_config_is_silent(tmp_path: Path, dtype: torch.dtype) -> None:
    save_model(_model(dtype=dtype), tmp_path / "m")
    _set(tmp_path / "m", torch_dtype=...)
    model = load_model(tmp_path / "m")
    assert model.dtype == dtype
    assert model.config.dtype == str(dtype).removeprefix("torch.")


def test_links_into_a_hub_cache_are_followed(tmp_path: Path) -> None:
    save_model(_model(), tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for file in (tmp_path / "blobs").iterdir():
        (tmp_path / "snapshot" / file.name).symlink_to(Path("..") / "blobs" / file.name)
    _same(_model(), load_model(tmp_path / "snapshot"))


@pytest.mark.parametrize("name", presets)
def test_every_preset_makes_the_round_trip(name: str) -> None:
    public = json.loads(json.dumps(config_to_public(presets[name])))
    assert config_from_public(public) == presets[name]
    assert "mamba2_d_head" not in public  # only what the family's own tools know


def test_mamba2_configs_make_the_round_trip() -> None:
    config = replace(MAMBA2, n_ssm_groups=2)
    public = json.loads(json.dumps(config_to_public(config)))
    assert public["model_type"] == "plait"
    assert config_from_public(public) == config


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({"mamba_dt_rank": "auto"}, {"dt_rank": 1}),
        ({"mamba_dt_rank": None}, {"dt_rank": 1}),
        ({"hidden_size": 40, "mamba_dt_rank": "auto"}, {"d_model": 40, "dt_rank": 3, "d_head": 10}),
        ({"eos_token_id": 7}, {"eos_ids": (7,)}),
        ({"eos_token_id": [2, 7]}, {"eos_ids": (2, 7)}),
        ({"eos_token_id": None, "pad_token_id": None, "bos_token_id": None}, {"eos_ids": (2,), "pad_id": 0}),
        ({"num_key_value_heads": None}, {"n_kv_heads": 4}),
        ({"torch_dtype": None, "dtype": "float16"}, {"dtype": "float16"}),
        ({"torch_dtype": "torch.bfloat16"}, {"dtype": "bfloat16"}),
        ({"num_experts": None, "num_local_experts": 5}, {"n_experts": 5}),
        ({"head_dim": 6}, {"d_head": 6}),
        ({"head_dim": None}, {"d_head": 4}),
        ({"rms_norm_eps": 1}, {"norm_eps": 1}),
        ({"sliding_window": None, "use_mamba_kernels": False, "n_ctx": 9, "calc_logits_for_entire_prompt": 1}, {}),
    ],
)
def test_every_spelling_of_a_config(keys: dict[str, object], wanted: dict[str, object]) -> None:
    config = config_from_public({**config_to_public(CONFIG), **keys})
    assert {name: getattr(config, name) for name in wanted} == wanted
    if not wanted:
        assert config == CONFIG


def test_a_half_quantized_model_is_not_saved(tmp_path: Path) -> None:
    model, int8 = _model(), quantize(_model())
    model.layers[0].ffn = int8.layers[0].ffn  # a dense one alone
    with pytest.raises(ValueError, match="only some experts, MLPs or mixers are quantized"):
        save_model(model, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_saving_over_a_folder_drops_old_weights_and_keeps_the_rest(tmp_path: Path) -> None:
    folder, source = tmp_path / "m", tmp_path / "source"
    save_model(_model(), folder, shard_bytes=3000)
    others = ["tokenizer.json", "adapter.safetensors", "optimizer.pt", "notes/plan.txt", "notes/model.safetensors"]
    for name in [*others, "pytorch_model.bin", "pytorch_model-00001-of-00002.bin"]:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("old")
    (source / "templates").mkdir(parents=True)
    left = ["config.json", "old.safetensors", "consolidated.pth", INDEX, "templates/weights.bin"]
    for name in ["tokenizer.json", "README.md", "templates/rag.jinja", *left]:
        (source / name).write_text("source")
    save_model(_model(DENSE), folder, beside=source)
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert found == {*others, "config.json", "README.md", "templates/rag.jinja", WEIGHTS}
    assert (folder / "tokenizer.json").read_text() == "source"  # the new model's tokenizer, not the old one's
    assert (folder / "optimizer.pt").read_text() == "old"
    _same(_model(DENSE), load_model(folder))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "source"]


def test_places_that_are_no_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file; a model is saved as a folder"):
        save_model(_model(), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(ValueError, match=r"beside='.*nowhere' is not a folder"):
        save_model(_model(), tmp_path / "m", beside=tmp_path / "nowhere")
    assert not (tmp_path / "m").exists()


def test_a_linked_folder_stays_a_link(tmp_path: Path) -> None:
    save_model(_model(), tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    save_model(_model(DENSE), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    _same(_model(DENSE), load_model(tmp_path / "real"))


def test_a_failed_save_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "m"
    save_model(_model(), folder)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    written = []

    def fail(*args: object, **keywords: object) -> None:
        written.append(args[1])
        if len(written) == 2:
            raise OSError("no space left on device")
        save_file(*args, **keywords)

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(OSError, match="no space left"):
        save_model(_model(DENSE), folder, shard_bytes=3000)
    assert len(written) == 2
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_killed_save_leaves_the_old_folder_and_nothing_that_loads(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    save_model(_model(), folder)
    code = f"""
        import os, signal
        from plait.model import checkpoint
        model = checkpoint.load_model({str(folder)!r})
        save, n = checkpoint.save_file, []
        def killed(*args, **keywords):
            save(*args, **keywords)
            n.append(1)
            if len(n) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
        checkpoint.save_file = killed
        checkpoint.save_model(model, {str(folder)!r}, shard_bytes=3000)
    """
    root = Path(checkpoint.__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=root, timeout=120)
    assert result.returncode == -9
    _same(_model(), load_model(folder))
    left = [p for p in tmp_path.iterdir() if p != folder]
    assert len(left) == 1
    assert left[0].name.startswith(".")
    with pytest.raises(ValueError, match=r"config.json is not there"):
        load_model(left[0])
    shutil.rmtree(left[0])


PEAKS = """
import json, os, sys, torch
from plait.model.checkpoint import load_model
def status(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) * 1024
torch.set_num_threads(1)  # a pool of threads would not survive the fork
for folder, dtype in json.loads(sys.argv[2]):
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0
        continue
    load_model(sys.argv[1])  # imports and first-use allocations are nobody's model
    open("/proc/self/clear_refs", "w").write("5")  # restart the high-water mark; it counts mapped file pages too
    before = status("VmRSS")
    model = load_model(folder, dtype=getattr(torch, dtype), mapped=False)
    print(status("VmHWM") - before - sum(p.numel() * p.element_size() for p in model.parameters()), flush=True)
    os._exit(0)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from Linux's /proc")
def test_loading_needs_no_more_than_the_model_and_one_layer(tmp_path: Path) -> None:
    config = ModelConfig(
        vocab_size=512, d_model=256, d_ff=768, n_layers=16, n_heads=8, n_kv_heads=2, n_experts=4, dtype="float32"
    )
    model = LanguageModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    total = sum(p.numel() * 4 for p in model.parameters())
    layer = max(sum(p.numel() * 4 for p in layer.parameters()) for layer in model.layers)
    assert total > 9 * layer > 100e6
    save_model(model, tmp_path / "one")
    save_model(model, tmp_path / "many", shard_bytes=13 * 10**6)
    save_model(_model(), tmp_path / "tiny")
    runs = [("one", "float32"), ("many", "float32"), ("one", "bfloat16"), ("many", "bfloat16")]
    arguments = json.dumps([(str(tmp_path / name), dtype) for name, dtype in runs])
    root = Path(checkpoint.__file__).parents[2]
    command = [sys.executable, "-c", PEAKS, str(tmp_path / "tiny"), arguments]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    beyond = dict(zip(runs, map(int, result.stdout.split()), strict=True))
    assert min(beyond.values()) > 0
    assert max(beyond.values()) < layer + 8 * 2**20, beyond


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("order", ["ours", "by name"])
def test_experts_stay_where_the_file_has_them(tmp_path: Path, quantized: bool, order: str) -> None:
    """Our own files have each stack in one piece, with any number of experts. By name, an expert's down stands between
    the gates and ups, so that the matrices lie apart. Both are used there, give the same bits, and are saved as before.
    """
    model = _model(replace(CONFIG, n_experts=12) if order == "ours" else CONFIG, dtype=torch.bfloat16)
    save_model(quantize(model, "experts_int8") if quantized else model, tmp_path / "one")
    saved = (tmp_path / "one" / WEIGHTS).read_bytes()
    if order == "by name":
        _rewrite(tmp_path / "one", lambda tensors: tensors)
        assert (tmp_path / "one" / WEIGHTS).read_bytes() != saved
    copied, mapped = load_model(tmp_path / "one", mapped=False), load_model(tmp_path / "one")
    stacks = [(a, b) for a, b in zip(copied.parameters(), mapped.parameters(), strict=True) if a.dim() == 3]
    assert stacks
    for _, stack in stacks:
        apart = 1 if order == "ours" else 3 / (2 if stack.shape[1] > stack.shape[2] else 1)
        assert stack.stride(0) == apart * stack[0].numel()
        assert stack.untyped_storage().data_ptr() == mapped.embed.weight.untyped_storage().data_ptr()
    _same(copied, mapped)
    for tokens in (1, 40):  # the kernel of few tokens, and the library's products
        ids = torch.arange(tokens)[None] % CONFIG.vocab_size
        with torch.no_grad():
            assert torch.equal(copied(ids).logits, mapped(ids).logits)
    save_model(mapped, tmp_path / "two")
    assert (tmp_path / "two" / WEIGHTS).read_bytes() == saved
