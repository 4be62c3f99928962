"""What files say of cameras, and of which photographs: a cameras.json, nerfstudio's transforms.json, the
folder of a COLMAP model.

`argument` is the one that gave a file, for errors.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np

from fastvggt_jax.errors import Error, FileError, InputError
from fastvggt_jax.geometry import GL_FROM_CV
from fastvggt_jax.geometry.alignment import is_rotation
from fastvggt_jax.io.colmap import MODELS, read_model
from fastvggt_jax.io.files import regular_file
from fastvggt_jax.io.json_files import check_cameras, read_json
from fastvggt_jax.sources.photographs import turned_unseen

T = TypeVar("T")
Files = Sequence["str | os.PathLike | None"]
World = tuple[np.ndarray, tuple[float, float, float] | None]
SHORTEST_FOCAL, LONGEST_FOCAL = 1e-3, 1e9  # pixels
FARTHEST = 1e9  # of a position, in whatever unit; what lies beyond is a mistake
BY_OTHERS = "from a transforms.json"  # a key of its images


def known_cameras(
    names: Sequence[str], sizes: Sequence[tuple[int, int]], path: str, files: Files = ()
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """K f64[3, 3] in pixels of the photographs and world_from_cam f64[4, 4], by the positions of these
    photographs, of original sizes (width, height) and in these files, as far as a file has them.

    path: a cameras.json, a transforms.json of nerfstudio or the folder of a COLMAP model.

    Raises MissingError, or InputError if it is none of these, of none of the photographs, of other sizes, or
    but for a cameras.json, of one that EXIF turns without another size.
    """
    argument = "cameras"
    if not path.strip():
        text = "cameras must be a cameras.json, a transforms.json or a COLMAP folder, not empty"
        raise InputError(text, argument=argument)
    known: dict[str, tuple[Any, Any, tuple[int, int]]] = {}
    if os.path.isdir(path):
        model = read_model(path, argument)
        warn_of_distortion([one.name for one in model if one.distorted], f"{argument} {path}")
        for one in model:
            pose = np.eye(4)
            pose[:3, :3] = one.cam_from_world[:, :3].T
            pose[:3, 3] = -pose[:3, :3] @ one.cam_from_world[:, 3]
            known[one.name] = one.K, pose, one.size
        by_others = True
    else:
        images, *_ = images_of(Path(path), argument)
        by_others = are_by_others(images)
        known = {one["name"]: (one["K"], one["world_from_cam"], size_of(one)) for one in images}
    found = {}
    for i, key in enumerate(keys_of(names, known, f"cameras {path}", argument)):
        if key is None:
            continue
        K, values, size = known[key]
        matrix = checked_pose(values, key, path, argument)
        if size != tuple(sizes[i]):
            pixels = "{}x{}".format(*size), "{}x{}".format(*sizes[i])
            text = f"cameras {path}: {names[i]} has {pixels[0]} pixels there, and {pixels[1]} here"
            raise InputError(text, argument=argument)
        found[i] = checked_K(K, path, argument), matrix
    if by_others and files:
        check_upright([files[i] for i in found], f"cameras {path}", argument)
    if not found:
        theirs = ", ".join(list(known)[:3]) or "none"
        text = f"cameras {path} names none of the photographs, such as {names[0]}; it has {theirs}"
        raise InputError(text, argument=argument)
    return found


def poses_in(folder: str | os.PathLike, names: Sequence[str]) -> dict[int, np.ndarray]:
    """cam_from_world f64[3, 4] in the folder of a COLMAP model, by the positions of these photographs, as
    far as it has them. Raises as `read_model`.
    """
    known = {one.name: one.cam_from_world for one in read_model(folder)}
    keys = keys_of(names, known, f"the COLMAP folder {folder}", "source")
    return {i: known[key] for i, key in enumerate(keys) if key is not None}


def images_of(path: Path, argument: str) -> tuple[list[dict[str, Any]], float | None, World]:
    """Of a cameras.json, ours or one that is written like it, or of nerfstudio's transforms.json; its
    metric_scale; and what its coordinates are less by, and its origin, see `Scene`.
    """
    content = read_json(path, argument)
    if isinstance(content, dict) and "frames" in content and "images" not in content:
        content = {"images": _of_nerfstudio(content, path, argument)}
    content = check_cameras(content, path, argument)
    images, scale = content["images"], content.get("metric_scale")
    if scale is not None and not (type(scale) in (int, float) and 0 < scale <= FARTHEST):
        text = f"{argument} {path}: metric_scale={scale!r:.30} must be above 0 and at most {FARTHEST:g}"
        raise InputError(text, argument=argument)
    places: dict[str, tuple[float, ...] | None] = {}
    for name in ("offset", "origin"):
        place = content.get(name)
        numbers = isinstance(place, list) and len(place) == 3 and all(type(x) in (int, float) for x in place)
        if place is not None and not (numbers and all(abs(x) <= FARTHEST for x in place)):
            text = f"{argument} {path}: {name}={place!r:.60} must be three numbers within {FARTHEST:g}"
            raise InputError(text, argument=argument)
        places[name] = None if place is None else tuple(map(float, place))
    origin: Any = places["origin"]
    return images, scale, (np.array(places["offset"] or (0.0, 0.0, 0.0)), origin)


def _of_nerfstudio(content: dict[str, Any], path: Path, argument: str) -> list[dict[str, Any]]:
    """The frames of a transforms.json as a cameras.json has them: cameras to world, their axes turned from
    OpenGL's; what a frame does not say of its lens, the file says of all.
    """
    found = []
    bent, curved = False, None
    try:
        for frame in content["frames"]:
            of = lambda name, frame=frame: frame.get(name, content.get(name))
            w, h, fl_x = of("w"), of("h"), of("fl_x")
            if fl_x is None and of("camera_angle_x") is not None:
                fl_x = w / 2 / math.tan(of("camera_angle_x") / 2)
            if w is None or h is None or fl_x is None:
                raise KeyError("w, h or fl_x")
            given = [of("fl_y"), of("cx"), of("cy")]
            fl_y, cx, cy = (
                default if one is None else one
                for one, default in zip(given, (fl_x, w / 2, h / 2), strict=True)
            )
            bent = bent or any(of(name) for name in ("k1", "k2", "k3", "k4", "p1", "p2"))
            if of("camera_model") not in (None, "PERSPECTIVE", *MODELS):
                curved = of("camera_model")
            pose = matrix_of(frame["transform_matrix"])
            found.append(
                {
                    BY_OTHERS: True,
                    "name": frame["file_path"],
                    "K": [[fl_x, 0, cx], [0, fl_y, cy], [0, 0, 1]],
                    "width": int(w),
                    "height": int(h),
                    "world_from_cam": None if pose is None else pose @ GL_FROM_CV,
                }
            )
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
        what = f"{error.args[0]} is missing" if isinstance(error, KeyError) else "a frame's numbers are none"
        text = f"{argument} {path} is no transforms.json of nerfstudio: {what}"
        raise InputError(text, argument=argument) from error
    if curved is not None and argument != "align_to":  # which asks for poses alone
        text = f"{argument} {path} has a camera of the model {curved}; what is read: {', '.join(MODELS)}"
        raise InputError(text, argument=argument)
    if bent:
        text = f"{argument} {path}: its lenses have distortion, which is left out: undistort the photographs"
        warnings.warn(text, stacklevel=4)
    return found


def read_text(path: Path, argument: str) -> str:
    """Raises InputError where it is none, FileError where it cannot be read."""
    try:
        return regular_file(path, argument).read_text(encoding="utf-8-sig")  # Excel's begin with a mark
    except UnicodeDecodeError as error:
        raise InputError(f"{argument} {path} cannot be read: it is no text", argument=argument) from error
    except OSError as error:
        if isinstance(error, Error):
            raise
        text = f"{argument} {path} cannot be read: {error.strerror}"
        raise FileError(text, cause=error, argument=argument) from error


def matrix_of(values: Any) -> np.ndarray | None:
    """f64[4, 4], if they are that and no larger than positions may be."""
    try:
        matrix = np.asarray(values, np.float64)
    except (TypeError, ValueError, OverflowError):  # texts, rows of several lengths, 400 digits
        return None
    return matrix if matrix.shape == (4, 4) and (np.abs(matrix) <= FARTHEST).all() else None


def checked_pose(values: Any, name: str, path: str, argument: str) -> np.ndarray:
    """f64[4, 4], a photograph's world_from_cam; InputError where it is no rotation and position."""
    pose = matrix_of(values)
    if pose is None or not is_rotation(pose[:3, :3]) or not np.allclose(pose[3], (0, 0, 0, 1)):
        text = f"{argument} {path}: the world_from_cam of {name} is no 4x4 matrix of a rotation"
        raise InputError(f"{text} and a position within {FARTHEST:.0e}", argument=argument)
    return pose


