"""Dependencies point down, and this says so (docs/README.md has the same table for readers).

`violations(root)` reads every import under a package folder without running anything, so the tests can also plant wrong
ones in a temporary tree and see each found.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).parents[1]
PLAIT = REPOSITORY / "plait"

MAY_IMPORT = {
    "config": set(),
    "text": set(),
    "native": set(),
    "ops": {"native"},
    "accounting": {"config"},
    "model": {"config", "ops"},
    "quant": {"config", "ops", "model"},
    "parallel": {"config", "model"},
    "data": {"text"},
    "train": {"config", "accounting", "model", "parallel", "data"},
    "serve": {"config", "accounting", "text", "model", "quant", "parallel"},
    "synth": {"text", "data"},
    "eval": {"text"},
}
MAY_IMPORT_ANYTHING = {"__init__", "__main__", "cli", "recipes", "paper", "bench", "demo"}

# Importing these must not import torch: planning, data and evaluation start fast and run where there is no torch.
TORCH_FREE = ("config", "accounting", "text", "data", "synth", "eval", "serve/plan", "serve/request",
    "serve/pools", "serve/prefix_tree", "serve/memory", "serve/sequence", "serve/drafts", "serve/scheduler",
    "serve/engine", "serve/prompts", "serve/answer", "serve/fit", "serve/channel", "serve/http",
)  # fmt: skip

KERNEL_PACKAGES = {
    "causal_conv1d", "cutlass", "deep_gemm", "fla", "flash_attn", "flashinfer", "grouped_gemm", "mamba_ssm",
    "megablocks", "tilelang", "torchao", "transformer_engine", "triton", "vllm", "xformers",
}  # fmt: skip
NOT_BACKENDS = {"__init__.py", "cases.py", "reference.py"}

PUBLIC_KEYS = {
    "attn_layer_offset", "attn_layer_period", "b_layernorm", "bos_token_id", "c_layernorm", "dt_layernorm",
    "embed_tokens", "eos_token_id", "expert_layer_offset", "expert_layer_period", "final_layernorm", "hidden_act",
    "hidden_size", "initializer_range", "input_layernorm", "intermediate_size", "mamba_conv_bias", "mamba_d_conv",
    "mamba_d_state", "mamba_dt_rank", "mamba_expand", "mamba_proj_bias", "max_position_embeddings",
    "num_attention_heads", "num_experts", "num_experts_per_tok", "num_hidden_layers", "num_key_value_heads",
    "num_local_experts", "output_router_logits", "pad_token_id", "pre_ff_layernorm", "rms_norm_eps",
    "router_aux_loss_coef", "tie_word_embeddings", "torch_dtype", "use_mamba_kernels",
}  # fmt: skip
PUBLIC_KEY = re.compile(rf"\b(?:{'|'.join(sorted(PUBLIC_KEYS))})\b")
PUBLIC_KEYS_LIVE_IN = "model/checkpoint.py"

VAGUE_NAMES = {"common", "helper", "helpers", "misc", "util", "utils"}

MAX_LINES = 500
LONGER_FOR_A_REASON: dict[str, str] = {}  # path under plait/ -> the reason


@dataclass(frozen=True)
class Import:
    target: str  # absolute and dotted, down to the imported name: `from torch import distributed` is torch.distributed
    line: int
    at_import: bool  # runs when the file is imported: not inside a function, not for type checkers only


def imports_of(tree: ast.Module, package: str) -> Iterator[Import]:
    """Every import in a file of `package` (dotted): absolute, relative, in a function, import_module("literal")."""

    def visit(node: ast.AST, at_import: bool) -> Iterator[Import]:
        for target in _targets(node, package):
            yield Import(target, node.lineno, at_import)  # type: ignore[attr-defined]
        only_for_types: list[ast.stmt] = []
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            only_for_types = node.body
        inside = at_import and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside and child not in only_for_types)

    return visit(tree, True)


def _targets(node: ast.AST, package: str) -> list[str]:
    match node:
        case ast.Import():
            return [alias.name for alias in node.names]
        case ast.ImportFrom():
            base = _resolve("." * node.level + (node.module or ""), package)
            return [f"{base}.{alias.name}" for alias in node.names]
        case ast.Call(func=ast.Name(id="import_module" | "__import__"), args=[ast.Constant(value=str(name)), *_]):
            return [_resolve(name, package)]
        case ast.Call(func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(name)), *_]):
            return [_resolve(name, package)]
    return []


def _resolve(name: str, package: str) -> str:
    """An absolute dotted name; one leading dot is `package` itself, each further one its parent."""
    bare = name.lstrip(".")
    level = len(name) - len(bare)
    if level == 0:
        return bare
    parents = package.split(".")
    return ".".join([*parents[: len(parents) - level + 1], *([bare] if bare else [])])


def violations(root: Path) -> list[str]:
    """What breaks the rules in the package folder `root`: `path:line: what is wrong`, each path relative to `root`."""
    found = [f"{path.relative_to(root)}: a name that tells nothing; name it for its subject" for path in _vague(root)]
    for path in sorted(root.rglob("*.py")):
        where = path.relative_to(root)
        source = path.read_text(encoding="utf-8")
        n_lines = source.count("\n")
        if n_lines > MAX_LINES and where.as_posix() not in LONGER_FOR_A_REASON:
            found.append(f"{where}: {n_lines} lines; split it, or give the reason in LONGER_FOR_A_REASON")
        tree = ast.parse(source, filename=str(path))
        package = ".".join([root.name, *where.parent.parts])
        for seen in imports_of(tree, package):
            found += [f"{where}:{seen.line}: {wrong}" for wrong in _wrong_with(seen, where, root.name)]
        found += [f"{where}:{line}: {wrong}" for line, wrong in _wrong_words(tree, where)]
    return found


def _vague(root: Path) -> list[Path]:
    return sorted(
        path for path in root.rglob("*") if path.stem in VAGUE_NAMES and (path.is_dir() or path.suffix == ".py")
    )


def _wrong_with(seen: Import, where: Path, root: str) -> Iterator[str]:
    importer = where.with_suffix("").parts[0]
    top = seen.target.partition(".")[0]
    if top == root and importer not in MAY_IMPORT_ANYTHING:
        yield from _wrong_inside(seen, importer, root)
    torch_free = next((part for part in TORCH_FREE if _is_in(where, part)), None)
    if top == "torch" and torch_free and seen.at_import:
        yield f"imports {seen.target}, but importing {torch_free} must not import torch"
    if importer == "model" and f"{seen.target}.".startswith("torch.distributed."):
        yield "imports torch.distributed; model has a seam with a local default instead"
    is_backend = len(where.parts) == 3 and importer == "ops" and where.name not in NOT_BACKENDS
    is_backend |= where.as_posix() == "bench/rivals.py"  # what they are compared with
    if top in KERNEL_PACKAGES and not is_backend:
        yield f"imports {seen.target}; third-party kernels are imported in ops/<op>/<backend>.py only"


def _wrong_inside(seen: Import, importer: str, root: str) -> Iterator[str]:
    target = seen.target.split(".")[1] if "." in seen.target else ""
    if importer not in MAY_IMPORT:
        yield f"{importer} is not in the dependency table; decide what it may import"
    elif target in MAY_IMPORT or target in MAY_IMPORT_ANYTHING - {"__init__"}:
        if target != importer and target not in MAY_IMPORT[importer]:
            allowed = ", ".join(sorted(MAY_IMPORT[importer])) or "nothing"
            yield f"{importer} imports {target}; it may import {allowed}"
    elif target != "__version__":
        yield f"imports {seen.target}; inside {root}, import from the package that defines it"


def _is_in(where: Path, part: str) -> bool:
    """Whether a file is `part`.py or lies under the folder `part`."""
    return where.with_suffix("").as_posix() == part or where.is_relative_to(part)


def _wrong_words(tree: ast.Module, where: Path) -> Iterator[tuple[int, str]]:
    """Public checkpoint keys in names and strings (docstrings may mention them), and torch.distributed used."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if where.parts[0] == "model" and isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.distributed":
            yield line, "uses torch.distributed; model has a seam with a local default instead"
        if where.as_posix() == PUBLIC_KEYS_LIVE_IN or id(node) in docstrings:
            continue
        for key in _words_of(node):
            yield (
                line,
                f"{key} is a public checkpoint key; it belongs in {PUBLIC_KEYS_LIVE_IN}, ours is in docs/vocabulary.md",
            )


