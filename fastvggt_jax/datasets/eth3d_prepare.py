"""ETH3D as it is released, made ready for evaluation as π³'s authors do: photographs without the lens's
distortion, and depth at the same pixels.

Of the released THIN_PRISM_FISHEYE cameras only fx, fy, cx, cy and k1 to k4 are used, as OpenCV's fisheye
model, and K stays: π³'s evaluation branch, datasets/preprocess. Depth is taken to the nearest pixel, the last
one wins.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import map_coordinates

from fastvggt_jax.datasets.base import Options
from fastvggt_jax.datasets.eth3d import ALL, CAMERAS, DEPTH, IMAGES, raw_depth
from fastvggt_jax.datasets.files import need, root_of, size_of, there
from fastvggt_jax.errors import ImageError, SceneError
from fastvggt_jax.io.colmap import pose_of
from fastvggt_jax.io.files import write_file
from fastvggt_jax.sources.photographs import open_as_stored

CALIBRATION, RAW_IMAGES, RAW_DEPTH = "dslr_calibration_jpg", "images", "ground_truth_depth"
MODEL, PARAMETERS = "THIN_PRISM_FISHEYE", 12  # fx fy cx cy k1 k2 p1 p2 k3 k4 sx1 sy1
ROWS = 256  # that are undistorted at a time
ROUNDS = 10  # of Newton's method
QUALITY = 95


def prepare(
    root: Path, output: Path, say: Callable[[str], object] = lambda text: None
) -> list[tuple[str, str]]:
    """Writes what `datasets.eth3d` reads of every scene in `root` below `output`; photographs that are there
    already stay. Calls `say` with a line for each scene.

    Returns (scene, reason) of those that could not be made. Raises MissingError if there is none, FileError.
    """
    root = root_of(Options(root=root), "eth3d")
    there(root, ALL, CALIBRATION)
    failed = []
    for scene in ALL:
        if not (root / scene).is_dir():
            continue
        try:
            count = 0
            for photograph in _photographs(root / scene, scene):
                count += 1
                _make(root / scene, output / scene, scene, *photograph)
            say(f"{scene}: {count} photographs")
        except (SceneError, ImageError) as error:
            failed.append((scene, error.text))
    return failed


def _photographs(folder: Path, scene: str) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(name below images/, parameters of its camera f64[12], cam_from_world f64[3, 4])."""
    cameras, images = (folder / CALIBRATION / f"{name}.txt" for name in ("cameras", "images"))
    need(scene, [cameras, images])
    try:
        found = {}
        for line in _lines(cameras):
            number, model, _, _, *parameters = line.split()
            if model != MODEL or len(parameters) != PARAMETERS:
                raise ValueError(f"a camera is {model}, and ETH3D's are {MODEL}")
            found[number] = np.array(parameters, np.float64)
        for line in _lines(images)[::2]:  # every other one lists points
            fields = line.split(maxsplit=9)
            pose = np.array(fields[1:8], np.float64)
            yield fields[9], found[fields[8]], pose_of(pose[:4], pose[4:])
    except (OSError, ValueError, KeyError, IndexError) as error:
        text = f"{folder / CALIBRATION} is damaged, or no calibration of ETH3D ({error})"
        raise SceneError(text, scene=scene) from error


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]


def _make(
    folder: Path, output: Path, scene: str, name: str, parameters: np.ndarray, pose: np.ndarray
) -> None:
    stem, file = Path(name).stem, Path(name).name
    camera = output / CAMERAS / f"{stem}.npz"
    if camera.is_file():  # it is written last
        return
    source, depth = folder / RAW_IMAGES / name, folder / RAW_DEPTH / name
    need(scene, [source, depth])
    K, k = _split(parameters)
    buffer = io.BytesIO()
    Image.fromarray(undistorted(np.asarray(open_as_stored(source).convert("RGB")), K, k)).save(
        buffer, "JPEG", quality=QUALITY
    )
    flat = undistorted_depth(raw_depth(depth, size_of(source, scene), scene), K, k)
    held = io.BytesIO()
    np.savez(held, intrinsics=K, extrinsics=np.concatenate([pose, [[0, 0, 0, 1]]]))
    write_file(output / IMAGES / file, buffer.getbuffer())
    write_file(output / DEPTH / file, flat.astype("<f4").tobytes())
    write_file(camera, held.getbuffer())


def _split(parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """K f64[3, 3] and (k1, k2, k3, k4)."""
    fx, fy, cx, cy, k1, k2, _, _, k3, k4, _, _ = parameters
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), np.array([k1, k2, k3, k4])


def _distorted(angle: np.ndarray, k: np.ndarray) -> np.ndarray:
    """The radius that the lens gives an angle from the optical axis, in radians."""
    squared = angle**2
    return angle * (1 + squared * (k[0] + squared * (k[1] + squared * (k[2] + squared * k[3]))))


def undistorted(pixels: np.ndarray, K: np.ndarray, k: np.ndarray) -> np.ndarray:
    """u8[H, W, 3] as a pinhole camera of the same K would have it, bilinear; black beyond the photograph."""
    height, width = pixels.shape[:2]
    out = np.zeros_like(pixels)
    for top in range(0, height, ROWS):
        v, u = np.mgrid[top : min(top + ROWS, height), :width].astype(np.float64)
        x, y = (u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1]
        radius = np.hypot(x, y)
        scale = np.where(radius > 0, _distorted(np.arctan(radius), k) / np.where(radius > 0, radius, 1), 1)
        at = [K[1, 1] * y * scale + K[1, 2], K[0, 0] * x * scale + K[0, 2]]
        for channel in range(3):
            values = map_coordinates(pixels[..., channel].astype(np.float32), at, order=1, cval=0)
            out[top : top + ROWS, :, channel] = np.rint(values)
    return out


def undistorted_depth(depth: np.ndarray, K: np.ndarray, k: np.ndarray) -> np.ndarray:
    """f32[H, W], 0 where no depth comes to lie."""
    height, width = depth.shape
    rows, columns = np.nonzero(depth > 0)
    x, y = (columns - K[0, 2]) / K[0, 0], (rows - K[1, 2]) / K[1, 1]
    radius = np.minimum(np.hypot(x, y), np.pi / 2)
    angle = radius.copy()
    for _ in range(ROUNDS):
        squared = angle**2
        slope = 1 + squared * (3 * k[0] + squared * (5 * k[1] + squared * (7 * k[2] + squared * 9 * k[3])))
        angle -= (_distorted(angle, k) - radius) / slope
    scale = np.where(radius > 0, np.tan(angle) / np.where(radius > 0, radius, 1), 1)
    u = np.rint(K[0, 0] * x * scale + K[0, 2])
    v = np.rint(K[1, 1] * y * scale + K[1, 2])
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
    out = np.zeros((height, width), np.float32)
    # numpy says nothing of which one of several stays, so that each is written once: the last.
    place = (v[inside] * width + u[inside]).astype(np.int64)
    values = depth[rows[inside], columns[inside]]
    last, first = np.unique(place[::-1], return_index=True)
    out.flat[last] = values[::-1][first]
    return out
