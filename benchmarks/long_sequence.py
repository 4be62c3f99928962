"""What closing a loop is worth: rendered views once around a block and some more, whose truth is handed out
in chunks, each in a world and unit of its own, and joined again.

    python benchmarks/long_sequence.py              # 600 views in chunks of 120, no model but mini's encoder
    python benchmarks/long_sequence.py --seeds 8    # the mean of so many draws of what chunks are wrong by
    python benchmarks/long_sequence.py --model 16   # so many views by mini, at once and in chunks

Errors are of the cameras' centres, root mean square after one similarity, in metres; the way is 104 m long.
`--model` takes the rendered test scenes, which are like what mini has learnt of.
Chunks are wrong in three ways: `noise`, of each pixel's depth, 2 %, and 5 % of the pixels anything;
`wander`, besides, a turn and a growth along each chunk, to either side, 1 degree and 1 % per side of the
block; `drift`, the same always to one side, as reconstructions of long ways do.

Beside them stands what maximum likelihood makes of the same, told how the chunks are wrong: that each is bent
evenly, about the vertical, and how much they usually are. Once of what `join` has, a similarity for each
overlap, and once of three, of a third of each overlap, between which two chunks' bends differ.
"""

import argparse
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from fastvggt_jax import from_pretrained, load_images
from fastvggt_jax.datasets import synthetic
from fastvggt_jax.datasets.synthetic.path import look, rays
from fastvggt_jax.datasets.synthetic.render import over_views, shade
from fastvggt_jax.datasets.synthetic.world import random_world
from fastvggt_jax.geometry.alignment import Similarity, align
from fastvggt_jax.models.prediction import Reconstruction
from fastvggt_jax.sequence import describe, join, plan
from fastvggt_jax.sequence.fit import Part, centres, fit
from fastvggt_jax.sequence.plan import owners

# Half sides of the block, of the way around it, of the houses opposite.
BLOCK, STREET, BEYOND = 10.0, 13.0, 20.0
NOISE, OUTLIERS, TURN, GROWTH = 0.02, 0.05, np.deg2rad(1.0), 0.01
BENDS = {
    "noise": (0.0, 0.0),
    "wander": (0.0, 1.0),
    "drift": (1.0, 0.3),
}  # mean and spread, of TURN and GROWTH
SURE = (
    1e-3  # radians, logarithms of the scale, parts' depths: what a similarity of an overlap is off by, about
)


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


def bend(by, about):
    """So many times a side's turn about the vertical and growth, which leave a point where it is."""
    scale, R = np.exp(by * GROWTH), about_z(by * TURN)
    return Similarity(scale, R, about - scale * R @ about)


def rms(found, truth):
    return float(np.sqrt(np.square(align(found, truth)(found) - truth).sum(-1).mean()))


class Town:
    def __init__(self, frames, again, size):
        self.K = np.array([[0.8 * size, 0, size / 2], [0, 0.8 * size, size / 2], [0, 0, 1]], np.float32)
        self.poses, self.along = way(frames, again)
        world = town(jax.random.key(3))
        self.pixels, self.points, self.depth = photographs(world, jnp.asarray(self.K), self.poses, size)

    def error(self, of_cameras):
        """Of centres [F, 3]."""
        return rms(of_cameras, self.poses[: len(of_cameras), :3, 3])

    def on(self, frames):
        """How far along the way frames are, in sides of the block, from their mean."""
        u = (self.along[frames] - self.along[frames[0]] + 2) % 4 - 2
        return u - u.mean()

    def told(self, frames, how, rng):
        """The truth of these frames as a model might say it, [1, f, ...]."""
        own = Similarity(np.exp(rng.normal() / 2), about_z(rng.uniform(0, 6)), rng.normal(size=3) * 9)
        mean, spread = BENDS[how]
        bent = mean + spread * rng.normal()
        where = self.poses[frames, :3, 3].astype(np.float64)
        middle, cameras = where.mean(0), np.empty((len(frames), 3, 4))
        points, depth = self.points[frames].astype(np.float64), self.depth[frames].astype(np.float64)
        off = 1 + NOISE * rng.normal(size=depth.shape)
        off = np.where(rng.random(depth.shape) < OUTLIERS, rng.uniform(0.3, 3, depth.shape), off)
        for at, (frame, u) in enumerate(zip(frames, self.on(frames), strict=True)):
            world = own.after(bend(bent * u, middle))
            back = self.poses[frame, :3, :3].T.astype(np.float64)
            cameras[at] = world.of_cameras(np.concatenate([back, -back @ where[at][:, None]], 1))
            points[at] = world(where[at] + off[at][..., None] * (points[at] - where[at]))
            depth[at] *= off[at] * world.scale
        conf = (depth > 0).astype(np.float32)[None]
        one = lambda x: np.asarray(x, np.float32)[None]
        K = np.tile(self.K, (len(frames), 1, 1))
        return Reconstruction(one(cameras), one(K), one(depth), conf, one(points), conf, conf_floor=0.5)