def checked_K(K: Any, given: str, argument: str = "intrinsics") -> np.ndarray:
    """f64[3, 3]; InputError where it is no pinhole camera's without skew."""
    try:
        K = np.asarray(K, np.float64)
    except (TypeError, ValueError, OverflowError):
        K = np.zeros(0)
    right = K.shape == (3, 3) and (np.abs(K) <= LONGEST_FOCAL).all()  # False for NaN
    # COLMAP's PINHOLE and nerfstudio have no skew.
    if (
        not right
        or K[[0, 1, 2, 2], [1, 0, 0, 1]].any()
        or K[2, 2] != 1
        or min(K[0, 0], K[1, 1]) < SHORTEST_FOCAL
    ):
        text = f"{argument} {given}: a K must be [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in pixels, with focal"
        text += f" lengths of {SHORTEST_FOCAL:g} to {LONGEST_FOCAL:g}"
        raise InputError(text, argument=argument)
    return K


def are_by_others(images: Sequence[Mapping[str, Any]]) -> bool:
    """Whether cameras are of a transforms.json, not of a cameras.json, which is of upright photographs."""
    return any(one.get(BY_OTHERS) for one in images)


def check_upright(files: Files, what: str, argument: str) -> None:
    """Raises InputError for a photograph of which others' cameras may be as it is stored, and ours as it is
    seen, without the size telling.
    """
    for file in files:
        if file and turned_unseen(Path(file)):
            text = f"{what} may be of {file} as it is stored, which its EXIF orientation turns"
            text += ": save it upright without the tag and find its cameras anew, or give a cameras.json"
            raise InputError(text, argument=argument)


