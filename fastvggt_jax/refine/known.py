"""Cameras that are known beforehand: their K, and where they stood."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

import numpy as np

from fastvggt_jax.errors import Error, FailedError, FileError, InputError, MissingError
from fastvggt_jax.export.lenses import original_sizes, with_K
from fastvggt_jax.export.tracks import Tracks, placed
from fastvggt_jax.geometry import GL_FROM_CV
from fastvggt_jax.geometry.alignment import Similarity, align, best_rotation, is_rotation
from fastvggt_jax.io.colmap import MODELS, read_model
from fastvggt_jax.io.files import regular_file
from fastvggt_jax.io.json_files import check_cameras, read_json
from fastvggt_jax.scene import Scene
from fastvggt_jax.sources.photographs import turned_unseen

T = TypeVar("T")
EARTH_RADIUS, EARTH_FLATTENING = 6378137.0, 1 / 298.257223563  # WGS 84, metres
ON_A_LINE = 1e-3  # of the positions' extent: what they leave it by, to count as a plane's or a body's
ROUNDS = 50  # of reweighting
SHORTEST_FOCAL, LONGEST_FOCAL = 1e-3, 1e9  # pixels
FAR = 100  # times the extent of positions, from where on they are taken nearer
BY_OTHERS = "from a transforms.json"  # a key of its images
FARTHEST = 1e9  # of a position, in whatever unit; what lies beyond is a mistake


# ---- K


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


Files = Sequence["str | os.PathLike | None"]


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
    _warn_of_distortion(read.distorted, f"intrinsics {given}")
    if read.by_others:
        _check_upright(files, f"intrinsics {given}", "intrinsics")
    found = []
    for name, size, (K, theirs) in zip(
        names, sizes, _of_all(names, read.of_each, f"intrinsics {given}", "intrinsics"), strict=True
    ):
        if tuple(theirs) != size:
            pixels = "{}x{}".format(*theirs), "{}x{}".format(*size)
            text = f"intrinsics {given}: {name} has {pixels[0]} pixels there, and {pixels[1]} here"
            raise InputError(text, argument="intrinsics")
        found.append(_checked_K(K, given))
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
        numbers = _numbers(_read(path, "intrinsics"))
        if numbers is None:
            text = f"intrinsics {given} must hold fx,fy,cx,cy, or be a cameras.json or a COLMAP folder"
            raise InputError(text, argument="intrinsics")
    if numbers is not None:
        fx, fy, cx, cy = numbers
        return Intrinsics(_checked_K([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], given))
    if os.path.isdir(path):
        model = read_model(path, "intrinsics")
        of_each = {one.name: (one.K, one.size) for one in model}
        return Intrinsics(None, of_each, [one.name for one in model if one.distorted], by_others=True)
    images, *_ = _images(path, "intrinsics")
    of_each = {one["name"]: (one["K"], _size(one)) for one in images}
    return Intrinsics(None, of_each, by_others=_by_others(images))


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
        _warn_of_distortion([one.name for one in model if one.distorted], f"{argument} {path}")
        for one in model:
            pose = np.eye(4)
            pose[:3, :3] = one.cam_from_world[:, :3].T
            pose[:3, 3] = -pose[:3, :3] @ one.cam_from_world[:, 3]
            known[one.name] = one.K, pose, one.size
        by_others = True
    else:
        images, *_ = _images(Path(path), argument)
        by_others = _by_others(images)
        known = {one["name"]: (one["K"], one["world_from_cam"], _size(one)) for one in images}
    found = {}
    for i, key in enumerate(_keys(names, known, f"cameras {path}", argument)):
        if key is None:
            continue
        K, values, size = known[key]
        matrix = _matrix(values)
        if matrix is None or not is_rotation(matrix[:3, :3]) or not np.allclose(matrix[3], (0, 0, 0, 1)):
            text = f"cameras {path}: the world_from_cam of {key} is no 4x4 matrix of a rotation"
            raise InputError(f"{text} and a position within {FARTHEST:.0e}", argument=argument)
        if size != tuple(sizes[i]):
            pixels = "{}x{}".format(*size), "{}x{}".format(*sizes[i])
            text = f"cameras {path}: {names[i]} has {pixels[0]} pixels there, and {pixels[1]} here"
            raise InputError(text, argument=argument)
        found[i] = _checked_K(K, path, argument), matrix
    if by_others and files:
        _check_upright([files[i] for i in found], f"cameras {path}", argument)
    if not found:
        theirs = ", ".join(list(known)[:3]) or "none"
        text = f"cameras {path} names none of the photographs, such as {names[0]}; it has {theirs}"
        raise InputError(text, argument=argument)
    return found


def _by_others(images: Sequence[Mapping[str, Any]]) -> bool:
    """Whether cameras are of a transforms.json, not of a cameras.json, which is of upright photographs."""
    return any(one.get(BY_OTHERS) for one in images)


def _check_upright(files: Files, what: str, argument: str) -> None:
    """Raises InputError for a photograph of which others' cameras may be as it is stored, and ours as it is
    seen, without the size telling.
    """
    for file in files:
        if file and turned_unseen(Path(file)):
            text = f"{what} may be of {file} as it is stored, which its EXIF orientation turns"
            text += ": save it upright without the tag and find its cameras anew, or give a cameras.json"
            raise InputError(text, argument=argument)


def _size(one: Mapping[str, Any]) -> tuple[int, int]:
    return one["width"], one["height"]


def _warn_of_distortion(names: Sequence[str], what: str) -> None:
    if names:
        text = f"{what}: the lens of {names[0]} and {len(names) - 1} more has distortion"
        warnings.warn(f"{text}, which is left out: undistort the photographs", stacklevel=5)


def _numbers(text: str) -> list[float] | None:
    try:
        numbers = [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        return None
    return numbers if len(numbers) == 4 else None


def _checked_K(K: Any, given: str, argument: str = "intrinsics") -> np.ndarray:
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


# ---- where cameras stood


class Alignment(NamedTuple):
    """What was done.

    photographs: how many positions were known. residual: their median distance from where the cameras are
      now, in the given unit; largest: the largest of these.
    scale, rotation, translation: what brings a point x of before to where it is now, scale·rotation·x +
      translation; scale is of the given unit per unit of before.
    origin: latitude, longitude (degrees) and altitude (metres) of the world's origin, whose axes point east,
      north and up; None where positions were Cartesian. offset: what was taken off these, (0, 0, 0) but for
      large ones: a position in the scene is that much less than the given one.
    """

    photographs: int
    residual: float
    largest: float
    scale: float
    rotation: tuple[tuple[float, ...], ...]
    translation: tuple[float, ...]
    origin: tuple[float, float, float] | None
    offset: tuple[float, ...] = (0.0, 0.0, 0.0)

    def similarity(self) -> Similarity:
        return Similarity(self.scale, np.array(self.rotation), np.array(self.translation))


class Known(NamedTuple):
    """Of a file: centres by name, rotations world_from_cam by name where it has them, metres per unit or
    None, and see `Alignment.origin`.
    """

    centres: dict[str, np.ndarray]
    rotations: dict[str, np.ndarray]
    metric_scale: float | None
    origin: tuple[float, float, float] | None


def poses_in(folder: str | os.PathLike, names: Sequence[str]) -> dict[int, np.ndarray]:
    """cam_from_world f64[3, 4] in the folder of a COLMAP model, by the positions of these photographs, as
    far as it has them. Raises as `read_model`.
    """
    known = {one.name: one.cam_from_world for one in read_model(folder)}
    keys = _keys(names, known, f"the COLMAP folder {folder}", "source")
    return {i: known[key] for i, key in enumerate(keys) if key is not None}


class Positions(NamedTuple):
    """What a file says of some photographs, by their names."""

    path: str
    known: Known
    names: list[str]


def aligned_to(scene: Scene, path: str) -> tuple[Scene, Alignment]:
    """The scene in given coordinates, by the similarity that brings its cameras nearest to where they are
    said to have stood; positions that do not fit the others weigh little.

    path: a cameras.json, whose metric_scale becomes the scene's, if it has one; a transforms.json of
      nerfstudio; the folder of a COLMAP model; or a CSV file whose first line names its columns:
      name, and x, y, z in metres, or latitude, longitude (degrees, WGS 84) and altitude (metres), which
      become metres east, north and up of the first photograph that it names. It may name some of the
      photographs only.

    Raises MissingError, or InputError if the file is none of these, or what it knows does not determine a
      similarity: three positions that are not on a line, or two and the cameras' rotations. FailedError if
      the model's cameras do not.
    """
    return aligned(scene, known_positions(path, scene.names))


def aligned(scene: Scene, positions: Positions) -> tuple[Scene, Alignment]:
    """The same for positions that were read already. Raises FailedError."""
    path, known, names = positions
    here = [scene.names.index(name) for name in names]
    pose = scene.world_from_cam.astype(np.float64)[here]
    truth = np.stack([known.centres[_key(name, known.centres)] for name in names])  # type: ignore[index]
    rotations = None
    if known.rotations:
        rotations = np.stack([known.rotations[_key(name, known.rotations)] for name in names])  # type: ignore[index]
    offset = _offset(truth)
    truth = truth - offset
    found = _fitted(pose, truth, rotations, path)
    moved = dataclasses.replace(
        _moved(scene, found),
        metric_scale=known.metric_scale or (scene.metric_scale and scene.metric_scale / found.scale),
        origin=known.origin,
        offset=tuple(offset.tolist()),
    )
    residuals = np.linalg.norm(moved.world_from_cam[here, :3, 3] - truth, axis=-1)
    middle, largest = float(np.median(residuals)), float(residuals.max())
    done = Alignment(
        len(names),
        middle,
        largest,
        found.scale,
        tuple(map(tuple, found.rotation.tolist())),
        tuple(found.translation.tolist()),
        known.origin,
        tuple(offset.tolist()),
    )
    if offset.any():
        numbers = ", ".join(f"{x:.0f}" for x in offset)
        text = f"the positions of {path} lie so far from 0 that float32 is too coarse there"
        warnings.warn(f"{text}: the scene's are less by {numbers}", stacklevel=2)
    return moved, done


def _offset(positions: np.ndarray) -> np.ndarray:
    """f64[3], whole numbers to be taken off positions f64[M, 3] that lie further from 0 than float32 tells
    apart well, as those of UTM; else 0.
    """
    extent = np.ptp(positions, axis=0).max()
    if np.abs(positions).max() <= FAR * extent:
        return np.zeros(3)
    return np.rint(positions.mean(0))


def aligned_or_as_it_is(
    scene: Scene, positions: Positions, tracks: Tracks | None = None
) -> tuple[Scene, Tracks | None, dict[str, Any]]:
    """(the aligned scene, or with a warning this one where that fails; its tracks, which go with it; a
    JSON-able account).
    """
    try:
        scene, done = aligned(scene, positions)
    except FailedError as error:
        warnings.warn(str(error), stacklevel=2)
        return scene, tracks, {"failed": str(error)}
    if tracks is not None:
        tracks = placed(tracks, scene, done.similarity()(tracks.xyz))
    return scene, tracks, done._asdict()


def _fitted(pose: np.ndarray, truth: np.ndarray, rotations: np.ndarray | None, path: str) -> Similarity:
    centres = pose[:, :3, 3]
    failed = f"the scene was not aligned to {path}"
    if np.ptp(centres, axis=0).max() == 0:
        raise FailedError(f"{failed}: the model puts all cameras at one place")
    on_a_line = any(_leaves_a_line(x) < ON_A_LINE for x in (centres, truth))
    if on_a_line and rotations is None:
        raise FailedError(
            f"{failed}: the model puts the cameras on a line, which leaves the turn about it open"
        )
    weights = np.ones(len(centres))
    for _ in range(ROUNDS):
        if on_a_line:
            assert rotations is not None
            turn = np.einsum("f,fij,fkj->ik", weights, rotations, pose[:, :3, :3])
            found = _with_rotation(centres, truth, weights, best_rotation(turn)[0])
            if not found.scale > 0:
                text = "the cameras look another way than they would where they are said to have stood"
                raise FailedError(f"{failed}: {text}")
        else:
            found = align(centres, truth, weights)
        error = np.linalg.norm(found(centres) - truth, axis=-1)
        # Cauchy's weights, whose scale is that of the middle residual.
        spread = max(1.4826 * float(np.median(error)), 1e-9 * float(np.ptp(truth, axis=0).max()))
        weights = 1 / (1 + (error / spread) ** 2)
    return found


def _leaves_a_line(points: np.ndarray) -> float:
    """How far points are spread across the line that they are spread along, as a share of that."""
    values = np.linalg.svd(points - points.mean(0), compute_uv=False)
    return float(values[1] / values[0]) if len(points) > 2 and values[0] > 0 else 0.0


def _with_rotation(
    points: np.ndarray, truth: np.ndarray, weights: np.ndarray, rotation: np.ndarray
) -> Similarity:
    """Scale and translation of least squares where the rotation is known."""
    share = weights / weights.sum()
    mean, mean_true = share @ points, share @ truth
    turned, there = (points - mean) @ rotation.T, truth - mean_true
    scale = float((share @ (turned * there).sum(-1)) / (share @ (turned * turned).sum(-1)))
    return Similarity(scale, rotation, mean_true - scale * rotation @ mean)


def _moved(scene: Scene, by: Similarity) -> Scene:
    """The scene in other coordinates, and its unit another."""
    return dataclasses.replace(
        scene,
        cam_from_world=by.of_cameras(scene.cam_from_world).astype(np.float32),
        points=np.stack([by(points) for points in scene.points]).astype(np.float32),
        depth=(by.scale * scene.depth).astype(np.float32),
    )


def known_positions(path: str, names: Sequence[str], argument: str = "align_to") -> Positions:
    """What a file says of photographs of these names, and those of them that it names. Raises as
    `aligned_to`, of the argument that gave it.
    """
    if not path.strip():
        text = "align_to must be a cameras.json, or a table of positions, not empty"
        raise InputError(text, argument="align_to")
    known = _known_positions(path)
    keys = _keys(names, known.centres, f"align_to {path}", "align_to")
    found = [name for name, key in zip(names, keys, strict=True) if key is not None]
    if len(found) < 2:
        text = f"align_to {path} names {len(found)} of the photographs, at least two are needed"
        theirs = ", ".join(list(known.centres)[:3]) or "none"
        raise InputError(f"{text}; it has {theirs}", argument="align_to")
    truth = np.stack([known.centres[_key(name, known.centres)] for name in found])  # type: ignore[index]
    if np.ptp(truth, axis=0).max() == 0:
        text = f"{argument} {path}: all cameras stand at one place, which tells no scale"
        raise InputError(text, argument=argument)
    if not known.rotations and _leaves_a_line(truth) < ON_A_LINE:
        text = f"align_to {path}: the positions are on a line, which leaves the turn about it open"
        raise InputError(f"{text}; a cameras.json has rotations too", argument="align_to")
    return Positions(path, known, found)


def _known_positions(path: str) -> Known:
    if os.path.isdir(path):
        known = {one.name: one.cam_from_world for one in read_model(path, "align_to")}
        centres = {name: -pose[:, :3].T @ pose[:, 3] for name, pose in known.items()}
        return Known(centres, {name: pose[:, :3].T for name, pose in known.items()}, None, None)
    if Path(path).suffix.lower() != ".json":
        return _of_table(path, _read(Path(path), "align_to"))
    centres, rotations = {}, {}
    images, scale, world = _images(Path(path), "align_to")
    offset, origin = world
    for one in images:
        pose = _matrix(one["world_from_cam"])
        if pose is None or not is_rotation(pose[:3, :3]) or not np.allclose(pose[3], (0, 0, 0, 1)):
            text = f"align_to {path}: the world_from_cam of {one['name']} is no 4x4 matrix of a rotation"
            raise InputError(f"{text} and a position within {FARTHEST:.0e}", argument="align_to")
        centres[one["name"]], rotations[one["name"]] = pose[:3, 3] + offset, pose[:3, :3]
    return Known(centres, rotations, scale, origin)


def _matrix(values: Any) -> np.ndarray | None:
    """f64[4, 4], if they are that and no larger than positions may be."""
    try:
        matrix = np.asarray(values, np.float64)
    except (TypeError, ValueError, OverflowError):  # texts, rows of several lengths, 400 digits
        return None
    return matrix if matrix.shape == (4, 4) and (np.abs(matrix) <= FARTHEST).all() else None


def _of_table(path: str, text: str) -> Known:
    try:
        table = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
        rows = [(table.line_num, row) for row in table]
    except csv.Error as error:
        raise InputError(f"align_to {path} is no table: {error}", argument="align_to") from error
    titles = [title.strip().lower() for title in table.fieldnames or ()] if rows else []
    columns = dict(zip(titles, table.fieldnames or (), strict=False))
    find = lambda *names: next((columns[name] for name in names if name in columns), None)
    name = find("name", "image", "file", "filename")
    cartesian = [find("x"), find("y"), find("z")]
    globe = [find("latitude", "lat"), find("longitude", "lon", "lng"), find("altitude", "alt", "height")]
    wanted = cartesian if all(cartesian) else globe
    if name is None or not all(wanted):
        text = f"align_to {path} must be a cameras.json, or a table whose first line names its columns"
        raise InputError(f"{text}: name,x,y,z or name,latitude,longitude,altitude", argument="align_to")
    twice = [title for title in titles if titles.count(title) > 1 and columns[title] in (name, *wanted)]
    if twice:
        raise InputError(f"align_to {path} has two columns {twice[0]}", argument="align_to")
    found: dict[str, np.ndarray] = {}
    limits = (FARTHEST,) * 3 if all(cartesian) else (90.0, 360.0, FARTHEST)
    for number, row in rows:
        where = f"align_to {path}, line {number}"
        if not row[name]:
            raise InputError(f"{where} names no photograph", argument="align_to")
        if row[name] in found:
            raise InputError(f"{where}: {row[name]} is there twice", argument="align_to")
        try:
            place = np.array([float(row[column]) for column in wanted])
        except (TypeError, ValueError):
            place = np.full(3, np.nan)
        if not (np.abs(place) <= limits).all():  # False for NaN
            text = f"{where}: {row[name]} has no three numbers within {', '.join(f'{x:g}' for x in limits)}"
            raise InputError(text, argument="align_to")
        found[row[name]] = place
    if all(cartesian):
        return Known(found, {}, 1.0, None)
    origin = next(iter(found.values()))
    there = _east_north_up(np.stack(list(found.values())), origin)
    latitude, longitude, altitude = map(float, origin)
    return Known(dict(zip(found, there, strict=True)), {}, 1.0, (latitude, longitude, altitude))


def _east_north_up(places: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """Metres f64[M, 3] of latitudes, longitudes (degrees) and altitudes (metres) f64[M, 3] from an origin."""
    latitude, longitude = np.deg2rad(origin[:2])
    east = [-np.sin(longitude), np.cos(longitude), 0]
    north = [-np.sin(latitude) * np.cos(longitude), -np.sin(latitude) * np.sin(longitude), np.cos(latitude)]
    up = [np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)]
    return (_geocentric(places) - _geocentric(origin)) @ np.array([east, north, up]).T


def _geocentric(places: np.ndarray) -> np.ndarray:
    """f64[..., 3] metres from the earth's centre."""
    latitude, longitude = np.deg2rad(places[..., 0]), np.deg2rad(places[..., 1])
    squared = EARTH_FLATTENING * (2 - EARTH_FLATTENING)  # of the ellipsoid's eccentricity
    normal = EARTH_RADIUS / np.sqrt(1 - squared * np.sin(latitude) ** 2)
    across = (normal + places[..., 2]) * np.cos(latitude)
    along = (normal * (1 - squared) + places[..., 2]) * np.sin(latitude)
    return np.stack([across * np.cos(longitude), across * np.sin(longitude), along], -1)