def of_some(part, frames):
    at = np.isin(part.frames, frames)
    return Part(*(values[at] for values in vars(part).values()))


def most_likely(scene, parts, chunks, how, each):
    """The centres f64[F, 3] of the cameras that are most likely, given how the chunks are wrong.

    parts: of the chunks, then of those that close loops. each: similarities of an overlap that are known.
    """
    mean, spread = BENDS[how]
    middle = [centres(part.cam_from_world).mean(0) for part in parts]
    depth = [np.median(part.depth) for part in parts]
    known, where = [], {0: Similarity(1.0, np.eye(3), np.zeros(3))}
    for j, part in enumerate(parts):
        for i in range(j):
            shared = np.intersect1d(parts[i].frames, part.frames)
            if len(shared) and (i == j - 1 or j >= len(chunks)):
                whole = fit(parts[i], part)
                where.setdefault(j, where[i].after(whole.similarity))
                for frames in np.array_split(shared, each):
                    found = fit(of_some(parts[i], frames), of_some(part, frames))
                    ends = (parts[i], part)
                    at = [scene.on(one.frames)[np.isin(one.frames, frames)].mean() for one in ends]
                    known.append((i, j, found, at))

    many = len(parts)

    def world_of(x):
        """(part, u) -> from the part's world, as it is u sides from its middle, to that of all."""
        steps, bends = x[: 7 * many].reshape(-1, 7), mean + spread * x[7 * many :]
        to = []
        for j, step in enumerate(steps):
            turn = Rotation.from_rotvec(step[1:4]).as_matrix()
            to.append(Similarity(np.exp(step[0]), turn, step[4:] * depth[0]).after(where[j]))
        return lambda j, u: to[j].after(bend(-bends[j] * u, middle[j]))

    def residuals(x):
        world, off = world_of(x), [x[:7], x[7 * many :]]  # the first stays; bends are drawn by a normal law
        for i, j, found, (u, v) in known:
            error = found.similarity.inverse().after(world(i, u).inverse().after(world(j, v)))
            turned = Rotation.from_matrix(error.rotation).as_rotvec()
            moved = (error(found.about) - found.about) / depth[j]
            off.append(np.concatenate([[np.log(error.scale)], turned, moved]) / SURE)
        return np.concatenate(off)

    world = world_of(least_squares(residuals, np.zeros(8 * many), x_scale="jac", max_nfev=30).x)
    owner = owners(chunks, len(scene.poses))
    found = np.empty((len(owner), 3))
    for j, frames in enumerate(chunks):
        for frame, u, centre in zip(frames, scene.on(frames), centres(parts[j].cam_from_world), strict=True):
            if owner[frame] == j:
                found[frame] = world(j, u)(centre)
    return found


