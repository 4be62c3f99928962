"""K that is known beforehand."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastvggt_jax.errors import InputError, MissingError
from fastvggt_jax.export.lenses import original_sizes, with_K
from fastvggt_jax.io.colmap import read_model
from fastvggt_jax.refine.camera_files import (
    Files,
    are_by_others,
    check_upright,
    checked_K,
    images_of,
    of_all,
    read_text,
    size_of,
    warn_of_distortion,
)
from fastvggt_jax.scene import Scene


def with_intrinsics(scene: Scene, given: str) -> Scene:
    """The scene with a K that is known; depth follows.

    given: "fx,fy,cx,cy" in pixels of the photographs, for all of them; or a file of these numbers; or a
      cameras.json of ours; or the folder of a COLMAP model. A point stays at its pixel, and its depth is
      multiplied by the ratio of the focal lengths, new to old: then it has the same size across as before,
      and between views it still moves as the photographs show.

    Raises MissingError, or InputError if `given` is none of these, or of other photographs.
    """
    sizes = original_sizes(scene.transforms)
    return with_known_K(scene, known_K(scene.names, sizes, given, scene.paths))


def with_known_K(scene: Scene, K: np.ndarray) -> Scene:
    """The same for K f64[F, 3, 3] in pixels of the photographs."""
    old = np.stack([scene.K_original(i) for i in range(len(K))])
    focal = lambda k: np.sqrt(k[:, 0, 0] * k[:, 1, 1])
    ratio = focal(K) / focal(old)
    scene = with_K(scene, K, ("given",) * len(K))
    centres = scene.world_from_cam[:, :3, 3][:, None, None]
    scale = ratio.astype(np.float32)[:, None, None]
    points = centres + scale[..., None] * (scene.points - centres)
    return dataclasses.replace(scene, depth=scene.depth * scale, points=points.astype(np.float32))


def known_K(
    names: Sequence[str], sizes: Sequence[tuple[int, int]], given: str, files: Files = ()
) -> np.ndarray:
    """f64[F, 3, 3] of photographs of these names and original sizes (width, height), and in these files, see
    `with_intrinsics`, which raises the same.
    """
    read = read_intrinsics(given)
    if read.of_all is not None:
        if len(set(sizes)) > 1:
            text = f"intrinsics {given} are of one camera, but the photographs have {len(set(sizes))} sizes"
            raise InputError(f"{text}: give a K for each, in a cameras.json", argument="intrinsics")
        return np.tile(read.of_all, (len(sizes), 1, 1))
    warn_of_distortion(read.distorted, f"intrinsics {given}")
    if read.by_others:
        check_upright(files, f"intrinsics {given}", "intrinsics")
    found = []
    for name, size, (K, theirs) in zip(
        names, sizes, of_all(names, read.of_each, f"intrinsics {given}", "intrinsics"), strict=True
    ):
        if tuple(theirs) != size:
            pixels = "{}x{}".format(*theirs), "{}x{}".format(*size)
            text = f"intrinsics {given}: {name} has {pixels[0]} pixels there, and {pixels[1]} here"
            raise InputError(text, argument="intrinsics")
        found.append(checked_K(K, given))
    return np.stack(found)


class Intrinsics(NamedTuple):
    """What `intrinsics` says, whatever the photographs: one K for all, or of each name K as it was written
    and the size (width, height). distorted: names of those with a lens that has distortion; by_others:
    whether they may be of photographs as they are stored.
    """

    of_all: np.ndarray | None
    of_each: Mapping[str, tuple[Any, tuple[int, int]]] = {}
    distorted: Sequence[str] = ()
    by_others: bool = False


def read_intrinsics(given: str) -> Intrinsics:
    """Raises MissingError, or InputError for what `with_intrinsics` does not take of any photographs."""
    if not given.strip():
        text = "intrinsics must be fx,fy,cx,cy, a file or a folder, not empty"
        raise InputError(text, argument="intrinsics")
    path = Path(given)
    numbers = _numbers(given)
    if numbers is None and not os.path.exists(path):
        text = f"intrinsics {given}: no such file, and not fx,fy,cx,cy"
        raise MissingError(text, argument="intrinsics")
    if numbers is None and not os.path.isdir(path) and path.suffix.lower() != ".json":
        numbers = _numbers(read_text(path, "intrinsics"))
        if numbers is None:
            text = f"intrinsics {given} must hold fx,fy,cx,cy, or be a cameras.json or a COLMAP folder"
            raise InputError(text, argument="intrinsics")
    if numbers is not None:
        fx, fy, cx, cy = numbers
        return Intrinsics(checked_K([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], given))
    if os.path.isdir(path):
        model = read_model(path, "intrinsics")
        of_each = {one.name: (one.K, one.size) for one in model}
        return Intrinsics(None, of_each, [one.name for one in model if one.distorted], by_others=True)
    images, *_ = images_of(path, "intrinsics")
    of_each = {one["name"]: (one["K"], size_of(one)) for one in images}
    return Intrinsics(None, of_each, by_others=are_by_others(images))


def _numbers(text: str) -> list[float] | None:
    try:
        numbers = [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        return None
    return numbers if len(numbers) == 4 else None