# ---- files


def _read(path: Path, argument: str) -> str:
    try:
        return regular_file(path, argument).read_text(encoding="utf-8-sig")  # Excel's begin with a mark
    except UnicodeDecodeError as error:
        raise InputError(f"{argument} {path} cannot be read: it is no text", argument=argument) from error
    except OSError as error:
        if isinstance(error, Error):
            raise
        text = f"{argument} {path} cannot be read: {error.strerror}"
        raise FileError(text, cause=error, argument=argument) from error


World = tuple[np.ndarray, tuple[float, float, float] | None]


def _images(path: Path, argument: str) -> tuple[list[dict[str, Any]], float | None, World]:
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
            pose = _matrix(frame["transform_matrix"])
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


def _key(name: str, known: Mapping[str, object]) -> str | None:
    """Under which a photograph is known: its name, or its name without folders if that is one's alone."""
    if name in known:
        return name
    last = PurePosixPath(name).name
    same = [other for other in known if PurePosixPath(other).name == last]
    return same[0] if len(same) == 1 else None


def _keys(names: Sequence[str], known: Mapping[str, object], what: str, argument: str) -> list[str | None]:
    """`_key` of each. InputError where two photographs have the same."""
    keys = [_key(name, known) for name in names]
    owner: dict[str, str] = {}
    for name, key in zip(names, keys, strict=True):
        if key is not None and owner.setdefault(key, name) != name:
            text = f"{what} has one {key}, which may be {owner[key]} or {name}"
            raise InputError(f"{text}: name them there with their folders", argument=argument)
    return keys


def _of_all(names: Sequence[str], known: Mapping[str, T], what: str, argument: str) -> list[T]:
    keys = _keys(names, known, what, argument)
    missing = [name for name, key in zip(names, keys, strict=True) if key is None]
    if missing:
        more = f" and {len(missing) - 1} more" * (len(missing) > 1)
        text = f"{what} has no {missing[0]}{more}; it has {', '.join(list(known)[:3]) or 'none'}"
        raise InputError(text, argument=argument)
    return [known[key] for key in keys if key is not None]
