"""What plait writes, read by transformers with the compressed-tensors library: the same logits.

Where both are installed; neither is needed by plait.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from plait.model.checkpoint import load_model
from plait.quant import Scheme
from plait.quant.checkpoint import quantize_checkpoint

GOLDEN = Path(__file__).parents[1] / "golden"
ALL = Scheme(level="experts+mlp+mixers", head=True)
TOKENS = torch.arange(1, 40)[None]


@pytest.fixture(scope="module")
def transformers() -> Any:
    pytest.importorskip("compressed_tensors", reason="not installed: transformers can't read quantized weights")
    return pytest.importorskip("transformers", reason="not installed: nobody to read the files")


def logits_of_transformers(transformers: Any, folder: Path) -> Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(TOKENS).logits


@pytest.mark.parametrize(
    ("name", "scheme", "packed"),
    [
        ("hf-jamba-tiny", Scheme(), True),
        ("hf-jamba-tiny", ALL, True),
        ("hf-jamba-tiny", Scheme(group=8), True),
        ("hf-jamba-tiny", Scheme("fp8"), False),
        ("hf-jamba-tiny", Scheme("gptq", bits=4, group=8), False),
        ("hf-jamba-dense-tiny", Scheme(), True),
        ("hf-jamba-dense-tiny", Scheme(), False),
        ("hf-jamba-dense-tiny", Scheme("fp8", level="experts+mlp+mixers"), False),
    ],
    ids=str,
)
def test_transformers_makes_the_same_logits(
    transformers: Any, name: str, scheme: Scheme, packed: bool, tmp_path: Path
) -> None:
    calibration = torch.randint(1, 200, (2, 32), generator=torch.Generator().manual_seed(0))
    quantize_checkpoint(GOLDEN / name, tmp_path / "q", scheme, packed=packed, calibration=calibration)
    theirs = logits_of_transformers(transformers, tmp_path / "q")
    with torch.no_grad():
        ours, full = (load_model(folder)(TOKENS).logits for folder in (tmp_path / "q", GOLDEN / name))
    assert (theirs - ours).abs().max() < 2e-4
    assert (theirs - full).abs().max() > 2e-3  # it did read the rounded weights


def test_experts_it_can_only_read_packed(transformers: Any, tmp_path: Path) -> None:
    """transformers 5 fuses experts, and for int8 in bytes it has no conversion: it raises. When this fails, say in
    docs/quantization.md that it reads the default form too.
    """
    quantize_checkpoint(GOLDEN / "hf-jamba-tiny", tmp_path / "q", Scheme())
    with pytest.raises(RuntimeError, match="conversion"):
        logits_of_transformers(transformers, tmp_path / "q")
