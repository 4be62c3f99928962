"""Who may import whom (CONTRIBUTING, "Where things are"), and what `import fastvggt_jax` pulls."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROLES = {  # path prefix -> role; the longest prefix wins
    "pallas_kernels": "kernels",
    "fastvggt_jax/errors": "errors",
    "fastvggt_jax/registry": "registry",
    "fastvggt_jax/sparsity": "sparsity",
    "fastvggt_jax/attention": "attention",
    "fastvggt_jax/sharding": "sharding",
    "fastvggt_jax/geometry": "geometry",
    "fastvggt_jax/io": "io",
    "fastvggt_jax/sources": "sources",
    "fastvggt_jax/models": "models",
    "fastvggt_jax/datasets": "datasets",
    "fastvggt_jax/scene": "scene",
    "fastvggt_jax/sequence": "sequence",
    "fastvggt_jax/export": "export",
    "fastvggt_jax/refine": "refine",
    "fastvggt_jax/pretrained": "pretrained",
    "fastvggt_jax/testing": "testing",
    "fastvggt_jax/train": "train",
    "fastvggt_jax/evaluate": "evaluate",
    "fastvggt_jax/programs": "programs",
    "fastvggt_jax/chunks": "chunks",
    "fastvggt_jax/pipeline": "pipeline",
    "fastvggt_jax/saved": "saved",
    "fastvggt_jax/batch": "batch",
    "fastvggt_jax/seeing": "seeing",
    "fastvggt_jax/analyze": "analyze",
    "fastvggt_jax/bench": "bench",
    "fastvggt_jax/profile": "profile",
    "fastvggt_jax/cli": "cli",
    "fastvggt_jax/__main__": "cli",
    "fastvggt_jax": "package",
    "convert": "convert",
    "convert/convert_weights": "cli",
}
MAY_IMPORT = {  # "errors" may be imported from everywhere but pallas_kernels
    "kernels": set(),
    "errors": set(),
    "registry": set(),
    "sparsity": {"kernels"},
    "attention": {"kernels", "sparsity"},
    "sharding": {"kernels"},
    "geometry": set(),
    "io": {"geometry"},
    "sources": {"io", "registry"},
    "models": {"attention", "sparsity", "sharding", "geometry", "sources", "registry"},
    "datasets": {"geometry", "io", "registry", "sources"},
    "scene": {"geometry", "sources", "io", "models"},
    "export": {"scene", "geometry", "sources", "io", "registry"},
    "refine": {"export", "scene", "geometry", "io", "models", "sources"},
    "sequence": {"geometry", "models", "scene", "sources"},
    "pretrained": {"models", "sparsity", "sharding", "io", "convert"},
    "convert": {"models", "io"},
    "testing": {"models", "io"},
    "train": {"kernels", "models", "geometry", "sources", "datasets", "pretrained", "io"},
    "evaluate": {"kernels", "sparsity", "sharding", "models", "geometry", "sources", "datasets", "io"},
    "programs": {"models", "refine", "sharding", "sources"},
    "chunks": {"programs", "models", "refine", "sequence", "sources", "io"},
    "pipeline": {
        "programs",
        "chunks",
        "models",
        "sparsity",
        "sharding",
        "sources",
        "scene",
        "export",
        "refine",
        "sequence",
        "pretrained",
        "io",
        "evaluate",
    },
    "saved": {"scene", "export", "refine", "io"},
    "batch": {"pipeline", "programs", "refine", "sources", "export", "io"},
    "seeing": {"scene", "export", "refine", "evaluate", "geometry", "sources", "io"},
    "analyze": {"models", "sparsity", "profile", "io", "evaluate"},
    "profile": {"kernels", "models", "sources"},
    "bench": {
        "package",
        "profile",
        "programs",
        "sharding",
        "kernels",
        "attention",
        "sparsity",
        "sources",
        "models",
        "testing",
        "io",
    },
    "cli": {
        *("sparsity", "datasets", "export", "pretrained", "convert"),
        *("train", "evaluate", "pipeline", "saved", "batch", "seeing", "analyze", "sources"),
        *("bench", "profile", "io", "package"),
    },
}


def role(path: str) -> str:
    return ROLES[
        max(
            (prefix for prefix in ROLES if path == prefix or path.startswith((prefix + "/", prefix + "."))),
            key=len,
        )
    ]


def imports(path: Path) -> set[str]:
    """Our own modules that a file imports, as paths without suffix, also those inside functions."""
    found = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):  # what only a type checker reads is no import
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    ours = ("pallas_kernels", "fastvggt_jax", "convert")
    found = {name.replace(".", "/") for name in found if name.split(".")[0] in ours}
    return {name for name in found if (ROOT / name.split("/")[0]).is_dir()}


SOURCES = [
    p
    for folder in ("pallas_kernels", "fastvggt_jax", "convert")
    for p in sorted((ROOT / folder).rglob("*.py"))
]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    here = role(str(path.relative_to(ROOT).with_suffix("")))
    if path == ROOT / "fastvggt_jax" / "__init__.py":
        assert not imports(path), "the package itself imports its modules lazily"
        return
    for name in imports(path):
        there = role(name)
        allowed = {here, *MAY_IMPORT[here], *(("errors",) if here != "kernels" else ())}
        assert there in allowed, f"{path.name} ({here}) must not import {name} ({there})"


def test_nothing_is_allowed_that_nobody_needs():
    used: dict[str, set] = {here: set() for here in MAY_IMPORT}
    for path in SOURCES:
        if path != ROOT / "fastvggt_jax" / "__init__.py":
            used[role(str(path.relative_to(ROOT).with_suffix("")))] |= {role(name) for name in imports(path)}
    assert not {here: unused for here, may in MAY_IMPORT.items() if (unused := may - used[here])}


def test_kernels_know_no_flax_and_convert_no_torch():
    for path in SOURCES:
        top = {
            name.name.split(".")[0] if isinstance(node, ast.Import) else (node.module or "").split(".")[0]
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in node.names
        }
        assert "torch" not in top, f"{path} imports torch at module level"
        if "pallas_kernels" in path.parts:
            assert "flax" not in top, f"{path} imports Flax"


def test_import_pulls_no_optional_dependency():
    code = (
        "import sys, fastvggt_jax as fv\n"
        "fv.VGGT, fv.Sparsity, fv.from_pretrained, fv.load_images, fv.to_scene, fv.export\n"
        "extras = ('torch', 'matplotlib', 'trimesh', 'typer', 'huggingface_hub', 'optax', 'pydantic')\n"
        "print([m for m in extras if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_the_pipeline_does_without_scipys_statistics():
    """They take seconds to be imported, and a rank correlation alone needs them."""
    modules = "sys, fastvggt_jax.pipeline, fastvggt_jax.evaluate.runner"
    code = f"import {modules}; print('scipy.stats' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "False"


def test_public_names_exist():
    import fastvggt_jax as fv

    for name in fv.__all__:
        assert getattr(fv, name) is not None and name in dir(fv)
    with pytest.raises(AttributeError, match="nothing_of_ours"):
        fv.nothing_of_ours  # noqa: B018
