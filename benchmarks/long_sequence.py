"""What closing a loop is worth: rendered views once around a block and some more, whose truth is handed out
in chunks, each in a world and unit of its own, and joined again.

    python benchmarks/long_sequence.py              # 600 views in chunks of 120, no model but mini's encoder
    python benchmarks/long_sequence.py --model 24   # so many views by mini: in chunks beside all at once

Errors are of the cameras' centres, root mean square after one similarity, in metres; the way is 104 m long.
Chunks are wrong in three ways: `noise`, of each pixel's depth, 2 %, and 5 % of the pixels anything;
`wander`, besides, a turn and a growth along each chunk, to either side, 1 degree and 1 % per side of the
block; `drift`, the same always to one side, as reconstructions of long ways do.
"""

import argparse
import json
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from fastvggt_jax import from_pretrained, load_images, reconstruct_sequence, to_scene
from fastvggt_jax.datasets.synthetic.path import look, rays
from fastvggt_jax.datasets.synthetic.render import over_views, shade
from fastvggt_jax.datasets.synthetic.world import random_world
from fastvggt_jax.geometry.alignment import Similarity, align
from fastvggt_jax.models.prediction import Reconstruction
from fastvggt_jax.sequence import describe, join, plan

# Half sides of the block, of the way around it, of the houses opposite.
BLOCK, STREET, BEYOND = 10.0, 13.0, 20.0
NOISE, OUTLIERS, TURN, GROWTH = 0.02, 0.05, np.deg2rad(1.0), 0.01


def town(key):
    """A block of houses and houses around it, on flat ground."""
    world = next(w for w in (random_world(jax.random.fold_in(key, i)) for i in range(99)) if bool(w.outdoors))
    n = len(world.centre)
    rng = np.random.default_rng(0)
    around = np.linspace(0, 2 * np.pi, n, endpoint=False)
    inside = np.arange(n) % 3 == 0
    reach = np.where(inside, BLOCK - 2.5, BEYOND) / np.maximum(abs(np.cos(around)), abs(np.sin(around)))
    size = rng.uniform([1.5, 1.5, 1.5], [3.0, 3.0, 4.0], (n, 3))
    centre = np.stack([reach * np.cos(around), reach * np.sin(around), size[:, 2]], -1)
    # Behind what stands along the street, so that no two sides see each other.
    size[0], centre[0] = (BLOCK - 2, BLOCK - 2, 4), (0, 0, 4)
    return world.replace(
        centre=jnp.asarray(centre, jnp.float32), size=jnp.asarray(size, jnp.float32), hills=world.hills * 0
    )


def way(frames, again):
    """world_from_cam f32[F, 4, 4]: ahead and half turned to the block; the last ones see again what the first
    ones saw.
    """
    along = np.arange(frames + again) / frames * 4
    side, on = np.divmod(along, 1.0)
    heading = (
        side * np.pi / 2
        + np.clip((on - 0.9) / 0.2, 0, 1) * np.pi / 4
        - np.clip((0.1 - on) / 0.2, 0, 1) * np.pi / 4
    )
    turn, poses = side * np.pi / 2, np.tile(np.eye(4), (len(along), 1, 1))
    x, y = 2 * STREET * on - STREET, np.full(len(along), -STREET)
    poses[:, 0, 3] = np.cos(turn) * x - np.sin(turn) * y
    poses[:, 1, 3] = np.sin(turn) * x + np.cos(turn) * y
    poses[:, 2, 3] = 1.6
    ahead = np.stack([np.cos(heading + np.pi / 4), np.sin(heading + np.pi / 4), 0 * heading], -1)
    down = np.broadcast_to([0, 0, -1.0], ahead.shape)
    poses[:, :3, :3] = np.stack([np.cross(down, ahead), down, ahead], -1)
    return poses.astype(np.float32), along


def photographs(world, K, poses, size):
    """u8[F, size, size, 3], and points f32[F, size, size, 3], depth f32[F, size, size], 0 of the sky."""
    v, u = jnp.meshgrid(jnp.arange(size) + 0.0, jnp.arange(size) + 0.0, indexing="ij")

    @jax.jit
    def some(poses):
        def view(pose):
            color, _ = shade(world, *rays(K, pose, u, v)[:2])
            points, depth, _ = look(world, K, pose, u, v)
            return color, points, depth

        return over_views(view, poses)

    # Of one size, so that one program renders all.
    steps = [some(jnp.asarray(poses[i : i + 1])) for i in range(len(poses))]
    color, points, depth = (np.concatenate(x) for x in zip(*jax.device_get(steps), strict=True))
    pixels = np.clip(color * 0.28 / color.mean(), 0, 1) ** (1 / 2.2)
    return (255 * pixels).round().astype(np.uint8), points, depth


