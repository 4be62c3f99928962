"""A scene whose cameras and depth are the renderer's own, of photographs as people have them: of several
sizes, one turned by its EXIF tag.
"""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from fastvggt_jax import Scene, load_images
from fastvggt_jax.datasets.synthetic.path import look, sees
from fastvggt_jax.datasets.synthetic.world import COUNTS, Materials, World
from fastvggt_jax.sources import ImagePolicy, Images

WIDTH, HEIGHT, VIEWS = 160, 120, 6
# left, top, right, bottom of what is kept of each rendered view
CROPS = [
    (0, 0, 160, 120),
    (0, 0, 160, 120),
    (10, 0, 160, 120),
    (20, 0, 140, 120),
    (0, 10, 160, 110),
    (0, 0, 160, 120),
]
TURNED = 2  # is saved lying on its side, with the tag that says so


K = np.array([[150, 0, WIDTH / 2], [0, 150, HEIGHT / 2], [0, 0, 1]])  # the first pixel's centre at (0.5, 0.5)


@functools.cache
def world() -> World:
    """A room with a few shapes in its middle; no materials, since only its geometry is looked at."""
    count = sum(COUNTS)
    rng = np.random.default_rng(4)
    centre = rng.uniform((-1.2, -0.6, 0.2), (1.2, 1.2, 1.4), (count, 3))
    size = np.broadcast_to(rng.uniform(0.15, 0.35, (count, 1)), (count, 3)).copy()
    size[np.arange(count) % 3 != 0] = 1e-3  # two of three are out of sight,
    centre[np.arange(count) % 3 != 0, 2] = -50  # below the floor
    none = Materials(jnp.zeros(1, int), jnp.zeros(1), jnp.zeros(1, int), jnp.zeros((1, 3, 3)))
    return World(
        rotation=jnp.tile(jnp.eye(3), (count, 1, 1)),
        centre=jnp.asarray(centre, jnp.float32),
        size=jnp.asarray(size, jnp.float32),
        materials=none,
        outdoors=jnp.asarray(False),
        room=jnp.array([3.0, 3.0, 2.5]),
        hills=jnp.zeros((4, 4)),
        surfaces=none,
        light=jnp.zeros(3),
        light_color=jnp.zeros(3),
        ambient=jnp.zeros(3),
        sky=jnp.zeros((2, 3)),
    )


@functools.cache
def world_from_cam() -> np.ndarray:
    """f32[VIEWS, 4, 4]: side by side, a little rolled, looking at the shapes."""
    poses = np.tile(np.eye(4), (VIEWS, 1, 1))
    for i, along in enumerate(np.linspace(-1, 1, VIEWS)):
        eye = np.array([1.1 * along, -2.2, 1.2 + 0.3 * along**2])
        ahead = np.array([0.3 * along, 0.3, 0.8]) - eye
        ahead /= np.linalg.norm(ahead)
        right = np.cross(ahead, (0.1 * along, 0, 1))
        right /= np.linalg.norm(right)
        poses[i, :3] = np.stack([right, np.cross(ahead, right), ahead, eye], -1)
    return poses.astype(np.float32)


def _colors(points: np.ndarray) -> np.ndarray:
    """u8[..., 3], smooth in space and the same from everywhere."""
    waves = np.sin(points @ np.array([[9, 4, 1], [-3, 8, 5], [2, -6, 9]]) + np.array([0, 1, 2]))
    return np.rint(127.5 + 100 * waves).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Truth:
    """scene: with the true cameras, depth and points. K: f64[F, 3, 3] of the photographs, the first pixel's
    centre at (0.5, 0.5). images: as they were loaded.
    """

    scene: Scene
    K: np.ndarray
    images: Images

    def points_at(self, frame: int, xy: np.ndarray) -> np.ndarray:
        """f32[n, 3]: what pixels f64[n, 2] of a photograph show."""
        return _looked(_rays(xy, frame), frame)[0]

    def sees(self, frame: int, points: np.ndarray) -> np.ndarray:
        """bool[n]: whether a photograph, before it was cropped, shows these points f32[n, 3]."""
        return np.array(_sees(*_camera(frame), jnp.asarray(points, jnp.float32)))


