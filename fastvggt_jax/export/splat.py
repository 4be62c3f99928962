"""splat/: photographs and a COLMAP model side by side, as the trainers of Gaussian splatting read them."""

from __future__ import annotations

from pathlib import Path

from fastvggt_jax.export.base import Export, Format
from fastvggt_jax.export.colmap import ABOUT, FILES, write_colmap
from fastvggt_jax.export.depth import file_stems
from fastvggt_jax.export.photographs import place_photographs
from fastvggt_jax.scene import Scene

FOLDER = "splat"


def write_splat(export: Export, folder: Path) -> None:
    """Write images/ and sparse/0, PINHOLE cameras alone: the photographs have no distortion that we know of,
    so they are as they are. Raises what `place_photographs` raises.
    """
    options = export.options
    scene = place_photographs(
        export.scene, folder / "images", export.photographs, copy=options.copy_photographs
    )
    write_colmap(scene, export.tracks, folder / "sparse" / "0", shared_camera=options.shared_camera)


def of_photographs(scene: Scene) -> dict[str, list[str]]:
    return {FOLDER: [f"{FOLDER}/images/{stem}" for stem in file_stems(scene.names)]}


SPLAT = Format(
    "splat",
    (f"{FOLDER}/images/*", *(f"{FOLDER}/sparse/0/{name}.bin" for name in FILES)),
    lambda export, folder: write_splat(export, folder / FOLDER),
    tracked=True,
    about=f"photographs, upright, and {ABOUT}; by the names in images/",
    default=False,
    of_photographs=of_photographs,
)
