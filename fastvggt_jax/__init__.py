"""VGGT, π³ and Pi3X in JAX: photographs of a scene to cameras, depth and points, with block-sparse attention.

Names are imported where they are first used: `import fastvggt_jax` alone is quick and pulls no optional
dependency.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastvggt_jax import errors as errors
    from fastvggt_jax import export as export
    from fastvggt_jax.models.conditions import Conditions as Conditions
    from fastvggt_jax.models.pi3 import Pi3 as Pi3
    from fastvggt_jax.models.pi3x import Pi3X as Pi3X
    from fastvggt_jax.models.prediction import Prediction as Prediction
    from fastvggt_jax.models.prediction import Reconstruction as Reconstruction
    from fastvggt_jax.models.vggt import VGGT as VGGT
    from fastvggt_jax.pretrained import from_pretrained as from_pretrained
    from fastvggt_jax.scene import Scene as Scene
    from fastvggt_jax.scene import to_scene as to_scene
    from fastvggt_jax.sequence import reconstruct_sequence as reconstruct_sequence
    from fastvggt_jax.sources import load_images as load_images
    from fastvggt_jax.sparsity import Sparsity as Sparsity

__version__ = "0.1.0"

_HOME = {
    "Conditions": "fastvggt_jax.models.conditions",
    "Pi3": "fastvggt_jax.models.pi3",
    "Pi3X": "fastvggt_jax.models.pi3x",
    "VGGT": "fastvggt_jax.models.vggt",
    "Prediction": "fastvggt_jax.models.prediction",
    "Reconstruction": "fastvggt_jax.models.prediction",
    "Scene": "fastvggt_jax.scene",
    "Sparsity": "fastvggt_jax.sparsity",
    "from_pretrained": "fastvggt_jax.pretrained",
    "load_images": "fastvggt_jax.sources",
    "reconstruct_sequence": "fastvggt_jax.sequence",
    "to_scene": "fastvggt_jax.scene",
}
_MODULES = ("errors", "export")
__all__ = [
    "VGGT",
    "Conditions",
    "Pi3",
    "Pi3X",
    "Prediction",
    "Reconstruction",
    "Scene",
    "Sparsity",
    "errors",
    "export",
    "from_pretrained",
    "load_images",
    "reconstruct_sequence",
    "to_scene",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"fastvggt_jax.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
