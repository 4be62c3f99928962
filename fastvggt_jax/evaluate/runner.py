"""Models measured on rendered scenes that none was trained on: the test split of `fastvggt_jax.datasets.synthetic`."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from fastvggt_jax.datasets import synthetic
from fastvggt_jax.evaluate import metrics
from fastvggt_jax.models.base import Model
from fastvggt_jax.models.prediction import Reconstruction

Array = jax.Array
SURFACE_POINTS, SURFACE_QUERIES = (
    50_000,
    2_500,
)  # of a scene's pixels: among which neighbours are looked up, and for how many
ACCURACIES, AREAS = (5, 15), (5, 30)  # thresholds in degrees
BASELINES = (
    0,
    3,
    6,
    12,
    25,
    50,
    np.inf,
)  # percent of the scene's size, between which pairs of views are told apart
DEFINITIONS = {
    "scene's size": "the mean distance of its true points from the first camera, VGGT's unit; percentages of lengths are of it",
    "rotation error": "degrees, the median over all pairs of views of all scenes",
    "translation error": "degrees between directions, up to sign; the median over all pairs of views of all scenes",
    **{
        f"RRA@{limit}": f"percent of pairs of views whose rotation error is below {limit}°"
        for limit in ACCURACIES
    },
    **{
        f"RTA@{limit}": f"percent of pairs of views whose translation error is below {limit}°"
        for limit in ACCURACIES
    },
    **{
        f"AUC@{limit}": f"percent; the mean of the shares of pairs whose larger error is below 1°, 2°, ... {limit}°"
        for limit in AREAS
    },
    "ATE": "percent; root mean square distance of camera centres after alignment by a similarity, 0 for 2 views; the mean over scenes",
    "AbsRel": "mean of |depth - truth| / truth after one scale for all views of a scene; the mean over scenes",
    "delta": "percent of depths wrong by a factor below 1.25 after the same scale; the mean over scenes",
    "point error": "percent; the median distance of points from the true ones after alignment by a similarity; the mean over scenes",
    "accuracy": "percent; mean distance from predicted points to the nearest true ones, after the same alignment; the mean over scenes. "
    f"This and the next three: nearest among the points of {SURFACE_POINTS:,} random pixels, for {SURFACE_QUERIES:,} of them",
    "completeness": "percent; mean distance from true points to the nearest predicted ones; the mean over scenes",
    "Chamfer": "percent; the mean of accuracy and completeness",
    "normal consistency": "mean |cosine| between the normals of nearest points, over both directions; the mean over scenes",
    "baselines": "the same errors of pairs by the distance of their two cameras, from one percentage of the scene's size to another",
    "effective sparsity": "share of the blocks of patch queries that were not computed, special keys counted; mean over layers and scenes",
}


@dataclasses.dataclass(frozen=True)
class Scenes:
    """Which scenes of the test split, and how they are photographed.

    count scenes from number `first` on, `views` square views of `size` pixels each; `batch` of them at a
    time, or as many fewer as divide count, so that every batch is a whole one. ValueError for what cannot be
    measured.
    """

    count: int = 200
    first: int = 0
    views: int = 8
    size: int = 224
    batch: int = 8

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"a test split of {self.count} scenes has nothing to measure; give at least 1")
        if self.views < 2:
            raise ValueError(f"cameras are compared in pairs, which need at least 2 views, not {self.views}")
        if self.first < 0 or self.batch < 1:
            raise ValueError(
                f"the first scene must be at least 0 and the batch at least 1, not {self.first} and {self.batch}"
            )
        if self.first + self.count > synthetic.SPLIT_SIZE:
            raise ValueError(
                f"{self.count} scenes from number {self.first} on lead beyond the last one, number {synthetic.SPLIT_SIZE - 1}"
            )
        divisors = (n for n in range(min(self.batch, self.count), 0, -1) if self.count % n == 0)
        object.__setattr__(self, "batch", next(divisors))


Predict = Callable[[Array], tuple[Reconstruction, Array | None]]


def predictor(model: Model, params: Mapping) -> Predict:
    """[B, F, H, W, 3] -> the Reconstruction, and the density of each global layer, f32[layers], or None of a dense model.
    Jitted.
    """

    @jax.jit
    def run(params: Mapping, images: Array) -> tuple[Reconstruction, Array | None]:
        prediction = model.apply(params, images)
        return model.reconstruction(prediction), prediction.density

    return lambda images: run(params, images)


class Truth:
    """What is true of a scene, in numpy, with what only needs to be computed once."""

    def __init__(self, scene: synthetic.Sample) -> None:
        self.cam_from_world, depth, points, self.valid = jax.device_get(
            (scene.cam_from_world, scene.depth[..., 0], scene.world_points, scene.valid)
        )
        self.depth, self.points = depth[self.valid].astype(np.float64), points[self.valid].astype(np.float64)
        first = -self.cam_from_world[0, :, :3].T @ self.cam_from_world[0, :, 3]
        self.size = float(np.linalg.norm(self.points - first, axis=-1).mean())
        self.baselines = 100 / self.size * metrics.baselines(self.cam_from_world)  # in percent
        # The same pixels of truth and prediction; in random order, so that any first few are spread over all.
        self.chosen = np.random.default_rng(0).permutation(len(self.points))[:SURFACE_POINTS]
        self.surface = metrics.Surface(self.points[self.chosen])


def measure(
    cam_from_world: np.ndarray, depth: np.ndarray, points: np.ndarray, truth: Truth
) -> tuple[np.ndarray, dict[str, float]]:
    """Of one scene: the errors of all pairs of views, f64[2, pairs] (rotation, translation), and its other
    metrics (DEFINITIONS).
    """
    pairs = np.stack(metrics.pair_errors(cam_from_world, truth.cam_from_world))
    depth, points = depth[truth.valid].astype(np.float64), points[truth.valid].astype(np.float64)
    depth *= metrics.depth_scale(depth, truth.depth)
    points = metrics.align(points, truth.points)(points)
    percent = 100 / truth.size
    surface = metrics.surface_errors(
        metrics.Surface(points[truth.chosen]), truth.surface, slice(SURFACE_QUERIES)
    )
    return pairs, {
        **_of_pairs(pairs),
        "ATE": percent * metrics.ate(cam_from_world, truth.cam_from_world),
        "AbsRel": metrics.abs_rel(depth, truth.depth),
        "delta": metrics.delta(depth, truth.depth),
        "point error": percent * float(np.median(np.linalg.norm(points - truth.points, axis=-1))),
        **{
            name: value if name == "normal consistency" else percent * value
            for name, value in surface.items()
        },
    }


def _of_pairs(pairs: np.ndarray) -> dict[str, float]:
    rotation, translation = pairs
    return {
        "rotation error": float(np.median(rotation)),
        "translation error": float(np.median(translation)),
        **{f"RRA@{limit}": metrics.accuracy_at(rotation, limit) for limit in ACCURACIES},
        **{f"RTA@{limit}": metrics.accuracy_at(translation, limit) for limit in ACCURACIES},
        **{f"AUC@{limit}": metrics.auc(rotation, translation, limit) for limit in AREAS},
    }


@dataclasses.dataclass
class Result:
    """Of one predictor. pairs: f64[2, pairs] a scene, and their baselines f64[pairs]; metrics: of each scene;
    density: f64[layers] a batch, none if dense.
    """

    pairs: list[np.ndarray] = dataclasses.field(default_factory=list)
    baselines: list[np.ndarray] = dataclasses.field(default_factory=list)
    metrics: list[dict[str, float]] = dataclasses.field(default_factory=list)
    density: list[np.ndarray] = dataclasses.field(default_factory=list)

    def extend(self, other: Result) -> None:
        """By what the same predictor has given on other scenes."""
        for field in dataclasses.fields(self):
            getattr(self, field.name).extend(getattr(other, field.name))

    def summary(self) -> dict[str, float]:
        """Over all scenes, by the names of DEFINITIONS."""
        means = {name: float(np.mean([scene[name] for scene in self.metrics])) for name in self.metrics[0]}
        density = float(np.mean(self.density)) if self.density else 1.0
        return {"effective sparsity": 1 - density} | means | _of_pairs(np.concatenate(self.pairs, 1))

    def by_baseline(self) -> list[dict[str, float | None]]:
        """The metrics of pairs between each two of BASELINES, where there are some; "to" is None at the end,
        "share" a percentage.
        """
        pairs, baselines, found = np.concatenate(self.pairs, 1), np.concatenate(self.baselines), []
        for low, high in itertools.pairwise(BASELINES):
            chosen = (low <= baselines) & (baselines < high)
            if chosen.any():
                bounds = {
                    "from": low,
                    "to": None if np.isinf(high) else high,
                    "share": 100 * float(chosen.mean()),
                }
                found.append(bounds | _of_pairs(pairs[:, chosen]))
        return found

    def report(self) -> dict:
        """The summary, and what it is made of: pairs by their baseline, the density of each layer, and every
        scene's metrics.
        """
        layers = [round(float(d), 4) for d in np.mean(self.density, 0)] if self.density else None
        scenes = {name: [round(scene[name], 4) for scene in self.metrics] for name in self.metrics[0]}
        return {
            "summary": self.summary(),
            "baselines": self.by_baseline(),
            "density": layers,
            "scenes": scenes,
        }


def evaluate(
    predictors: Mapping[str, Predict],
    scenes: Scenes,
    advance: Callable[[], object] = lambda: None,
    *,
    together: bool = False,
) -> dict[str, Result]:
    """Every predictor on the same scenes; calls `advance` once for each predictor and batch. Interrupted
    (KeyboardInterrupt), it returns what the batches before have given, if there are some.

    together: predictors are compiled at the same time, in threads, see `pallas_kernels.compiles_in_threads`;
    each runs once more for it. ValueError if a prediction is not finite.
    """
    results = {name: Result() for name in predictors}
    with ThreadPoolExecutor() as threads:  # numpy, scipy and XLA's compiler mostly work outside the GIL
        for start in range(scenes.first, scenes.first + scenes.count, scenes.batch):
            first = start == scenes.first
            try:
                found = _evaluate_batch(predictors, scenes, start, threads, advance, together and first)
            except KeyboardInterrupt:
                if first:
                    raise
                break
            for name, result in found.items():
                results[name].extend(result)
    return results


def _evaluate_batch(
    predictors: Mapping[str, Predict],
    scenes: Scenes,
    start: int,
    threads: Executor,
    advance: Callable[[], object],
    compile_all: bool,
) -> dict[str, Result]:
    results = {name: Result() for name in predictors}
    numbers = range(start, start + scenes.batch)
    rendered = [
        synthetic.sample("test", number, frames=scenes.views, height=scenes.size, width=scenes.size)
        for number in numbers
    ]
    images = jnp.stack([scene.images for scene in rendered])  # [B, F, H, W, 3]
    truths = list(threads.map(Truth, rendered))
    if compile_all:
        list(
            threads.map(lambda predict: jax.block_until_ready(predict(images)) and None, predictors.values())
        )
    names = list(predictors)
    running = predictors[names[0]](images)
    for name, following in itertools.zip_longest(names, names[1:]):
        found, density = jax.device_get(running)
        running = following and predictors[following](
            images
        )  # the device predicts while this one is measured
        finite = [np.isfinite(x).all((*range(1, x.ndim),)) for x in jax.tree.leaves(found)]
        broken = [number for number, fine in zip(numbers, np.all(finite, 0), strict=True) if not fine]
        if broken:
            raise ValueError(
                f"{name}: the model's cameras or points of test scene {broken[0]} are not finite: damaged weights?"
            )
        measured = threads.map(measure, found.cam_from_world, found.depth, found.points, truths)
        for truth, (pairs, values) in zip(truths, measured, strict=True):
            results[name].pairs.append(pairs)
            results[name].baselines.append(truth.baselines)
            results[name].metrics.append(values)
        if density is not None:
            results[name].density.append(np.asarray(density, np.float64))
        advance()
    return results
