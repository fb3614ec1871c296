"""Broken and hostile checkpoint folders: one clear ValueError each, before anything big is allocated."""

import io
import json
import os
import pickle
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from plait.config import ModelConfig
from plait.model.checkpoint import load_model, read_config, save_model
from plait.model.init import init_weights
from plait.model.network import LanguageModel

CONFIG = ModelConfig(
    vocab_size=10, d_model=4, d_ff=4, n_layers=2, n_heads=2, n_kv_heads=1, attn_period=2, attn_offset=1, n_experts=2,
    d_state=2, dtype="float32",
)  # fmt: skip
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
EMBED = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "m"
    save_model(init_weights(LanguageModel(CONFIG), seed=0), folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "m"))


def _peak_bytes() -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmPeak")) * 1024


@pytest.fixture(autouse=True)
def _nothing_big_and_no_hang() -> Iterator[None]:
    before, start = _peak_bytes(), time.monotonic()
    yield
    assert _peak_bytes() - before < 2**30
    assert time.monotonic() - start < 60


def _refused(folder: Path, match: str) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        load_model(folder)
    assert type(caught.value) is ValueError  # not a subclass that says less
    assert "\n" not in str(caught.value)


def _split(data: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _join(header: object, body: bytes, padding: int = 0) -> bytes:
    text = json.dumps(header).encode() + b" " * padding
    return struct.pack("<Q", len(text)) + text + body


def _edit_header(folder: Path, change: Callable[[dict[str, Any]], object], padding: int = 0) -> None:
    header, body = _split((folder / WEIGHTS).read_bytes())
    change(header)
    (folder / WEIGHTS).write_bytes(_join(header, body, padding))


def test_missing_and_extra_tensors(folder: Path) -> None:
    _edit_header(folder, lambda h: h.update({"model.²": h.pop(EMBED)}))
    _refused(folder, rf"{folder}: tensor {EMBED} is missing")
    _edit_header(folder, lambda h: h.update({EMBED: h.pop("model.²")}))
    _edit_header(folder, lambda h: h.update({"score.weight": {**h[EMBED], "shape": [0], "data_offsets": [0, 0]}}))
    _refused(folder, "1 tensors are no part of the model of config.json: score.weight")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"shape": [4, 10]}, r"has shape \[4, 10\]; config.json asks for \[10, 4\]"),
        ({"shape": [40]}, r"has shape \[40\]"),
        ({"dtype": "I32"}, "has dtype I32; config.json asks for F32, BF16, F16, F64"),
        ({"dtype": "F8_E4M3", "shape": [10, 16]}, "has shape"),
        ({"dtype": "I64", "shape": [10, 2]}, "has shape"),
        ({"dtype": "Q9"}, "is not a whole safetensors file"),
        ({"shape": [-10, -4]}, "is not a whole safetensors file"),
        ({"shape": [2**40, 2**40]}, "is not a whole safetensors file"),
        ({"data_offsets": [2**60, 2**60 + 160]}, "is not a whole safetensors file"),
        ({"data_offsets": [160, 0]}, "is not a whole safetensors file"),
        ({"data_offsets": [160, 320]}, "is not a whole safetensors file"),
    ],
)
def test_a_wrong_header_entry(folder: Path, change: dict[str, object], complaint: str) -> None:
    assert _split((folder / WEIGHTS).read_bytes())[0][EMBED]["data_offsets"] != [160, 320]
    _edit_header(folder, lambda h: h[EMBED].update(change))
    _refused(folder, complaint)