def _words_of(node: ast.AST) -> list[str]:
    match node:
        case ast.Constant(value=str(text)):
            return PUBLIC_KEY.findall(text)
        case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.keyword(arg=str(name)):
            return [name] if name in PUBLIC_KEYS else []
        case ast.FunctionDef(name=name) | ast.alias(name=name):
            return [name] if name in PUBLIC_KEYS else []
    return []


def test_plait_keeps_the_rules() -> None:
    assert violations(PLAIT) == []


def test_the_docs_show_the_same_table() -> None:
    rows = re.findall(r"^\| (.+) \| .+ \| (.+) \|$", (REPOSITORY / "docs/README.md").read_text(encoding="utf-8"), re.M)
    table = {
        package: set(allowed.split(", ")) - {"nothing"}
        for names, allowed in rows
        for package in re.findall("`(.+?)`", names)
    }
    assert table.items() >= MAY_IMPORT.items()
    assert {package for package, allowed in table.items() if allowed == {"anything"}} == MAY_IMPORT_ANYTHING - {
        "__init__",
        "__main__",
    }
    assert len(table) == len(MAY_IMPORT) + len(MAY_IMPORT_ANYTHING) - 2


def test_tests_are_named_for_a_subject() -> None:
    assert _vague(REPOSITORY / "tests") == []


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A package folder that keeps every rule."""
    files = {
        "__init__.py": "from importlib import import_module\nfrom plait.serve import LLM\n",
        "cli.py": "import plait\nfrom plait import LLM, serve, train\n",
        "config.py": '"""Not hidden_size."""\nfrom dataclasses import dataclass  # nor num_experts\n',
        "text/__init__.py": "from .template import render\nif TYPE_CHECKING:\n    import torch\n",
        "text/template.py": "def render():\n    import torch\n",
        "ops/rms_norm/__init__.py": "import torch\n",
        "ops/rms_norm/triton.py": "import triton\nfrom plait.ops import dispatch\nfrom ..dispatch import pick\n",
        "model/checkpoint.py": 'KEYS = {"hidden_size": "d_model"}\n',
        "model/layers.py": "import torch\nfrom plait.config import ModelConfig\nfrom plait import __version__, ops\n",
        "serve/runner.py": "import torch\nfrom plait.model import checkpoint\n",
    }
    root = tmp_path / "plait"
    for name, source in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(source)
    return root


def test_a_clean_tree_passes(tree: Path) -> None:
    assert violations(tree) == []


@pytest.mark.parametrize(
    ("name", "source", "complaint"),
    [
        ("config.py", "import plait.ops.rms_norm\n", "config.py:1: config imports ops; it may import nothing"),
        ("text/b.py", "from plait import config\n", "text imports config"),
        ("ops/a/b.py", "from ...model import layers\n", "ops imports model"),
        ("ops/b.py", "import importlib\nimportlib.import_module('plait.config')\n", "b.py:2: ops imports config"),
        (
            "ops/c.py",
            "from importlib import import_module\nimport_module('..config', __package__)\n",
            "ops imports config",
        ),
        ("model/b.py", "def f():\n    from plait.text import render\n", "model/b.py:2: model imports text"),
        ("model/c.py", "if TYPE_CHECKING:\n    from ..train import loop\n", "model imports train"),
        ("quant/b.py", "import torch, plait.serve\n", "quant imports serve; it may import config, model, ops"),
        ("train/b.py", "from plait.serve.engine import *\n", "train imports serve"),
        ("train/d.py", "class A:\n    from plait import recipes\n", "train imports recipes"),
        (
            "train/c.py",
            "from plait import LLM\n",
            "imports plait.LLM; inside plait, import from the package that defines it",
        ),
        ("train/e.py", "import plait\n", "imports plait; inside plait"),
        ("train/f.py", "from .. import load_model\n", "imports plait.load_model; inside plait"),
        ("serve/b.py", "from plait.train import loop\n", "serve imports train"),
        ("synth/b.py", "from plait.eval import task\n", "synth imports eval"),
        ("eval/b.py", "from plait.model import layers\n", "eval imports model; it may import text"),
        ("novelty/a.py", "from plait.config import presets\n", "novelty is not in the dependency table"),
        ("config.py", "import torch\n", "imports torch, but importing config must not import torch"),
        (
            "text/b.py",
            "try:\n    from torch.nn import functional\nexcept ImportError:\n    pass\n",
            "importing text must not",
        ),
        ("data/b.py", "class A:\n    import torch\n", "importing data must not import torch"),
        ("serve/scheduler.py", "import torch\n", "importing serve/scheduler must not import torch"),
        (
            "serve/prefix_tree.py",
            "if not TYPE_CHECKING:\n    import torch.nn\n",
            "importing serve/prefix_tree must not",
        ),
        ("model/d.py", "def f():\n    import torch.distributed as dist\n", "imports torch.distributed"),
        ("model/e.py", "from torch import distributed\n", "imports torch.distributed"),
        ("model/f.py", "from torch.distributed.tensor import DTensor\n", "imports torch.distributed"),
        ("model/g.py", "import torch\nn = torch.distributed.get_world_size()\n", "g.py:2: uses torch.distributed"),
        ("model/h.py", "import triton\n", "third-party kernels are imported in ops/<op>/<backend>.py only"),
        (
            "ops/dispatch.py",
            "def f():\n    import triton.language as tl\n",
            "imports triton.language; third-party kernels",
        ),
        ("ops/rms_norm/reference.py", "from flash_attn import flash_attn_func\n", "third-party kernels"),
        ("bench/b.py", "from mamba_ssm.ops import selective_scan\n", "third-party kernels"),
        ("model/i.py", "def f(hidden_size):\n    pass\n", "i.py:1: hidden_size is a public checkpoint key"),
        ("model/j.py", "x = config.num_hidden_layers\n", "num_hidden_layers is a public checkpoint key"),
        ("model/k.py", "f(intermediate_size=3)\n", "intermediate_size is a public checkpoint key"),
        ("cli.py", "d['num_experts_per_tok'] = 1\n", "num_experts_per_tok is a public checkpoint key"),
        ("cli.py", "print(f'attn_layer_period={x}')\n", "attn_layer_period is a public checkpoint key"),
        ("train/utils.py", "", "train/utils.py: a name that tells nothing"),
        ("serve/helpers/a.py", "", "serve/helpers: a name that tells nothing"),
        ("serve/long.py", "x = 1\n" * 501, "serve/long.py: 501 lines"),
    ],
)
def test_each_planted_fault_is_found(tree: Path, name: str, source: str, complaint: str) -> None:
    (tree / name).parent.mkdir(parents=True, exist_ok=True)
    (tree / name).write_text(source)
    found = violations(tree)
    assert len(found) == 1, found
    assert complaint in found[0]


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter in the repository, with nothing imported yet."""
    return subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)


