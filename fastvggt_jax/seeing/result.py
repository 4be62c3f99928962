"""A folder that reconstruct has written, read again; and how two of them, or one and the truth, differ."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastvggt_jax.errors import InputError, MissingError
from fastvggt_jax.evaluate.metrics import abs_rel, ate, auc, depth_scale, pair_errors
from fastvggt_jax.export.conventions import read_run
from fastvggt_jax.geometry.alignment import Similarity, align, best_rotation
from fastvggt_jax.io import scenes
from fastvggt_jax.io.colors import colorize
from fastvggt_jax.refine.positions import known_positions
from fastvggt_jax.scene import Scene

Cameras = dict[int, np.ndarray]  # cam_from_world f64[3, 4] by the number of the photograph


@dataclasses.dataclass(frozen=True)
class Result:
    """scene: as it was saved. run: what reconstruct said of itself; empty where that was not kept."""

    folder: Path
    scene: Scene
    run: Mapping[str, Any]


def read_result(folder: str | os.PathLike, argument: str = "folder") -> Result:
    """Raises MissingError or InputError for what is no folder of a reconstruction, and as Scene.load."""
    path = Path(folder)
    if not os.path.isdir(path):
        what = "is a file" if os.path.exists(path) else "is not there"
        kind = InputError if os.path.exists(path) else MissingError
        raise kind(
            f"{argument} {path} {what}; give the folder that reconstruct has written", argument=argument
        )
    if not os.path.exists(path / scenes.SCENE) and not scenes.pieces_in(path):  # of which Scene.load tells
        text = (
            f"{argument} {path} holds no {scenes.SCENE}: give a folder that reconstruct has written with the"
        )
        raise MissingError(f"{text} format scene, which is among the default ones", argument=argument)
    return Result(path, Scene.load(path), read_run(path))


def truth_of(path: str, scene: Scene) -> Cameras:
    """The cameras that a cameras.json, a folder with one, or the folder of a COLMAP model has of the scene's
    photographs, by name. Raises InputError, MissingError, FileError.
    """
    file = os.path.join(path, scenes.CAMERAS)
    try:
        known = known_positions(file if os.path.isfile(file) else path, scene.names).known
    except (InputError, MissingError) as error:  # it is the same file, under another option
        text = str(error).replace("align_to", "truth")
        raise type(error)(text, argument="truth") from error
    if not known.rotations:
        text = f"truth {path} has positions alone: give a cameras.json, or the folder of a COLMAP model"
        raise InputError(text, argument="truth")
    found = {}
    for i, name in enumerate(scene.names):
        key = name if name in known.centres else Path(name).name
        if key in known.centres:
            rotation = known.rotations[key].T
            found[i] = np.concatenate([rotation, -(rotation @ known.centres[key])[:, None]], -1)
    return found


def cameras_of(other: Scene, scene: Scene, argument: str = "against") -> Cameras:
    """Another scene's cameras of the same photographs. InputError where they share fewer than two."""
    at = {name: i for i, name in enumerate(other.names)}
    found = {i: other.cam_from_world[at[name]] for i, name in enumerate(scene.names) if name in at}
    if len(found) < 2:
        has = f"{argument} has {len(found)} of the {len(scene.names)} photographs" if found else ""
        text = has or f"{argument} is of other photographs ({other.names[0]}, ...)"
        raise InputError(f"{text}: at least two have to be the same", argument=argument)
    return found


def camera_errors(scene: Scene, other: Cameras) -> dict[str, float]:
    """Medians of all pairs in degrees, AUC in percent, the distance of centres in the other's unit."""
    mine, theirs = scene.cam_from_world[list(other)], np.stack(list(other.values()))
    rotation, translation = pair_errors(mine, theirs)
    return {
        "photographs": len(other),
        "rotation, degrees": float(np.median(rotation)),
        "direction, degrees": float(np.median(translation)),
        "AUC@5, %": auc(rotation, translation, 5),
        "AUC@30, %": auc(rotation, translation, 30),
        "distance of centres": ate(mine, theirs),
    }


def depth_errors(scene: Scene, other: Scene) -> dict[int, float]:
    """By photograph the mean of |depth - other's| / other's, after one scale for all; of photographs that
    both have in the same pixels.
    """
    at = {name: i for i, name in enumerate(other.names)}
    pairs = [(i, at[name]) for i, name in enumerate(scene.names) if name in at]
    pairs = [(i, j) for i, j in pairs if scene.transforms[i] == other.transforms[j]]
    shown = {i: scene.valid[i] & other.valid[j] & (other.depth[j] > 0) for i, j in pairs}
    pairs = [(i, j) for i, j in pairs if shown[i].any()]
    if not pairs:
        return {}
    mine = np.concatenate([scene.depth[i][shown[i]] for i, _ in pairs])
    theirs = np.concatenate([other.depth[j][shown[i]] for i, j in pairs])
    scale = depth_scale(mine, theirs)
    return {i: abs_rel(scale * scene.depth[i][shown[i]], other.depth[j][shown[i]]) for i, j in pairs}


def brought_to(scene: Scene, other: Cameras) -> Similarity:
    """What brings the other's world to the scene's: the turn of the cameras' axes, then scale and place."""
    mine, theirs = scene.cam_from_world[list(other)].astype(np.float64), np.stack(list(other.values()))
    centres = lambda poses: -np.einsum("fji,fj->fi", poses[:, :, :3], poses[:, :, 3])
    here, there = centres(mine), centres(theirs)
    rotation, _ = best_rotation(np.einsum("fji,fjk->ik", mine[:, :, :3], theirs[:, :, :3]))
    turned = there @ rotation.T
    spread = [np.linalg.norm(x - x.mean(0)) for x in (here, turned)]
    scale = float(spread[0] / spread[1]) if min(spread) > 0 else 1.0
    if len(other) > 2:
        found = align(there, here)
        if np.trace(found.rotation.T @ rotation) > 2.9:  # centres on a line leave the turn about it open
            return found
    return Similarity(scale, rotation, here.mean(0) - scale * turned.mean(0))


def confidence_colors(scene: Scene) -> Any:
    """A function of a photograph's number: u8[H, W, 3], dark where the points are least sure, black where
    there are none. One scale for all photographs.
    """
    conf = scene.points_conf[scene.valid]
    conf = conf[:: -(-conf.size // 1_000_000) or 1] if conf.size else np.zeros(1, np.float32)
    at = np.quantile(conf, np.linspace(0, 1, 64))

    def colors(i: int) -> np.ndarray:
        pixels = colorize(np.interp(scene.points_conf[i], at, np.linspace(0, 1, 64)))
        return np.where(scene.valid[i][..., None], pixels, 0).astype(np.uint8)

    return colors


def jpeg(pixels: np.ndarray, width: int | None = None, quality: int = 82) -> bytes:
    """Of u8[H, W, 3], at most so many pixels wide."""
    image = Image.fromarray(pixels)
    if width is not None and image.width > width:
        image = image.resize(
            (width, max(1, round(image.height * width / image.width))), Image.Resampling.BICUBIC
        )
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()
