"""Models measured on a data set: any number of them, dense and sparse, on the same scenes."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fastvggt_jax.datasets.base import CATEGORIES, PAIRS, Dataset
from fastvggt_jax.errors import FailedError, ImageError, InputError, MissingError, SceneError
from fastvggt_jax.evaluate.measures import ALIGNMENTS, VIDEO, WEIGHT, Reference, measure, of_pairs
from fastvggt_jax.evaluate.protocols import Rules, rules_for
from fastvggt_jax.models.base import Model
from fastvggt_jax.models.prediction import Prediction, Reconstruction
from fastvggt_jax.sharding import SCENES
from fastvggt_jax.sources import ImagePolicy, Images, load_images
from fastvggt_jax.sources.sizing import check_sides

if TYPE_CHECKING:
    from fastvggt_jax.evaluate.journal import Journal

Array = jax.Array
WEIGHTED = {f"{name}, {how}" for name in VIDEO for how in ALIGNMENTS}
# Percent of the scene's size, between which pairs of views are told apart.
BASELINES = (0, 3, 6, 12, 25, 50, np.inf)
Predict = Callable[[Any], tuple[Reconstruction, Array | None]]


class Predictor:
    """u8[B, F, H, W, 3] -> the Reconstruction, and the density of each global layer, f32[layers], or None of
    a dense model. points_from: see `Model.reconstruction`. placed: by a mesh of devices, the parameters whole
    on each of them; predictors of the same parameters share it.
    """

    def __init__(
        self,
        model: Model,
        params: Mapping[str, Any],
        points_from: str | None = None,
        placed: dict[Any, Any] | None = None,
    ) -> None:
        @jax.jit
        def run(params: Mapping[str, Any], images: Array) -> tuple[Reconstruction, Array | None]:
            prediction = cast(Prediction, model.apply(params, images))
            return model.reconstruction(prediction, points_from), prediction.density

        self.run, self.params = run, params
        self.placed = {} if placed is None else placed
        self.programs: dict[Any, Any] = {}

    def compile(self, images: Any) -> None:
        """For images of this shape, so that what follows takes the time of running alone."""
        key = self._key(images)
        if key not in self.programs:
            self.programs[key] = self.run.lower(self._params_for(images), images).compile()

    def __call__(self, images: Any) -> tuple[Reconstruction, Array | None]:
        program = self.programs.get(self._key(images))
        return (program or self.run)(self._params_for(images), images)

    def _params_for(self, images: Any) -> Any:
        """Sent to the devices once, and not with every batch."""
        sharding = getattr(images, "sharding", None)
        if not isinstance(sharding, NamedSharding):
            return self.params
        if sharding.mesh not in self.placed:
            whole = NamedSharding(sharding.mesh, PartitionSpec())
            self.placed[sharding.mesh] = jax.device_put(self.params, whole)
        return self.placed[sharding.mesh]

    @staticmethod
    def _key(images: Any) -> Any:
        return images.shape, images.dtype, getattr(images, "sharding", None)


def predictor(
    model: Model,
    params: Mapping[str, Any],
    points_from: str | None = None,
    placed: dict[Any, Any] | None = None,
) -> Predict:
    return Predictor(model, params, points_from, placed)


class Scene(NamedTuple):
    """A scene as the model sees it: u8[F, H, W, 3], and what is true of these pixels. photographs: the names
    of their files, [] of what has none.
    """

    pixels: np.ndarray
    truth: Reference
    photographs: list[str]


class LeftOut(NamedTuple):
    """A scene that could not be measured: its number in the data set, its name, and why."""

    number: int
    scene: str
    reason: str


@dataclasses.dataclass
class Result:
    """Of one predictor. scenes: their names. pairs: f64[2, pairs] of each, and their baselines f64[pairs];
    metrics: of each scene; density: f64[layers] of each, none if dense. seconds: that predicting each took,
    without compiling where the predictor is a `Predictor`. left_out, photographs (see `Scene`), resolution
    ("WIDTHxHEIGHT" that the model sees): the same of every predictor.
    """

    scenes: list[str] = dataclasses.field(default_factory=list)
    pairs: list[np.ndarray] = dataclasses.field(default_factory=list)
    baselines: list[np.ndarray] = dataclasses.field(default_factory=list)
    metrics: list[dict[str, float]] = dataclasses.field(default_factory=list)
    density: list[np.ndarray] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)
    left_out: list[LeftOut] = dataclasses.field(default_factory=list)
    photographs: list[list[str]] = dataclasses.field(default_factory=list)
    resolution: list[str] = dataclasses.field(default_factory=list)

    @property
    def seen(self) -> int:
        """How many scenes were measured or left out."""
        return len(self.scenes) + len(self.left_out)

    def extend(self, other: Result) -> None:
        """By what the same predictor has given on other scenes."""
        for field in dataclasses.fields(self):
            getattr(self, field.name).extend(getattr(other, field.name))

    def names(self) -> list[str]:
        """Of the metrics that some scene has."""
        return list(dict.fromkeys(name for scene in self.metrics for name in scene))

    def summary(self, mean_over: str = PAIRS) -> dict[str, float]:
        """Over all scenes that have the metric, by the names of `measures.DEFINITIONS`; mean_over: see
        `datasets.base.Field`, CATEGORIES being of the first parts of scenes' names, "apple/...".
        """
        density = float(np.mean(self.density)) if self.density else 1.0
        found = {"effective sparsity": 1 - density} | {name: self._mean(name) for name in self.names()}
        if mean_over == CATEGORIES:
            of: dict[str, list[np.ndarray]] = {}
            for scene, pairs in zip(self.scenes, self.pairs, strict=True):
                of.setdefault(scene.split("/")[0], []).append(pairs)
            each = [of_pairs(both) for one in of.values() if (both := np.concatenate(one, 1)).size]
            found |= {name: float(np.mean([one[name] for one in each])) for name in (each or [{}])[0]}
        elif mean_over == PAIRS and (both := np.concatenate(self.pairs, 1)).size:
            found |= of_pairs(both)
        return found

    def _mean(self, name: str) -> float:
        """Over the scenes that have it; of a video's depth each counts by its valid pixels."""
        scenes = [scene for scene in self.metrics if name in scene]
        weights = [scene[WEIGHT] for scene in scenes] if name in WEIGHTED else None
        return float(np.average([scene[name] for scene in scenes], weights=weights))

    def by_baseline(self) -> list[dict[str, float | None]]:
        """The metrics of pairs between each two of BASELINES, where there are some; "to" is None at the end,
        "share" a percentage.
        """
        pairs, baselines = np.concatenate(self.pairs, 1), np.concatenate(self.baselines)
        found: list[dict[str, float | None]] = []
        for low, high in itertools.pairwise(BASELINES):
            chosen = (low <= baselines) & (baselines < high)
            if chosen.any():
                end, share = None if np.isinf(high) else high, 100 * float(chosen.mean())
                found.append({"from": low, "to": end, "share": share, **of_pairs(pairs[:, chosen])})
        return found

    def report(self, mean_over: str = PAIRS) -> dict[str, Any]:
        """The summary, and what it is made of: pairs by their baseline, the density of each layer, seconds,
        and every scene's metrics, None where one has no such truth.
        """
        layers = [round(float(d), 4) for d in np.mean(self.density, 0)] if self.density else None
        rounded = lambda value: None if value is None else round(value, 4)
        return {
            "summary": self.summary(mean_over),
            "baselines": self.by_baseline(),
            "density": layers,
            "seconds": [round(second, 4) for second in self.seconds],
            "scenes": {name: [rounded(scene.get(name)) for scene in self.metrics] for name in self.names()},
        }


