"""Where cameras are known to have stood, in the coordinates of a file."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastvggt_jax.errors import InputError
from fastvggt_jax.io.colmap import read_model
from fastvggt_jax.refine.camera_files import FARTHEST, checked_pose, images_of, key_of, keys_of, read_text

EARTH_RADIUS, EARTH_FLATTENING = 6378137.0, 1 / 298.257223563  # WGS 84, metres
ON_A_LINE = 1e-3  # of the positions' extent: what they leave it by, to count as a plane's or a body's


class Known(NamedTuple):
    """Of a file: centres by name, rotations world_from_cam by name where it has them, metres per unit or
    None, and see `Alignment.origin`.
    """

    centres: dict[str, np.ndarray]
    rotations: dict[str, np.ndarray]
    metric_scale: float | None
    origin: tuple[float, float, float] | None


class Positions(NamedTuple):
    """What a file says of some photographs, by their names."""

    path: str
    known: Known
    names: list[str]


def known_positions(path: str, names: Sequence[str], argument: str = "align_to") -> Positions:
    """What a file says of photographs of these names, and those of them that it names. Raises as
    `aligned_to`, of the argument that gave it.
    """
    if not path.strip():
        text = "align_to must be a cameras.json, or a table of positions, not empty"
        raise InputError(text, argument="align_to")
    known = _known_positions(path)
    keys = keys_of(names, known.centres, f"align_to {path}", "align_to")
    found = [name for name, key in zip(names, keys, strict=True) if key is not None]
    if len(found) < 2:
        text = f"align_to {path} names {len(found)} of the photographs, at least two are needed"
        theirs = ", ".join(list(known.centres)[:3]) or "none"
        raise InputError(f"{text}; it has {theirs}", argument="align_to")
    truth = np.stack([known.centres[key_of(name, known.centres)] for name in found])  # type: ignore[index]
    if np.ptp(truth, axis=0).max() == 0:
        text = f"{argument} {path}: all cameras stand at one place, which tells no scale"
        raise InputError(text, argument=argument)
    if not known.rotations and leaves_a_line(truth) < ON_A_LINE:
        text = f"align_to {path}: the positions are on a line, which leaves the turn about it open"
        raise InputError(f"{text}; a cameras.json has rotations too", argument="align_to")
    return Positions(path, known, found)


def leaves_a_line(points: np.ndarray) -> float:
    """How far points are spread across the line that they are spread along, as a share of that."""
    values = np.linalg.svd(points - points.mean(0), compute_uv=False)
    return float(values[1] / values[0]) if len(points) > 2 and values[0] > 0 else 0.0


def _known_positions(path: str) -> Known:
    if os.path.isdir(path):
        known = {one.name: one.cam_from_world for one in read_model(path, "align_to")}
        centres = {name: -pose[:, :3].T @ pose[:, 3] for name, pose in known.items()}
        return Known(centres, {name: pose[:, :3].T for name, pose in known.items()}, None, None)
    if Path(path).suffix.lower() != ".json":
        return _of_table(path, read_text(Path(path), "align_to"))
    centres, rotations = {}, {}
    images, scale, world = images_of(Path(path), "align_to")
    offset, origin = world
    for one in images:
        pose = checked_pose(one["world_from_cam"], one["name"], path, "align_to")
        centres[one["name"]], rotations[one["name"]] = pose[:3, 3] + offset, pose[:3, :3]
    return Known(centres, rotations, scale, origin)


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
