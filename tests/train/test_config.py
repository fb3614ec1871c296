"""Settings on the command line: every kind of value, and errors that help."""

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.config import ModelConfig, presets
from plait.recipes import RECIPES
from plait.train.config import LossConfig, OptimConfig, TrainConfig, with_settings

BASE = TrainConfig("base", presets["tiny"])


def test_no_setting_changes_nothing() -> None:
    assert with_settings(BASE, []) == BASE


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("steps=20", replace(BASE, steps=20)),
        ("name=a=b", replace(BASE, name="a=b")),
        ("precision=bfloat16", replace(BASE, precision="bfloat16")),
        ("data.train=texts/", replace(BASE, data=replace(BASE.data, train="texts/"))),
        ("optim.lr=3e-4", replace(BASE, optim=replace(BASE.optim, lr=3e-4))),
        ("optim.grad_clip=inf", replace(BASE, optim=replace(BASE.optim, grad_clip=float("inf")))),
        ("optim.schedule=wsd", replace(BASE, optim=replace(BASE.optim, schedule="wsd"))),
        ("losses.activation=1", replace(BASE, losses=replace(BASE.losses, activation=1.0))),
        ("model.tie_embeddings=true", replace(BASE, model=replace(BASE.model, tie_embeddings=True))),
        ("model.conv_bias=0", replace(BASE, model=replace(BASE.model, conv_bias=False))),
        ("model.eos_ids=2,5", replace(BASE, model=replace(BASE.model, eos_ids=(2, 5)))),
        ("model.eos_ids=7", replace(BASE, model=replace(BASE.model, eos_ids=(7,)))),
        ("model=jamba-tiny-dev", replace(BASE, model=presets["jamba-tiny-dev"])),
        ("model.mamba_kind=mamba2", replace(BASE, model=replace(BASE.model, mamba_kind="mamba2"))),
    ],
)
def test_values_of_every_kind(setting: str, expected: TrainConfig) -> None:
    assert with_settings(BASE, [setting]) == expected


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("steps", "--set steps: it must be key=value, for example"),
        ("", "must be key=value"),
        ("=3", "TrainConfig has no ''; there are name, model, data"),
        ("step=3", "--set step=3: TrainConfig has no 'step'; did you mean steps"),
        ("optim.zzz=3", "OptimConfig has no 'zzz'; there are lr, beta1"),
        ("optim.warmup=3", "did you mean warmup_steps?"),
        ("model.n_layer=3", r"ModelConfig has no 'n_layer'; did you mean n_layers"),
        ("model.d_inner=3", "ModelConfig has no 'd_inner'"),  # derived, and not to be set
        ("tokens_per_step=3", "TrainConfig has no 'tokens_per_step'"),
        ("steps=many", "--set steps=many: 'many' is not a whole number"),
        ("steps=2.5", "'2.5' is not a whole number"),
        ("steps=", "'' is not a whole number"),
        ("optim.lr=fast", "'fast' is not a number"),
        ("model.tie_embeddings=maybe", "'maybe' is not true or false"),
        ("model.eos_ids=2,x", "'x' is not a whole number"),
        ("precision=fp8", "'fp8' must be one of float32, bfloat16"),
        ("model=tyni", "'tyni' is not a preset; did you mean tiny"),
        ("model=zzzz", "'zzzz' is not a preset; there are jamba-v0.1"),
        ("optim=adam", "--set optim=adam: set its parts: optim.lr, optim.beta1"),
        ("data=texts", "set its parts: data.train, data.heldout, data.tokenizer"),
        ("steps.more=3", "steps is a single value, it has no parts"),
        ("model.n_layers.x=3", "n_layers is a single value"),
        ("steps=0", "steps=0 must be a whole number of at least 1"),
        ("steps=-3", "steps=-3 must be"),
        ("accumulate=3", "batch=8 must be a multiple of accumulate=3"),
        ("seed=-1", "seed=-1 must not be negative"),
        ("optim.lr=0", "lr=0.0 must be greater than 0"),
        ("optim.lr=nan", "lr=nan must be greater than 0"),
        ("optim.lr=inf", "must be finite"),
        ("optim.weight_decay=nan", "must be finite"),
        ("optim.weight_decay=-1", "must not be negative"),
        ("optim.beta2=1", "must be at least 0 and less than 1"),
        ("optim.final_share=2", "final_share=2.0 must be between 0 and 1"),
        ("losses.balance=-1", r"losses\.balance=-1.0 must be a number of at least 0"),
        ("losses.router_z=nan", r"losses\.router_z=nan"),
        ("model.n_kv_heads=3", "n_heads=4 must be a multiple of n_kv_heads=3"),
        ("model.eos_ids=99999", "eos_ids="),
    ],
)
def test_errors_say_what_is_allowed(setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_settings(BASE, [setting])


def test_settings_are_checked_together() -> None:
    for settings in (["accumulate=3", "batch=6"], ["batch=6", "accumulate=3"]):
        changed = with_settings(BASE, settings)
        assert (changed.batch, changed.accumulate) == (6, 3)
    for settings in (["model.n_heads=6", "model.d_model=48"], ["model.d_model=48", "model.n_heads=6"]):
        assert with_settings(BASE, settings).model.d_head == 8


def test_the_last_of_one_key_counts_and_a_preset_comes_first() -> None:
    assert with_settings(BASE, ["steps=3", "steps=4"]).steps == 4
    for settings in (["model=jamba-tiny-dev", "model.n_layers=4"], ["model.n_layers=4", "model=jamba-tiny-dev"]):
        assert with_settings(BASE, settings).model == replace(presets["jamba-tiny-dev"], n_layers=4)


def test_what_a_model_derived_is_derived_anew() -> None:
    wide = with_settings(BASE, ["model.d_model=256"]).model
    assert (wide.d_head, wide.dt_rank) == (64, 16)
    assert wide == replace(BASE.model, d_model=256, d_head=0, dt_rank=0)
    assert with_settings(BASE, ["model.n_heads=8"]).model.d_head == 16


def test_what_was_chosen_stays() -> None:
    own = replace(BASE, model=replace(BASE.model, d_head=24, dt_rank=5))
    model = with_settings(own, ["model.d_model=64", "model.n_heads=2"]).model
    assert (model.d_head, model.dt_rank) == (24, 5)
    model = with_settings(BASE, ["model.d_model=64", "model.d_head=8", "model.dt_rank=3"]).model
    assert (model.d_head, model.dt_rank) == (8, 3)


@given(
    st.sampled_from(["steps", "seq", "batch", "log_every", "model.d_ff", "optim.warmup_steps"]),
    st.integers(1, 10_000),
    st.floats(1e-9, 10),
)
def test_any_number_comes_through(name: str, count: int, lr: float) -> None:
    changed = with_settings(BASE, [f"{name}={count}", f"optim.lr={lr!r}"])
    value: object = changed
    for part in name.split("."):
        value = getattr(value, part)
    assert (value, changed.optim.lr) == (count, lr)


def test_configs_are_checked_when_they_are_made() -> None:
    with pytest.raises(ValueError, match=r"steps=2\.5 must be a whole number"):
        replace(BASE, steps=2.5)
    with pytest.raises(ValueError, match="schedule='linear' must be 'cosine' or 'wsd'"):
        OptimConfig(schedule="linear")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"losses\.activation=-1"):
        LossConfig(activation=-1)
    with pytest.raises(ValueError, match="precision='half'"):
        replace(BASE, precision="half")
    assert replace(BASE, batch=3, seq=5).tokens_per_step == 15


def test_subclasses_of_the_config_can_be_set_too() -> None:
    @dataclass(frozen=True)
    class Own(TrainConfig):
        curriculum: bool = False

    assert with_settings(Own("own", presets["tiny"]), ["curriculum=true"]).curriculum is True  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_recipes_are_named_after_themselves(name: str) -> None:
    config = RECIPES[name]()
    assert config.name == name
    assert isinstance(config.model, ModelConfig)
    assert any(hardware in str(RECIPES[name].__doc__) for hardware in ("CPU", "GPU", "H100", "demo"))