def about_z(angle):
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


class Town:
    def __init__(self, frames, again, size):
        self.K = np.array([[0.8 * size, 0, size / 2], [0, 0.8 * size, size / 2], [0, 0, 1]], np.float32)
        self.poses, self.along = way(frames, again)
        world = town(jax.random.key(3))
        self.pixels, self.points, self.depth = photographs(world, jnp.asarray(self.K), self.poses, size)

    def error(self, cam_from_world):
        cameras = np.asarray(cam_from_world, np.float64)
        centres = -np.einsum("nji,nj->ni", cameras[..., :3], cameras[..., 3])
        truth = self.poses[: len(centres), :3, 3]
        return float(np.sqrt(np.square(align(centres, truth)(centres) - truth).sum(-1).mean()))

    def told(self, frames, how, rng):
        """The truth of these frames as a model might say it, [1, f, ...]."""
        own = Similarity(np.exp(rng.normal() / 2), about_z(rng.uniform(0, 6)), rng.normal(size=3) * 9)
        bent = {"noise": 0.0, "wander": rng.normal(), "drift": 1 + 0.3 * rng.normal()}[how]
        u = (self.along[frames] - self.along[frames[0]] + 2) % 4 - 2
        centres = self.poses[frames, :3, 3].astype(np.float64)
        middle, cameras = centres.mean(0), np.empty((len(frames), 3, 4))
        points, depth = self.points[frames].astype(np.float64), self.depth[frames].astype(np.float64)
        off = 1 + NOISE * rng.normal(size=depth.shape)
        off = np.where(rng.random(depth.shape) < OUTLIERS, rng.uniform(0.3, 3, depth.shape), off)
        for at, frame in enumerate(frames):
            scale, R = np.exp(bent * GROWTH * (u[at] - u.mean())), about_z(bent * TURN * (u[at] - u.mean()))
            world = own.after(Similarity(scale, R, middle - scale * R @ middle))
            back = self.poses[frame, :3, :3].T.astype(np.float64)
            cameras[at] = world.of_cameras(np.concatenate([back, -back @ centres[at][:, None]], 1))
            points[at] = world(centres[at] + off[at][..., None] * (points[at] - centres[at]))
            depth[at] *= off[at] * world.scale
        conf = (depth > 0).astype(np.float32)[None]
        one = lambda x: np.asarray(x, np.float32)[None]
        K = np.tile(self.K, (len(frames), 1, 1))
        return Reconstruction(one(cameras), one(K), one(depth), conf, one(points), conf, conf_floor=0.5)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--views", type=int, default=600)
    parser.add_argument("--again", type=int, default=30, help="of the views, those that come back")
    parser.add_argument("--chunk", type=int, default=120)
    parser.add_argument("--overlap", type=int, default=30)
    parser.add_argument("--size", type=int, default=56)
    parser.add_argument("--model", type=int, help="run mini on so many of the views")
    options = parser.parse_args()
    start = time.perf_counter()
    scene = Town(options.views - options.again, options.again, options.size)
    print(
        json.dumps({"rendered": options.views, "seconds": round(time.perf_counter() - start, 1)}), flush=True
    )
    model, params = from_pretrained("mini", heads=("camera", "depth"), dtype="float32")
    images = load_images(scene.pixels, model.image_policy, size=options.size)
    if options.model:
        few = images.some(np.arange(options.model))
        whole = to_scene(jax.jit(model.apply)(params, few.pixels[None]), few)
        chunk = options.model // 2
        (joined,) = reconstruct_sequence(model, params, few, chunk=chunk)
        at_once, chunked = scene.error(whole.cam_from_world), scene.error(joined.cam_from_world)
        print(json.dumps({"at once": at_once, "in chunks": chunked, "ratio": round(chunked / at_once, 3)}))
        return
    descriptors = describe(model, params, images.pixels)
    chunks, shown = plan(options.views, options.chunk, options.overlap), images.shown()
    for how in ("noise", "wander", "drift"):
        row = {"chunks": how, "error": {}}
        for closed in (False, True):
            rng = np.random.default_rng(0)
            start = time.perf_counter()
            joined = join(
                partial(scene.told, how=how, rng=rng), chunks, shown, descriptors if closed else None
            )
            (piece,) = joined.pieces
            row["error"]["closed" if closed else "open"] = round(
                scene.error(piece.found.cam_from_world[0]), 4
            )
        row |= {"loops": joined.loops, "seconds": round(time.perf_counter() - start, 1)}
        row["falls by"] = round(1 - row["error"]["closed"] / row["error"]["open"], 3)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
