"""Who may import whom (CONTRIBUTING, "Where things are"), and what `import fastvggt_jax` pulls."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROLES = {  # path prefix -> role; the longest prefix wins
    "pallas_kernels": "kernels",
    "fastvggt_jax/attention": "attention",
    "fastvggt_jax/sparsity": "sparsity",
    "fastvggt_jax/models": "models",
    "fastvggt_jax/geometry": "geometry",
    "fastvggt_jax/intrinsics": "geometry",
    "fastvggt_jax/images": "images",
    "fastvggt_jax/tensor_file": "tensor_file",
    "fastvggt_jax/checkpoint": "checkpoint",
    "fastvggt_jax/errors": "errors",
    "fastvggt_jax/scene": "scene",
    "fastvggt_jax/export": "export",
    "fastvggt_jax/synthetic": "synthetic",
    "fastvggt_jax/train": "train",
    "fastvggt_jax/evaluate": "evaluate",
    "fastvggt_jax/evaluate/cli": "app",
    "fastvggt_jax": "app",  # cli, bench, random_weights and what only they use
    "convert": "convert",
}
MAY_IMPORT = {
    "kernels": set(),
    "sparsity": {"kernels"},
    "attention": {"kernels", "sparsity"},
    "errors": set(),
    "geometry": set(),
    "images": set(),
    "tensor_file": set(),
    "models": {"attention", "sparsity", "geometry"},
    "checkpoint": {"models", "tensor_file"},
    "scene": {"geometry", "images"},
    "export": {"scene", "geometry", "images"},
    "synthetic": {"geometry", "export"},
    "train": {"models", "geometry", "synthetic", "checkpoint", "tensor_file", "export", "errors"},
    "evaluate": {"kernels", "sparsity", "models", "geometry", "images", "scene", "synthetic", "export"},
    "convert": {"models", "checkpoint", "tensor_file"},
    "app": {
        *("attention", "sparsity", "models", "geometry", "images", "tensor_file", "checkpoint"),
        *("scene", "export", "kernels", "train", "evaluate", "errors"),
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
        assert there == here or there in MAY_IMPORT[here], (
            f"{path.name} ({here}) must not import {name} ({there})"
        )


def test_kernels_know_no_flax_and_convert_no_torch():
    for path in SOURCES:
        top = {
            name.name.split(".")[0] if isinstance(node, ast.Import) else (node.module or "").split(".")[0]
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in node.names
        }
        assert "torch" not in top, f"{path} imports torch at module level"
        if path.parts[-2] == "pallas_kernels":
            assert "flax" not in top, f"{path} imports Flax"


def test_import_pulls_no_optional_dependency():
    code = (
        "import sys, fastvggt_jax as fv\n"
        "fv.VGGT, fv.Sparsity, fv.from_pretrained, fv.load_images, fv.to_scene, fv.export\n"
        "print([m for m in ('torch', 'matplotlib', 'trimesh', 'typer', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_exist():
    import fastvggt_jax as fv

    for name in fv.__all__:
        assert getattr(fv, name) is not None and name in dir(fv)
    with pytest.raises(AttributeError, match="nothing_of_ours"):
        fv.nothing_of_ours  # noqa: B018
