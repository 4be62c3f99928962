"""cameras.json, every photograph's camera at its original resolution, and scene.npz, the whole scene."""

from __future__ import annotations

import contextlib
import glob
import os
from pathlib import Path

from fastvggt_jax.errors import Error
from fastvggt_jax.export.base import Export, Format, all_formats
from fastvggt_jax.io import scenes
from fastvggt_jax.io.json_files import read_json
from fastvggt_jax.io.scenes import write_cameras


def _write(export: Export, folder: Path) -> None:
    write_cameras(export.scene, folder / scenes.CAMERAS, files=files_of_photographs(export, folder))


def files_of_photographs(export: Export, folder: Path) -> list[dict[str, str]]:
    """For each photograph {kind: path relative to the folder} of the files that are there."""
    files: list[dict[str, str]] = [{} for _ in export.scene.names]
    for format in all_formats():
        kinds = format.of_photographs(export.scene) if format.of_photographs else {}
        for kind, paths in kinds.items():
            for of_one, path in zip(files, paths, strict=True):
                found = next(
                    (path + ending for ending in ("", *ENDINGS) if os.path.exists(folder / (path + ending))),
                    "",
                )
                if found:
                    of_one[kind] = found
    return files


def written_in(folder: str | os.PathLike) -> list[str]:
    """The files, as paths in it, that are ours in a folder of ours, of which the first tells that it is one:
    those that have the same name in every folder, and those of photographs that its cameras.json names; and
    the same of pieces of a sequence in it.
    """
    names = [pattern for format in all_formats() for pattern in format.files if "*" not in pattern]
    names.append(scenes.PAGE)
    with contextlib.suppress(Error, AttributeError, KeyError, TypeError):  # damaged: then they are nobody's
        for photograph in read_json(Path(folder) / scenes.CAMERAS)["images"]:
            files = photograph["files"].items()
            names += [glob.escape(path) for kind, path in files if kind != "photograph"]
    of_pieces = [f"{piece.name}/{name}" for piece in scenes.pieces_in(folder) for name in written_in(piece)]
    return of_pieces + names if of_pieces and not (Path(folder) / names[0]).exists() else names + of_pieces


ENDINGS = (".jpg", ".png")  # of photographs, which keep theirs where that can be

CAMERAS = Format(
    "cameras",
    (scenes.CAMERAS,),
    _write,
    about="for each photograph K, world_from_cam and its files; the conventions stand in it",
    describes=True,
)
SCENE = Format(
    "scene",
    (scenes.SCENE,),
    lambda export, folder: scenes.write_scene(
        export.scene, folder / scenes.SCENE, float16=export.options.float16
    ),
    pixel_bytes=28,  # points, depth, their confidences, colours, valid
    about="the whole scene for fastvggt_jax.Scene.load; K in the model's pixels, OpenCV axes",
)