def size_of(one: Mapping[str, Any]) -> tuple[int, int]:
    """(width, height)."""
    return one["width"], one["height"]


def warn_of_distortion(names: Sequence[str], what: str) -> None:
    if names:
        text = f"{what}: the lens of {names[0]} and {len(names) - 1} more has distortion"
        warnings.warn(f"{text}, which is left out: undistort the photographs", stacklevel=5)


def key_of(name: str, known: Mapping[str, object]) -> str | None:
    """Under which a photograph is known: its name, or its name without folders if that is one's alone."""
    if name in known:
        return name
    last = PurePosixPath(name).name
    same = [other for other in known if PurePosixPath(other).name == last]
    return same[0] if len(same) == 1 else None


def keys_of(names: Sequence[str], known: Mapping[str, object], what: str, argument: str) -> list[str | None]:
    """`key_of` of each. InputError where two photographs have the same."""
    keys = [key_of(name, known) for name in names]
    owner: dict[str, str] = {}
    for name, key in zip(names, keys, strict=True):
        if key is not None and owner.setdefault(key, name) != name:
            text = f"{what} has one {key}, which may be {owner[key]} or {name}"
            raise InputError(f"{text}: name them there with their folders", argument=argument)
    return keys


def of_all(names: Sequence[str], known: Mapping[str, T], what: str, argument: str) -> list[T]:
    """What is known of each. InputError for one that is not named."""
    keys = keys_of(names, known, what, argument)
    missing = [name for name, key in zip(names, keys, strict=True) if key is None]
    if missing:
        more = f" and {len(missing) - 1} more" * (len(missing) > 1)
        text = f"{what} has no {missing[0]}{more}; it has {', '.join(list(known)[:3]) or 'none'}"
        raise InputError(text, argument=argument)
    return [known[key] for key in keys if key is not None]
