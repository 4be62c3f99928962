"""VGGT in JAX: photographs of a scene to cameras, depth and points, with block-sparse global attention.

Names are imported where they are first used: `import fastvggt_jax` alone is quick and pulls no optional
dependency.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Pi3": "fastvggt_jax.models.pi3",
    "VGGT": "fastvggt_jax.models.vggt",
    "Prediction": "fastvggt_jax.models.prediction",
    "Sparsity": "fastvggt_jax.sparsity",
    "from_pretrained": "fastvggt_jax.pretrained",
    "load_images": "fastvggt_jax.sources",
    "to_scene": "fastvggt_jax.scene",
}
__all__ = ["VGGT", "Pi3", "Prediction", "Sparsity", "export", "from_pretrained", "load_images", "to_scene"]


def __getattr__(name: str) -> Any:
    if name == "export":
        return importlib.import_module("fastvggt_jax.export")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
