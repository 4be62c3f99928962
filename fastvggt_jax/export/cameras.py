"""cameras.json, every photograph's camera at its original resolution, and scene.npz, the whole scene."""

from __future__ import annotations

from fastvggt_jax.export.base import Format
from fastvggt_jax.io import scenes
from fastvggt_jax.io.scenes import write_cameras

CAMERAS = Format(
    "cameras", (scenes.CAMERAS,), lambda export, folder: write_cameras(export.scene, folder / scenes.CAMERAS)
)
SCENE = Format(
    "scene", (scenes.SCENE,), lambda export, folder: scenes.write_scene(export.scene, folder / scenes.SCENE)
)