def test_int64_weights_name_the_file_and_the_tensor(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({**tensors, EMBED: tensors[EMBED].long()}, folder / WEIGHTS)
    _refused(folder, rf"{WEIGHTS}: tensor {EMBED} has dtype I64; config.json asks for F32")


def test_int8_weights_need_a_config_that_says_so(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({**tensors, EMBED: tensors[EMBED].to(torch.int8)}, folder / WEIGHTS)
    _refused(folder, "has dtype I8")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:5],
        lambda data: data[:8],
        lambda data: data[:200],
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: struct.pack("<Q", 2**60) + data[8:],
        lambda data: struct.pack("<Q", 2**64 - 1) + data[8:],
        lambda data: struct.pack("<Q", len(data) - 8) + data[8:],
        lambda data: _join([], _split(data)[1]),
        lambda data: data[:8] + b"x" + data[9:],
        lambda data: data[:8] + b"\xff" + data[9:],
        lambda data: _join({}, b"")[:8] + b"[" * 10**5,
        lambda data: struct.pack("<Q", 10**5) + b'{"a":' * 20_000,
        lambda data: _join({**_split(data)[0], "__metadata__": {"a": 1}}, _split(data)[1]),
        lambda data: pickle.dumps({"weights": 1}),
    ],
)
def test_a_broken_file(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    (folder / WEIGHTS).write_bytes(damage((folder / WEIGHTS).read_bytes()))
    _refused(folder, rf"{WEIGHTS} is not a whole safetensors file")


@pytest.mark.parametrize("padding", range(1, 8))
def test_data_that_is_not_aligned_still_loads(whole: Path, folder: Path, padding: int) -> None:
    _edit_header(folder, lambda h: None, padding)
    again, wanted = load_model(folder).state_dict(), load_model(whole).state_dict()
    assert all(torch.equal(again[name], wanted[name]) for name in wanted)


@given(data=st.data())
def test_flipped_and_cut_bytes(whole: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Wherever the damage is: a ValueError, or a model that differs from the whole one in the damaged bytes alone."""
    original = (whole / WEIGHTS).read_bytes()
    header_end = 8 + struct.unpack("<Q", original[:8])[0]
    where = st.one_of(st.integers(0, 7), st.integers(8, header_end - 1), st.integers(header_end, len(original) - 1))
    flips = data.draw(st.dictionaries(where, st.integers(1, 255), max_size=3))
    length = data.draw(st.one_of(st.just(len(original)), where))
    damaged = bytearray(original)
    for position, mask in flips.items():
        damaged[position] ^= mask
    folder = tmp_path_factory.mktemp("damaged")
    shutil.copy(whole / "config.json", folder)
    (folder / WEIGHTS).write_bytes(damaged[:length])
    try:
        got = load_model(folder).state_dict()
    except ValueError as error:
        assert type(error) is ValueError  # noqa: PT017
        assert len(flips) > 0 or length < len(original)
        assert length < len(original) or min(flips) < header_end
        return
    assert length == len(original)
    if all(position >= header_end for position in flips):
        wanted = load_model(whole).state_dict()
        changed = sum(int((got[n].view(torch.int32) != wanted[n].view(torch.int32)).sum()) for n in wanted)
        assert changed == len({(position - header_end) // 4 for position in flips})


@given(data=st.data())
@example(data=None)
def test_damaged_configs(whole: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject | None) -> None:
    """Any value in place of any key's: a ValueError, or a model."""
    public = json.loads((whole / "config.json").read_text())
    values = st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.lists(st.integers(), max_size=2),
        st.sampled_from([10**9, 2**31 - 1, -1, 0, 1, 10**400, 1e308, {}, {"a": 1}, "auto", "\ud800"]),
    )  # fmt: skip
    for key in data.draw(st.sets(st.sampled_from(sorted(public)), min_size=1, max_size=2)) if data else ():
        public[key] = data.draw(values)
    folder = tmp_path_factory.mktemp("config")
    shutil.copy(whole / WEIGHTS, folder)
    (folder / "config.json").write_text(json.dumps(public))
    try:
        load_model(folder)
    except ValueError as error:
        assert data is not None
        assert type(error) is ValueError  # noqa: PT017


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"num_hidden_layers": 10**9}, "asks for 1000000000 layers; the files hold 33 tensors"),
        ({"num_hidden_layers": 3}, "tensor model.layers.2.input_layernorm.weight is missing"),
        ({"num_experts": 10**9}, r"experts.2.gate_proj.weight is missing"),
        ({"num_experts": 2**31}, "num_experts=2147483648 must be an integer of at most 2147483647"),
        ({"hidden_size": 10**9}, "impossible size|has shape"),
        ({"vocab_size": 2**31 - 1}, rf"{EMBED} has shape \[10, 4\]"),
        ({"intermediate_size": 10**9}, "has shape"),
        ({"mamba_expand": 10**6}, "has shape"),
        ({"hidden_size": -4}, "d_model=-4 must be an integer of at least 1"),
        ({"hidden_size": "4"}, "hidden_size='4' must be an integer"),
        ({"hidden_size": 4.0}, "hidden_size=4.0 must be an integer"),
        ({"hidden_size": True}, "hidden_size=True must be an integer"),
        ({"hidden_size": None}, "config.json lacks hidden_size"),
        ({"attn_layer_offset": 0.5}, "attn_layer_offset=0.5 must be an integer"),
        ({"attn_layer_offset": 2}, "attn_offset=2 must be between 0 and attn_period-1=1"),
        ({"mamba_dt_rank": "automatic"}, "mamba_dt_rank='automatic' must be an integer"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps=nan must be a finite number"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps=inf must be a finite number"),
        ({"rms_norm_eps": 10**400}, "must be a finite number"),
        ({"rms_norm_eps": 0}, "norm_eps=0 must be greater than 0"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings='false' must be true or false"),
        ({"eos_token_id": [2, "x"]}, "eos_token_id"),
        ({"eos_token_id": 10}, "eos_ids=.* must be between 0 and vocab_size-1=9"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' must be 'silu'"),
        ({"model_type": "llama"}, "model_type='llama' is not a model plait knows"),
        ({"torch_dtype": "int8"}, "dtype='int8' must be float32, bfloat16 or float16"),
        ({"quantization_config": "experts_int8"}, "quantization_config='?experts_int8'? is not supported"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq.* is not supported"),
        ({"quantization_config": {"quant_method": "experts_int8"}}, "no weight here has a weight_scale"),
    ],
)
def test_an_impossible_config(folder: Path, keys: dict[str, object], complaint: str) -> None:
    public = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**public, **keys}))
    _refused(folder, complaint)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"", "is not valid JSON"),
        (b"{", "is not valid JSON"),
        (b"\xff\xfe\xfd", "is not valid JSON"),
        (b"[]", "must hold a JSON object, not list"),
        (b"3", "must hold a JSON object, not int"),
        (b"[" * 10**6, "is not valid JSON: maximum recursion depth"),
        (b'{"a":' * 10**6, "is not valid JSON: maximum recursion depth"),
        (b'{"a": ' + b"1" * 5000 + b"}", "is not valid JSON: Exceeds the limit"),
    ],
)
def test_a_config_that_is_not_json(folder: Path, text: bytes, complaint: str) -> None:
    (folder / "config.json").write_bytes(text)
    _refused(folder, rf"{folder}/config.json {complaint}")
    with pytest.raises(ValueError, match=complaint):
        read_config(folder)