def true_scene(folder: Path, mode: str = "crop", size: int = 112) -> Truth:
    """Photographs in a folder, and their Scene in a mode of sizing."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, (left, top, right, bottom) in enumerate(CROPS):
        v, u = np.mgrid[: bottom - top, : right - left] + 0.5
        image = Image.fromarray(_colors(_looked(_rays(np.stack([u, v], -1), i), i)[0]))
        if i == TURNED:
            exif = Image.Exif()
            exif[0x0112] = 6  # to be turned clockwise
            image.rotate(90, expand=True).save(folder / f"{i}.jpg", quality=100, subsampling=0, exif=exif)
        else:
            image.save(folder / f"{i}.png")
    images = load_images(folder, ImagePolicy(mode, size, 14))
    frames, height, width, _ = images.pixels.shape
    v, u = np.mgrid[:height, :width] + 0.5
    of_photographs, points, depth = [], [], []
    for i, t in enumerate(images.transforms):
        seen, z = _looked(_rays(t.to_original(np.stack([u, v], -1)), i), i)
        points.append(seen)
        depth.append(z)
        left, top, *_ = CROPS[i]
        moved = K.copy()
        moved[:2, 2] -= (left, top)
        of_photographs.append(moved)
    of_model = [
        np.array([[t.scale_x, 0, t.offset_x], [0, t.scale_y, t.offset_y], [0, 0, 1]])
        for t in images.transforms
    ]
    surface = np.stack(depth) > 0
    scene = Scene(
        names=images.names,
        transforms=images.transforms,
        colors=images.pixels,
        valid=np.stack([t.valid_mask() for t in images.transforms]) & surface,
        K=np.stack([m @ k for m, k in zip(of_model, of_photographs, strict=True)]).astype(np.float32),
        cam_from_world=np.linalg.inv(world_from_cam().astype(np.float64))[:, :3].astype(np.float32),
        points=np.stack(points),
        points_conf=np.full((frames, height, width), 2, np.float32),
        depth=np.stack(depth),
        depth_conf=np.full((frames, height, width), 2, np.float32),
        intrinsics=("predicted",) * frames,
        paths=tuple(str(frame.path) for frame in images.frames),
    )
    return Truth(scene, np.stack(of_photographs), images)


def _camera(frame: int) -> tuple:
    centred = K - np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])  # rays go through whole numbers there
    return world(), jnp.asarray(centred, jnp.float32), jnp.asarray(world_from_cam()[frame])


def _rays(xy: np.ndarray, frame: int) -> np.ndarray:
    """The renderer's pixels, before the crop and counted from centres, of a photograph's."""
    return np.asarray(xy) + CROPS[frame][:2] - 0.5


@jax.jit
def _look(world, K, pose, uv):
    return look(world, K, pose, uv[..., 0], uv[..., 1])[:2]


@jax.jit
def _sees(world, K, pose, points):
    return sees(world, K, pose, points, HEIGHT, WIDTH)


def _looked(uv: np.ndarray, frame: int) -> tuple[np.ndarray, np.ndarray]:
    flat = uv.reshape(-1, 2)
    padded = np.zeros((-(-len(flat) // 4096) * 4096, 2), np.float32)  # one size: compiled once
    padded[: len(flat)] = flat
    found = [_look(*_camera(frame), part) for part in padded.reshape(-1, 4096, 2)]
    points = np.concatenate([np.asarray(p) for p, _ in found])[: len(flat)]
    depth = np.concatenate([np.asarray(z) for _, z in found])[: len(flat)]
    return points.reshape(*uv.shape[:-1], 3), depth.reshape(uv.shape[:-1])
