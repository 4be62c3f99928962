"""What `fastvggt demo` needs without downloading anything: four rendered photographs and a random tiny checkpoint."""

import io
import math
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from fastvggt_jax.checkpoint import save_params
from fastvggt_jax.export.atomic import write_file
from fastvggt_jax.models.pi3 import Pi3
from fastvggt_jax.models.vggt import VGGT

TINY = dict(
    img_size=98,
    embed_dim=64,
    encoder_depth=2,
    encoder_num_heads=2,
    depth=4,
    num_heads=2,
    taps=(0, 1, 2, 3),
    camera_trunk_depth=1,
    camera_num_heads=2,
    dpt_features=32,
    dpt_level_channels=(16, 32, 32, 32),
    heads=("camera", "depth", "point"),
)


def write_photos(folder: Path, views: int = 4, width: int = 320, height: int = 240) -> list[Path]:
    """Write `views` PNGs of a ball on a chequered floor, seen from an arc; returns them in order."""
    paths = []
    for i, angle in enumerate(np.linspace(-0.35, 0.35, views)):
        buffer = io.BytesIO()
        Image.fromarray(_render(angle, width, height)).save(buffer, format="PNG")
        paths.append(folder / f"view{i}.png")
        write_file(paths[-1], buffer.getbuffer())
    return paths


def _render(angle: float, width: int, height: int) -> np.ndarray:
    """u8[height, width, 3]: a ray through every pixel, from a camera at `angle` on a circle around the ball."""
    u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    rays = np.stack([(u - width / 2) / width, (v - height / 2) / width, np.ones_like(u)], -1)  # [h, w, 3], y down
    c, s = np.cos(angle), np.sin(angle)
    rays = rays @ np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])  # turned about y
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    eye = np.array([-4 * s, -0.6, -4 * c])  # looks at the ball, of radius 1 around the origin, above a floor at y = 1
    along = rays @ eye
    root = along**2 - (eye @ eye - 1)
    ball = np.where(root > 0, -along - np.sqrt(np.maximum(root, 0)), np.inf)
    floor = np.where(rays[..., 1] > 1e-3, (1 - eye[1]) / np.maximum(rays[..., 1], 1e-3), np.inf)
    nearest = np.minimum(ball, floor)
    at = eye + rays * np.minimum(nearest, 60)[..., None]
    squares = np.floor(2 * at[..., 0]) + np.floor(2 * at[..., 2])
    stripes = np.floor(4 * np.arctan2(at[..., 0], at[..., 2])) + np.floor(5 * at[..., 1])
    light = np.clip(at @ (-0.4, -0.8, -0.5), 0.15, 1)  # on the unit ball, the point is its own normal
    of_ball = np.where(stripes % 2, 0.9, 0.5)[..., None] * light[..., None] * (1.0, 0.55, 0.3)
    sky = (1 - 0.5 * v / height)[..., None] * (0.6, 0.75, 1.0)
    haze = np.exp(-nearest / 12)[..., None]
    of_floor = haze * np.where(squares % 2, 0.85, 0.25)[..., None] * (0.9, 1.0, 0.9) + (1 - haze) * sky
    colors = np.where((ball < floor)[..., None], of_ball, np.where(np.isfinite(floor)[..., None], of_floor, sky))
    return (255 * np.clip(colors, 0, 1)).round().astype(np.uint8)


def write_random_checkpoint(path: Path, seed: int = 0, **fields: Any) -> None:
    """Write a native weight file of a tiny VGGT (TINY, changed by `fields`) with random weights."""
    model = VGGT(**{**TINY, **fields})
    save_params(path, random_params(model, seed), model, source=f"random numbers, seed {seed}", license="none needed")


def random_params(model: VGGT | Pi3, seed: int = 0, dtype: jnp.dtype = jnp.float32) -> dict[str, Any]:
    """{"params": tree of arrays}, drawn so that activations neither die nor grow; `model.init` starts the tokens and the
    layer scales so near 0 that all cameras and depths would come out alike."""
    specs = flax.traverse_util.flatten_dict(model.abstract_params()["params"], sep="/")
    keys = jax.random.split(jax.random.key(seed), len(specs))
    out = {name: _draw(name, spec.shape, key, dtype) for (name, spec), key in zip(specs.items(), keys, strict=True)}
    if isinstance(model, VGGT) and "camera" in model.heads:
        # Upright cameras that differ little: four iterations add up the last layer's output.
        last = "camera_head/pose_branch/fc2"
        out[f"{last}/kernel"] *= 0.02
        out[f"{last}/bias"] = jnp.array([0, 0, 0, 0, 0, 0, 0.25, 0.2, 0.25], dtype)
    return {"params": flax.traverse_util.unflatten_dict(out, sep="/")}


def _draw(name: str, shape: tuple[int, ...], key: jax.Array, dtype: jnp.dtype) -> jax.Array:
    *parents, leaf = name.split("/")
    draw = jax.random.normal(key, shape, dtype)
    if leaf == "kernel":
        # The last axis counts the outputs and a scanned stack's first one the layers; the rest is the fan-in.
        stacked = any(part == "trunk" or part.endswith("blocks") for part in parents)
        return draw * math.prod(shape[int(stacked) : -1]) ** -0.5
    if leaf in ("scale", "gamma"):
        return 1 + 0.1 * draw
    return draw * (0.1 if leaf == "bias" else 0.5)