def test_a_huge_config_is_not_read(folder: Path) -> None:
    with (folder / "config.json").open("wb") as file:
        file.truncate(10**11)  # sparse
    _refused(folder, "has 100000000000 bytes; it may have at most 100000000")


def _index(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize(
    ("weight_map", "complaint"),
    [
        (
            {EMBED: "model-00002-of-00002.safetensors"},
            "'model-00002-of-00002.safetensors' is named by the index and mis",
        ),
        ({EMBED: "../m/model.safetensors"}, r"'../m/model.safetensors' is not the name of a safetensors file in this"),
        ({EMBED: "/etc/passwd"}, "'/etc/passwd' is not the name of a safetensors file"),
        ({EMBED: "/model.safetensors"}, "is not the name of a safetensors file"),
        ({EMBED: "sub/../model.safetensors"}, "is not the name of a safetensors file"),
        ({EMBED: "pytorch_model.bin"}, "is not the name of a safetensors file"),
        ({EMBED: "x\0.safetensors"}, "is named by the index and missing"),
        ({EMBED: "x" * 5000 + ".safetensors"}, "is named by the index and missing"),
        ({EMBED: ".."}, "is not the name of a safetensors file"),
        ({EMBED: 5}, "is not the name of a safetensors file"),
        ({EMBED: None}, "is not the name of a safetensors file"),
        ({}, "must have a weight_map"),
        ([WEIGHTS], "must have a weight_map"),
        (None, "must have a weight_map"),
    ],
)
def test_a_hostile_index(folder: Path, weight_map: object, complaint: str) -> None:
    _index(folder, weight_map)
    _refused(folder, complaint)


def test_an_index_that_is_not_json(folder: Path) -> None:
    (folder / INDEX).write_text("{")
    _refused(folder, rf"{INDEX} is not valid JSON")
    (folder / INDEX).write_text("{}")
    _refused(folder, "must have a weight_map")
    (folder / INDEX).unlink()
    (folder / INDEX).symlink_to("nowhere")  # not "there is no index, so the single file it is"
    _refused(folder, rf"{INDEX} is not there")


def test_a_tensor_in_two_shards(folder: Path) -> None:
    shutil.copy(folder / WEIGHTS, folder / "other.safetensors")
    _index(folder, {EMBED: WEIGHTS, "lm_head.weight": "other.safetensors"})
    _refused(folder, rf"other.safetensors: tensor .* is also in {WEIGHTS}")


def test_folders_without_a_checkpoint(tmp_path: Path, folder: Path) -> None:
    _refused(tmp_path / "nowhere", r"nowhere/config.json is not there; a checkpoint folder holds config.json and")
    _refused(folder / WEIGHTS, "config.json is not there")
    (folder / WEIGHTS).unlink()
    _refused(folder, rf"holds neither {WEIGHTS} nor {INDEX}")
    (folder / WEIGHTS).mkdir()
    _refused(folder, "holds neither")
    (folder / WEIGHTS).rmdir()
    os.mkfifo(folder / WEIGHTS)  # opening it would wait for ever
    _refused(folder, "holds neither")


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt", "last.ckpt", WEIGHTS])
def test_pickles_are_never_opened(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / WEIGHTS).unlink()
    torch.save(Bomb(tmp_path / "went_off"), folder / name)
    _refused(folder, "is a pickle, which can run code" if name != WEIGHTS else "is not a whole safetensors file")
    assert not (tmp_path / "went_off").exists()
    torch.load(io.BytesIO((folder / name).read_bytes()), weights_only=False)  # it was live
    assert (tmp_path / "went_off").exists()