def one_draw(scene, chunks, shown, descriptors, how, seed):
    """Errors, and the loops that were closed."""
    rng, parts, told = np.random.default_rng(seed), [], {}

    def run(frames):
        key = frames.tobytes()
        if key not in told:
            told[key] = scene.told(frames, how, rng)
            parts.append(Part.of(frames, told[key], shown[frames]))
        return told[key]

    errors, loops = {}, []
    for name, seen in (("open", None), ("closed", descriptors)):
        joined = join(run, chunks, shown, seen)
        (piece,) = joined.pieces
        errors[name], loops = scene.error(centres(piece.found.cam_from_world[0])), joined.loops
    for each in (1, 3):
        errors[f"likely by {each}"] = scene.error(most_likely(scene, parts, chunks, how, each))
    return errors, loops


def by_model(views, scenes):
    """Ways of so many rendered views by mini, at once and in chunks that overlap by half or more."""
    model, params = from_pretrained("mini", heads=("camera", "depth"), dtype="float32")
    lengths, errors = (views // 2, views * 3 // 4), []
    names = ("at once", *(f"in chunks of {length}" for length in lengths))

    @jax.jit
    def found(pixels):
        return model.reconstruction(model.apply(params, pixels), None)

    for number in range(scenes):
        scene = synthetic.sample("test", number, frames=views, supersampling=1)
        truth = np.asarray(scene.world_from_cam)[:, :3, 3]
        images = load_images(np.rint(np.asarray(scene.images) * 255).astype(np.uint8), model.image_policy)
        run = lambda frames, pixels=images.pixels: jax.device_get(found(pixels[frames][None]))
        ways = [run(np.arange(views))]
        for length in lengths:
            joined = join(run, plan(views, length, length // 2), images.shown())
            ways += [piece.found for piece in joined.pieces]
        if len(ways) == len(names):  # else chunks do not hang together, and there is no error of the whole
            errors.append([rms(centres(one.cam_from_world[0]), truth) for one in ways])
            print(json.dumps({"scene": number} | dict(zip(names, errors[-1], strict=True))), flush=True)
    row = {"scenes": len(errors), "medians": dict(zip(names, np.median(errors, 0), strict=True))}
    ratios = np.median(np.array(errors) / np.array(errors)[:, :1], 0)
    print(json.dumps(row | {"medians of ratios": dict(zip(names, ratios, strict=True))}))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--views", type=int, default=600)
    parser.add_argument("--again", type=int, default=30, help="of the views, those that come back")
    parser.add_argument("--chunk", type=int, default=120)
    parser.add_argument("--overlap", type=int, default=30)
    parser.add_argument("--size", type=int, default=56)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--model", type=int, help="run mini on so many views of each of some scenes")
    parser.add_argument("--scenes", type=int, default=10)
    options = parser.parse_args()
    if options.model:
        by_model(options.model, options.scenes)
        return
    start = time.perf_counter()
    scene = Town(options.views - options.again, options.again, options.size)
    print(
        json.dumps({"rendered": options.views, "seconds": round(time.perf_counter() - start, 1)}), flush=True
    )
    model, params = from_pretrained("mini", heads=("camera", "depth"), dtype="float32")
    images = load_images(scene.pixels, model.image_policy, size=options.size)
    descriptors = describe(model, params, images.pixels)
    chunks, shown = plan(options.views, options.chunk, options.overlap), images.shown()
    for how in BENDS:
        start = time.perf_counter()
        draws = [one_draw(scene, chunks, shown, descriptors, how, seed) for seed in range(options.seeds)]
        mean = {name: float(np.mean([errors[name] for errors, _ in draws])) for name in draws[0][0]}
        row = {"chunks": how, "error": {name: round(x, 4) for name, x in mean.items()}}
        row["falls by"] = {name: round(1 - x / mean["open"], 3) for name, x in mean.items() if name != "open"}
        row |= {"loops": draws[0][1], "seconds": round(time.perf_counter() - start, 1)}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
