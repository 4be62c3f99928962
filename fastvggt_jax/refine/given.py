"""What is known of photographs beforehand, as a model takes it that has it among its inputs."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastvggt_jax.errors import InputError, MissingError
from fastvggt_jax.export.depth import file_stems
from fastvggt_jax.export.lenses import model_from_original, original_sizes
from fastvggt_jax.io.files import regular_file
from fastvggt_jax.models.conditions import LARGEST, Conditions
from fastvggt_jax.refine.camera_files import known_cameras
from fastvggt_jax.refine.intrinsics import known_K
from fastvggt_jax.sources import Images, ImageTransform

MILLIMETRES = 1000.0  # of a PNG's numbers in a metre
DAMAGED = (
    *(OSError, ValueError, KeyError, TypeError, EOFError, SyntaxError, NotImplementedError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, Image.DecompressionBombError),
)


def conditions_of(
    images: Images, *, cameras: str | None = None, intrinsics: str | None = None, depth: str | None = None
) -> tuple[Conditions, dict[str, Any]]:
    """Conditions of one scene, and of how many photographs each thing is known.

    cameras: see `known_cameras`; its K too, unless there are `intrinsics`, see `known_K`. depth: a folder,
    see `depth_maps`; in one unit with the cameras.

    Raises what these raise.
    """
    names, sizes, transforms = images.names, original_sizes(images.transforms), images.transforms
    F, (H, W) = len(names), images.pixels.shape[1:3]
    files = images.paths
    given: dict[str, Any] = {}
    known: dict[str, Any] = {}
    K: dict[int, np.ndarray] = {}
    if cameras is not None:
        found = known_cameras(names, sizes, cameras, files)
        K = {i: one for i, (one, _) in found.items()}
        given["world_from_cam"], given["pose_mask"] = _poses({i: p for i, (_, p) in found.items()}, F)
        known["cameras"] = len(found)
    if intrinsics is not None:
        K = dict(enumerate(known_K(names, sizes, intrinsics, files)))
        known["intrinsics"] = F
    if K:
        of_model = {i: model_from_original(transforms[i]) @ one for i, one in K.items()}
        given["K"], given["ray_mask"] = _filled(of_model, np.diag([W, W, 1]), F)
    if depth is not None:
        maps = {i: in_model(one, transforms[i]) for i, one in depth_maps(depth, names, sizes).items()}
        given["depth"], given["depth_mask"] = _filled(maps, np.zeros((H, W)), F)
        known["depth"] = len(maps)
    conditions = Conditions(**given)
    conditions.check((1, *images.pixels.shape))
    return conditions, known


def _poses(known: dict[int, np.ndarray], count: int) -> tuple[np.ndarray, np.ndarray | None]:
    """f32[1, count, 4, 4] in the coordinates of the first view that is known, since a world may lie further
    from 0 than float32 tells cameras apart; NaN of those that are not, which change no unit, in no chunk; and
    the mask.
    """
    back = np.linalg.inv(known[min(known)])
    return _filled({i: back @ pose for i, pose in known.items()}, np.full((4, 4), np.nan), count)


def _mask(known: dict[int, np.ndarray], count: int) -> np.ndarray | None:
    return None if len(known) == count else np.array([[i in known for i in range(count)]])


def _filled(
    known: dict[int, np.ndarray], rest: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """f32[1, count, ...], `rest` where nothing is known; and bool[1, count], where something is: None if
    everywhere.
    """
    values = np.stack([known.get(i, rest) for i in range(count)])[None].astype(np.float32)
    return values, _mask(known, count)


def depth_maps(folder: str, names: tuple[str, ...], sizes: list[tuple[int, int]]) -> dict[int, np.ndarray]:
    """f32[h, w] along the optical axis, 0 where unknown, by the positions of those photographs, of original
    sizes (width, height), of which the folder has one.

    NAME.JPG.npy, .npz or .png, or without the photograph's ending: an array, that of the name `depth`, or
    whole numbers of 16 bits, millimetres. As large as the photograph, upright, or scaled in its proportions;
    0, NaN and infinity are not known.

    Raises MissingError if there is no such folder, InputError if it is of none of the photographs, for a
    file that may be of two of them, for a damaged one, and for one of another shape, or of numbers that are
    no depth.
    """
    if not os.path.isdir(folder):
        raise MissingError(f"depth {folder}: no such folder", argument="depth")
    found: dict[int, np.ndarray] = {}
    owner: dict[Path, tuple[str, str]] = {}
    for i, (name, stem) in enumerate(zip(names, file_stems(names), strict=True)):
        stems = dict.fromkeys((stem, Path(name).name, Path(name).stem))
        paths = (Path(folder) / f"{one}{end}" for one in stems for end in (".npy", ".npz", ".png"))
        path = next((path for path in paths if os.path.isfile(path)), None)
        if path is None:
            continue
        other, its_stem = owner.setdefault(path, (name, stem))
        if other != name:
            text = f"depth {path} may be of {other} or {name}: name it {its_stem}{path.suffix} or {stem}"
            raise InputError(f"{text}{path.suffix}", argument="depth")
        found[i] = _checked(_read(path), path, name, sizes[i])
    if not found:
        text = f"depth {folder} holds none of the photographs': it would be {names[0]}.npy, .npz or .png"
        raise InputError(text, argument="depth")
    return found


def _read(path: Path) -> np.ndarray:
    regular_file(path, "depth")
    try:
        if path.suffix == ".png":
            with Image.open(path, formats=("PNG",)) as image:
                if not image.mode.startswith("I"):
                    text = f"depth {path} is a picture of 8 bits: depth has 16, in millimetres"
                    raise InputError(text, argument="depth")
                return np.asarray(image, np.float32) / np.float32(MILLIMETRES)
        with open(path, "rb") as file:
            found = np.load(file, allow_pickle=False)
            if isinstance(found, np.ndarray) != (path.suffix == ".npy"):
                raise TypeError("it is of the other kind than its name says")
            array = found if isinstance(found, np.ndarray) else found["depth"]
        if array.dtype.kind not in "fiub":
            raise TypeError(f"an array of {array.dtype}")
        return array.astype(np.float32)
    except InputError:
        raise
    except DAMAGED as error:
        text = f"depth {path} cannot be read: it must be a whole .png or .npy of real numbers, or an .npz"
        text += " with one named depth"
        raise InputError(text, argument="depth") from error


def _checked(depth: np.ndarray, path: Path, name: str, size: tuple[int, int]) -> np.ndarray:
    width, height = size
    fits = depth.ndim == 2 and min(depth.shape) > 0
    # In proportion, up to the rounding of a side.
    fits = fits and abs(depth.shape[1] * height - depth.shape[0] * width) <= max(width, height)
    if not fits:
        text = f"depth {path} is {list(depth.shape)}, but {name} has {width}x{height} pixels"
        raise InputError(f"{text}: depth is [height, width] in its proportions", argument="depth")
    if (depth < 0).any():
        raise InputError(f"depth {path} is negative somewhere: 0 is what is not known", argument="depth")
    depth = np.where(np.isfinite(depth), depth, 0)
    if (depth > LARGEST).any():  # as renderers write for the sky; it would set the scene's unit
        text = f"depth {path} is beyond {LARGEST:.0e} somewhere: 0 is what is not known"
        raise InputError(text, argument="depth")
    return depth


def in_model(depth: np.ndarray, t: ImageTransform) -> np.ndarray:
    """A photograph's depth [h, w] at the model's pixels, the nearest as upstream's loader counts: index
    floor(i·in / out). 0 beyond it.
    """

    def index(
        size: int, scale: float, offset: float, original: int, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        at = np.floor((np.arange(size) - offset) / scale * count / original + 1e-6).astype(int)
        return np.clip(at, 0, count - 1), (at >= 0) & (at < count)

    y, seen_y = index(t.model_height, t.scale_y, t.offset_y, t.original_height, depth.shape[0])
    x, seen_x = index(t.model_width, t.scale_x, t.offset_x, t.original_width, depth.shape[1])
    return np.where(seen_y[:, None] & seen_x, depth[y[:, None], x], 0).astype(np.float32)
