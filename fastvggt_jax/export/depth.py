"""depth/NAME.npz and NAME.png: every photograph's depth as numbers and as a picture."""

from __future__ import annotations

import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np

from fastvggt_jax.export.base import Format
from fastvggt_jax.io.colors import DepthColors
from fastvggt_jax.io.files import write_file
from fastvggt_jax.io.png import png
from fastvggt_jax.io.scenes import as_float16, warn_of_float32
from fastvggt_jax.scene import Scene

SAMPLE = 2_000_000  # pixels, at most, that say which depths there are
LONGEST = 240  # bytes of what a photograph's files begin with


def write_depth(
    scene: Scene,
    folder: str | os.PathLike,
    *,
    original: bool = False,
    float16: bool = False,
    threads: int | None = None,
) -> list[Path]:
    """Write for every photograph an .npz and a .png; returns the .npz files, in the order of the photographs.

    The .npz holds depth f32[H, W] along the camera's z (NaN where there is none), conf f32[H, W], valid
    bool[H, W], K f64[3, 3] of these pixels and cam_from_world f32[3, 4]. They are the model's pixels; with
    `original`, those of the photograph, bilinearly resampled, and NaN where the model has not seen it. The
    .png has one scale of colours for all photographs, light near and dark far, logarithmic from the 2nd to
    the 98th percentile (its text fields `near` and `far`); black is no depth, or no confidence in it, as in
    the sky. float16: depth and conf are of it, see `io.scenes.as_float16`; what is not is warned of. threads:
    by default as many as cores, up to four.

    Raises FileError if writing fails.
    """
    folder, colors = Path(folder), depth_colors(scene)
    scale = {"near": f"{colors.near:g}", "far": f"{colors.far:g}"}

    def write(i: int, stem: str) -> Path:
        depth, conf, K = depth_on_photo(scene, i), scene.depth_conf[i], scene.K[i].astype(np.float64)
        if original:
            t = scene.transforms[i]
            depth, conf, K = t.map_to_original(depth), t.map_to_original(conf), scene.K_original(i)
        arrays = dict(
            depth=depth, conf=conf, valid=np.isfinite(depth), K=K, cam_from_world=scene.cam_from_world[i]
        )
        if float16:
            arrays |= {name: as_float16(arrays[name]) for name in ("depth", "conf")}
            if {arrays["depth"].dtype, arrays["conf"].dtype} != {np.dtype(np.float16)}:
                too_large.append(f"{stem}.npz")
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        write_file(folder / f"{stem}.npz", buffer.getbuffer())
        write_file(folder / f"{stem}.png", png(colors(surface(depth, conf, scene)), scale))
        return folder / f"{stem}.npz"

    stems, too_large = file_stems(scene.names), list[str]()
    with ThreadPoolExecutor(threads or min(4, os.cpu_count() or 1)) as pool:  # zlib works outside the GIL
        paths = list(pool.map(write, range(len(stems)), stems))
    warn_of_float32(sorted(too_large), folder)
    return paths


def file_stems(names: tuple[str, ...]) -> list[str]:
    """What the files of every photograph begin with: its name, with its ending, since a.jpg and a.png may lie
    in one folder, and with its folders. It does not depend on the other photographs, unless a file system
    that knows no capitals would take two for the same.
    """
    stems, taken = [], set()
    for name in names:
        path = PurePosixPath(name.replace("\\", "/"))
        full = _short("_".join(part for part in path.parts if part not in ("/", "..")))
        options = [full, *(f"{full}_{k}" for k in range(2, len(names) + 2))]
        stem = next(option for option in options if option.casefold() not in taken)
        taken.add(stem.casefold())
        stems.append(stem)
    return stems


def _short(name: str) -> str:
    """A name that has room for another ending: file systems end names at 255 bytes."""
    encoded = os.fsencode(name)
    if len(encoded) <= LONGEST:
        return name
    return f"{encoded[: LONGEST - 17].decode(errors='ignore')}.{hashlib.sha256(encoded).hexdigest()[:16]}"


def depth_on_photo(scene: Scene, i: int) -> np.ndarray:
    """f32[H, W], NaN on padding, where a photograph is transparent, and where there is none."""
    on_photo = scene.valid[i] & np.isfinite(scene.depth[i])
    return np.where(on_photo, scene.depth[i], np.float32(np.nan))


def surface(depth: np.ndarray, conf: np.ndarray, scene: Scene) -> np.ndarray:
    """Depth with NaN also where its confidence is that of nothing."""
    return np.where(conf >= scene.conf_floor, depth, np.float32(np.nan))


def depth_colors(scene: Scene) -> DepthColors:
    """The one scale of all photographs, of every so many of their pixels."""
    step = -(-scene.valid.size // SAMPLE)
    valid, depth, conf = (x.reshape(-1)[::step] for x in (scene.valid, scene.depth, scene.depth_conf))
    return DepthColors(surface(np.where(valid, depth, np.float32(np.nan)), conf, scene))


def of_photographs(scene: Scene) -> dict[str, list[str]]:
    stems = file_stems(scene.names)
    return {
        "depth": [f"depth/{stem}.npz" for stem in stems],
        "depth_picture": [f"depth/{stem}.png" for stem in stems],
    }


DEPTH = Format(
    "depth",
    ("depth/*.npz", "depth/*.png"),
    lambda export, folder: write_depth(
        export.scene,
        folder / "depth",
        original=export.options.depth_original,
        float16=export.options.float16,
        threads=export.threads,
    ),
    of_saved=True,
    about="depth along the camera's z in the scene's unit, with the K of its own pixels and cam_from_world, "
    "OpenCV axes; and as a picture",
    of_photographs=of_photographs,
    pixel_bytes=9,  # depth, confidence, valid
)