def test_import_plait_brings_no_third_party_package() -> None:
    code = "import sys; before = set(sys.modules); import plait; print(*sorted(set(sys.modules) - before))"
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    outside = {name.partition(".")[0] for name in result.stdout.split()} - sys.stdlib_module_names
    assert outside == {"plait"}


def test_torch_free_parts_do_not_bring_torch() -> None:
    packages = [part for part in TORCH_FREE if "/" not in part and _exists(part)]
    assert "config" in packages
    check = "import plait.{0}; assert 'torch' not in sys.modules, 'importing plait.{0} imports torch'"
    lines = [check.format(package) for package in packages]
    result = run_python("\n".join(["import sys", *lines]))
    assert result.returncode == 0, result.stderr


def _exists(part: str) -> bool:
    return (PLAIT / f"{part}.py").is_file() or (PLAIT / part / "__init__.py").is_file()


def with_torch_alone(code: str) -> subprocess.CompletedProcess[str]:
    """Run `code` as if of all third-party packages only torch, what torch requires, and numpy were installed."""
    homes = metadata.packages_distributions()
    kept = _required_by("torch") | {"numpy", "plait"}
    blocked = sorted(name for name, owners in homes.items() if kept.isdisjoint(map(_normal, owners)))
    block = f"""
from importlib.machinery import PathFinder

find_spec = PathFinder.find_spec
blocked = {blocked!r}
PathFinder.find_spec = lambda name, *where: None if name.partition(".")[0] in blocked else find_spec(name, *where)
"""
    return run_python(block + code)


def _required_by(distribution: str) -> set[str]:
    """The distributions that installing this one brings on this machine, itself included (normalised names)."""
    required, new = set(), {distribution}
    while new:
        name = new.pop()
        required.add(name)
        lines = [Requirement(line) for line in metadata.requires(name) or []]
        new |= {_normal(r.name) for r in lines if r.marker is None or r.marker.evaluate({"extra": ""})} - required
    return required


def _normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def test_the_model_needs_torch_alone() -> None:
    result = with_torch_alone("import plait.model; assert plait.model.__file__")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("package", ["safetensors", "tokenizers", "rich", "transformers"])
def test_torch_alone_is_really_alone(package: str) -> None:
    result = with_torch_alone(f"import {package}")
    assert result.returncode != 0
    assert f"No module named '{package}'" in result.stderr
