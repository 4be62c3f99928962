"""The worst, the median and the best scene as a picture: what a model sees of them, and the depth that it
says. Needs matplotlib (extra `plot`).
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from fastvggt_jax.datasets.base import Dataset
from fastvggt_jax.evaluate.plot import require_matplotlib
from fastvggt_jax.evaluate.protocols import Rules
from fastvggt_jax.evaluate.runner import Predict, sized_images
from fastvggt_jax.io.files import write_file
from fastvggt_jax.sources import ImagePolicy

VIEWS = 6  # of a scene, at most
# By which scenes are ranked, the first that was measured, and whether more is better.
RANKED = {
    "AUC@30": True,
    "point clouds": False,
    "trajectory ATE": False,
    "AbsRel, scale": False,
    "AbsRel": False,
    "rank correlation": True,
}


def ranked(found: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """The metric, and the scenes that are "worst", "median" and "best" in it, of the first configuration of a
    report; fewer where there are fewer scenes.
    """
    scenes, names = found["configurations"][0]["scenes"], found["dataset"]["scenes"]
    known_of = lambda name: any(value is not None for value in scenes.get(name, ()))
    metric = next((name for name in RANKED if known_of(name)), None)
    if metric is None:
        return "", {"first": names[0]}
    known = [(value, name) for value, name in zip(scenes[metric], names, strict=True) if value is not None]
    known.sort(reverse=not RANKED[metric])
    places = {"worst": known[0], "median": known[len(known) // 2], "best": known[-1]}
    chosen = {place: name for place, (_, name) in places.items()}
    return metric, {place: name for place, name in chosen.items() if name not in _before(chosen, place)}


def _before(chosen: Mapping[str, str], place: str) -> list[str]:
    return list(chosen.values())[: list(chosen).index(place)]


def write_gallery(
    predict: Predict,
    policy: ImagePolicy,
    dataset: Dataset,
    rules: Rules,
    found: Mapping[str, Any],
    title: str,
    path: str | os.PathLike,
) -> None:
    """Writes a PNG with two rows for each of these scenes: photographs, and the depth of `predict`.

    found: the report. Raises ExtraError without matplotlib, FileError.
    """
    require_matplotlib()
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    metric, scenes = ranked(found)
    values = dict(
        zip(found["dataset"]["scenes"], found["configurations"][0]["scenes"].get(metric, ()), strict=False)
    )
    wanted = {name: place for place, name in scenes.items()}
    shown: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for number in range(len(dataset)):
        if len(shown) == len(wanted):
            break
        name = _name(dataset, number)
        if name is not None and name not in wanted:
            continue
        sample = dataset[number]
        if sample.name in wanted:
            pixels = sized_images(dataset, sample.images, rules.policy(policy)).pixels
            depth = np.asarray(jax.device_get(predict(pixels[None])[0].depth))[0]
            views = np.unique(np.linspace(0, len(pixels) - 1, min(VIEWS, len(pixels))).round().astype(int))
            shown[sample.name] = pixels[views], depth[views]
    columns = max(len(pixels) for pixels, _ in shown.values())
    figure = Figure(figsize=(2.2 * columns, 4 * len(shown)), layout="constrained")
    axes = figure.subplots(2 * len(shown), columns, squeeze=False)
    for one in axes.flat:
        one.set_axis_off()
    for row, (place, name) in enumerate(scenes.items()):
        pixels, depth = shown[name]
        low, high = np.percentile(depth, (2, 98))
        for column in range(len(pixels)):
            axes[2 * row, column].imshow(pixels[column])
            axes[2 * row + 1, column].imshow(depth[column], vmin=low, vmax=high, cmap="viridis")
        value = "" if values.get(name) is None else f", {metric} {values[name]:.4g}"
        axes[2 * row, 0].set_title(f"{place}: {name}{value}", loc="left", fontsize=9)
    figure.suptitle(f"{title}, {found['configurations'][0]['label']}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_file(path, buffer.getbuffer())


def _name(dataset: Dataset, number: int) -> str | None:
    """A scene's, where a data set says it without reading it."""
    scenes = getattr(dataset, "scenes", None)
    return scenes[number] if isinstance(scenes, tuple) else None