def whole_batch(count: int, at_most: int, devices: int | None = None) -> int:
    """How many scenes at a time: on one device the largest number of which `count` is a multiple, so that
    nothing is compiled for a rest; on several, by default all, a multiple of them. Raises InputError.
    """
    if at_most < 1:
        raise InputError(f"batch must be at least 1, not {at_most}", argument="batch")
    devices = jax.local_device_count() if devices is None else devices
    if 1 < devices <= at_most:
        return min(at_most // devices, -(-count // devices)) * devices
    return next((n for n in range(min(at_most, count), 0, -1) if count % n == 0), 1)


def check_size(dataset: Dataset, policy: ImagePolicy) -> None:
    """Raises InputError if the data set is to be seen at a size that the model cannot take."""
    if policy.mode not in ("area", "wide") and dataset.size is not None:
        check_sides(policy.patch, size=dataset.size)


def sized_images(dataset: Dataset, images: Any, policy: ImagePolicy) -> Images:
    """The photographs of a scene as a model wants them; pixels that are that already stay the same."""
    return load_images(images, policy, size=dataset.size)


def evaluate(
    predictors: Mapping[str, Predict],
    policy: ImagePolicy,
    dataset: Dataset,
    *,
    batch: int = 8,
    advance: Callable[[int], object] = lambda scenes: None,
    together: bool = False,
    journal: Journal | None = None,
    rules: Rules | None = None,
) -> dict[str, Result]:
    """Every predictor on every scene, sized by the policy or by the protocol; calls `advance` with a number
    of scenes whenever one predictor has been measured on so many. Interrupted (KeyboardInterrupt), it returns
    what the batches before have given, if there are some.

    batch: scenes at a time, at most; of these, those of one size in pixels are predicted at once.
    rules: what is measured, by default `rules_for` the data set.
    together: predictors are compiled at the same time, in threads, see `pallas_kernels.compiles_in_threads`;
    each runs once more for it.
    journal: what was found is written to it batch by batch, and what it holds is not measured again, but for
    the scenes that were left out: they may have been mended.

    A scene that cannot be measured (SceneError, photographs that cannot be read) is left out. Raises
    FailedError if a prediction is not finite, InputError for what cannot be measured, also if no scene can
    be, and what the data set raises.
    """
    if len(dataset) == 0:
        raise InputError(f"the data set {dataset.name} has no scenes to measure", argument="dataset")
    rules = rules_for(dataset) if rules is None else rules
    policy = rules.policy(policy)
    check_size(dataset, policy)
    batch = whole_batch(len(dataset), batch)
    results = {name: Result() for name in predictors}
    with ThreadPoolExecutor() as threads:  # numpy, scipy and XLA's compiler mostly work outside the GIL
        compiled = not together
        for start in range(0, len(dataset), batch):
            found = {name: Result() for name in predictors}
            numbers: Sequence[int] = range(start, min(start + batch, len(dataset)))
            before = {} if journal is None else journal.batches.get(start, {})
            for name, result in before.items():
                numbers = [one.number for one in result.left_out]
                found[name].extend(dataclasses.replace(result, left_out=[]))
                advance(len(result.scenes))
            try:
                loaded = _batches(dataset, numbers, policy, threads, rules)
                for one in next(loaded):
                    for result in found.values():
                        result.left_out.append(one)
                        advance(1)
                for scenes in loaded:
                    if not compiled:
                        _compile(predictors, scenes, threads)
                        compiled = True
                    _measure(predictors, scenes, found, threads, advance)
            except KeyboardInterrupt:
                if start == 0:
                    raise
                break
            measured = lambda of: [result.scenes for result in of.values()]
            if journal is not None and measured(found) != measured(before):
                journal.add(start, found)
            for name, result in found.items():
                results[name].extend(result)
    whole = next(iter(results.values()), Result())
    if whole.left_out and not whole.scenes:
        _, name, why = whole.left_out[0]
        text = f"none of the {len(whole.left_out)} scenes of {dataset.name} can be measured"
        raise InputError(f"{text}; the first, {name}: {why}", argument="dataset")
    return results


def _batches(
    dataset: Dataset, numbers: Sequence[int], policy: ImagePolicy, threads: Executor, rules: Rules
) -> Iterator[list[Any]]:
    """Those of these scenes that cannot be measured; then the others, those whose pixels have one shape
    together.
    """

    def load(number: int) -> Scene | LeftOut:
        name = f"scene {number}"
        try:
            sample = dataset[number]
            name = sample.name
            images = sized_images(dataset, sample.images, policy)
            truth = Reference(sample, images.transforms, rules.wanted, rules.field, rules.order)
            return Scene(images.pixels, truth, list(images.names) if any(images.paths) else [])
        except SceneError as error:
            return LeftOut(number, error.scene, error.text)
        except (ImageError, MissingError) as error:
            return LeftOut(number, name, error.text)

    # One before the others: what a data set compiles is compiled once.
    scenes = [*map(load, numbers[:1]), *threads.map(load, numbers[1:])]
    yield [one for one in scenes if not isinstance(one, Scene)]
    by_shape: dict[tuple[int, ...], list[Scene]] = {}
    for scene in scenes:
        if isinstance(scene, Scene):
            by_shape.setdefault(scene.pixels.shape, []).append(scene)
    yield from by_shape.values()


def _compile(predictors: Mapping[str, Predict], scenes: list[Scene], threads: Executor) -> None:
    images = _on_devices(scenes)

    def once(predict: Predict) -> None:
        if isinstance(predict, Predictor):
            predict.compile(images)
        else:
            jax.block_until_ready(predict(images))

    list(threads.map(once, predictors.values()))


def _on_devices(scenes: list[Scene]) -> Array:
    """u8[B, F, H, W, 3], spread over all devices. Some stand there once more where they do not come out
    even: what is predicted of these is not used, but their density counts again.
    """
    images = np.stack([scene.pixels for scene in scenes])
    count = jax.local_device_count()
    if count == 1 or len(images) == 1:
        return jax.device_put(images)
    images = images[np.arange(-(-len(images) // count) * count) % len(images)]
    own = jax.local_devices()
    mesh = jax.make_mesh((count,), (SCENES,), axis_types=(AxisType.Explicit,), devices=own)
    return jax.device_put(images, NamedSharding(mesh, PartitionSpec(SCENES)))


def _timed(predict: Predict, images: Array) -> tuple[tuple[Reconstruction, Any], float]:
    """What it says, in numpy, and the seconds that it took, without compiling where that can be told."""
    if isinstance(predict, Predictor):
        predict.compile(images)
    start = time.perf_counter()
    found = jax.block_until_ready(predict(images))
    seconds = time.perf_counter() - start  # not those of bringing it here
    return jax.device_get(found), seconds


def _measure(
    predictors: Mapping[str, Predict],
    scenes: list[Scene],
    results: Mapping[str, Result],
    threads: Executor,
    advance: Callable[[int], object],
) -> None:
    """Adds to the results what every predictor says of scenes of one shape."""
    images = _on_devices(scenes)
    truths = [scene.truth for scene in scenes]
    for result in results.values():
        result.photographs += [scene.photographs for scene in scenes]
        result.resolution += ["{1}x{0}".format(*scene.pixels.shape[1:3]) for scene in scenes]
    waiting: Callable[[], None] = lambda: None
    for name, predict in predictors.items():
        (found, density), seconds = _timed(predict, images)
        waiting()  # the one before was measured while the device predicted
        each = [jax.tree.map(lambda x, b=b: x[b], found) for b in range(len(scenes))]
        for one, truth in zip(each, truths, strict=True):
            if not all(np.isfinite(x).all() for x in jax.tree.leaves(one)):
                text = f"the model's cameras or points of {truth.name} are not finite: damaged weights?"
                raise FailedError(f"{name}: {text}")
        measured = [threads.submit(measure, one, truth) for one, truth in zip(each, truths, strict=True)]
        waiting = partial(_collect, results[name], truths, measured, density, seconds, advance)
    waiting()


def _collect(
    result: Result,
    truths: list[Reference],
    measured: list[Future],
    density: Any,
    seconds: float,
    advance: Callable[[int], object],
) -> None:
    for truth, one in zip(truths, measured, strict=True):
        pairs, values = one.result()
        result.scenes.append(truth.name)
        result.pairs.append(pairs)
        result.baselines.append(truth.baselines)
        result.metrics.append(values)
        result.seconds.append(seconds / len(truths))
    if density is not None:
        # Of every scene: batches whose photographs differ in shape are predicted in parts.
        result.density += [np.asarray(density, np.float64)] * len(truths)
    advance(len(truths))
