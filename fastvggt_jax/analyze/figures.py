"""What `attention` has measured, as pictures. Needs matplotlib (extra `plot`)."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastvggt_jax.analyze.attention import Observed
from fastvggt_jax.analyze.dropped import Change
from fastvggt_jax.io.files import write_file

SHOWN = 4  # layers, and heads, in a picture; evenly chosen
FRAMES = 8  # photographs in a row, at most
FIGURES = ("layers.png", "maps.png", "matches.png", "kept.png", "dropped.png", "runtime.png")


def write_figures(
    observed: Observed,
    images: np.ndarray,
    patch: tuple[int, int, int],
    changes: Sequence[Change],
    runtime: Sequence[Mapping[str, Any]],
    folder: str | os.PathLike,
) -> list[str]:
    """Write those of FIGURES that there is something for; returns their names. images: u8[F, H, W, 3]. Raises
    FileError.
    """
    makers: dict[str, Callable[[Any], None] | None] = {
        "layers.png": lambda figure: _layers(figure, observed),
        "maps.png": lambda figure: _maps(figure, observed),
        "matches.png": lambda figure: _matches(figure, observed, images, patch),
        "kept.png": None if observed.kept is None else lambda figure: _kept(figure, observed, images, patch),
        "dropped.png": (lambda figure: _dropped(figure, changes)) if changes else None,
        "runtime.png": (lambda figure: _runtime(figure, runtime)) if runtime else None,
    }
    written = []
    for name, make in makers.items():
        if make is not None:
            write_file(Path(folder) / name, _png(make))
            written.append(name)
    return written


def _png(make: Callable[[Any], None]) -> bytes:
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    figure = Figure(layout="constrained")
    make(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _some(count: int, most: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()


def _layers(figure: Any, observed: Observed) -> None:
    figure.set_size_inches(11, 4)
    left, right = figure.subplots(1, 2)
    for name, numbers in observed.pairs().items():
        left.semilogy(observed.layers, numbers["mean"], marker="o", label=name)
        right.plot(observed.layers, numbers["maximum"], marker="o", label=name)
    left.set(title="mean probability of a pair", xlabel="global layer")
    right.set(title="largest probability", xlabel="global layer", ylim=(0, 1.02))
    left.legend()


def _maps(figure: Any, observed: Observed) -> None:
    from matplotlib.colors import LogNorm

    layers, heads = _some(len(observed.layers), SHOWN), _some(observed.mean.shape[1], SHOWN - 1)
    figure.set_size_inches(3 * (1 + len(heads)), 3 * len(layers))
    frames = observed.groups.frames
    each = (observed.groups.count - frames) // frames
    axes = figure.subplots(len(layers), 1 + len(heads), squeeze=False)
    for row, layer in zip(axes, layers, strict=True):
        maps = [observed.mean[layer].mean(0), *observed.mean[layer][heads]]
        high = max(float(one.max()) for one in maps)
        norm = LogNorm(max(high * 1e-5, 1e-12), max(high, 1e-11), clip=True)
        titles = [f"layer {observed.layers[layer]}, all heads", *(f"head {head}" for head in heads)]
        for ax, one, title in zip(row, maps, titles, strict=True):
            ax.imshow(one, norm=norm, cmap="viridis", interpolation="nearest")
            for at in (frames, *(frames + each * k for k in range(1, frames))):
                style = dict(color="white", linewidth=1.2 if at == frames else 0.3)
                ax.axhline(at - 0.5, **style)
                ax.axvline(at - 0.5, **style)
            ax.set(title=title, xticks=[], yticks=[])
    figure.supxlabel("keys: special tokens of all frames, then each frame's patches")
    figure.supylabel("queries")


def _over_photographs(
    figure: Any,
    observed: Observed,
    images: np.ndarray,
    patch: tuple[int, int, int],
    values: np.ndarray,
    highest: Sequence[float],
) -> list[list[Any]]:
    """A row of photographs per shown layer with values f32[L, F, h, w] over them; the chosen patch in red."""
    from matplotlib.patches import Rectangle

    layers = _some(len(observed.layers), SHOWN)
    frames = _some(len(images), FRAMES)
    if patch[0] not in frames:
        frames[0] = patch[0]
    height, width = images.shape[1:3]
    h, w = observed.groups.grid
    figure.set_size_inches(2.2 * len(frames), 2.4 * len(layers) * max(height / width, 0.5))
    axes = figure.subplots(len(layers), len(frames), squeeze=False)
    for row, layer in zip(axes, layers, strict=True):
        for ax, frame in zip(row, frames, strict=True):
            grey = images[frame].mean(-1)
            ax.imshow(grey, cmap="gray", vmin=0, vmax=255)
            extent = (-0.5, width - 0.5, height - 0.5, -0.5)
            one = np.clip(values[layer, frame] / (highest[layer] or 1.0), 0, 1)
            ax.imshow(one, cmap="inferno", vmin=0, vmax=1, alpha=0.15 + 0.6 * one, extent=extent)
            if frame == patch[0]:
                corner = patch[2] * width / w - 0.5, patch[1] * height / h - 0.5
                box = Rectangle(corner, width / w, height / h, fill=False, edgecolor="red", linewidth=1.5)
                ax.add_patch(box)
            ax.set(xticks=[], yticks=[])
        row[0].set_ylabel(f"layer {observed.layers[layer]}")
    for ax, frame in zip(axes[0], frames, strict=True):
        ax.set_title(f"frame {frame}")
    return [list(row) for row in axes]


def _matches(figure: Any, observed: Observed, images: np.ndarray, patch: tuple[int, int, int]) -> None:
    """What the patch attends to, brightest where most, and circles about the strongest in other frames."""
    values = observed.groups.patches(observed.row.mean(1))  # [L, F, h, w]
    others = np.delete(values, patch[0], 1) if len(images) > 1 else values
    axes = _over_photographs(figure, observed, images, patch, values, others.max((1, 2, 3)))
    (h, w), (height, width) = observed.groups.grid, images.shape[1:3]
    shown = _some(len(images), FRAMES)
    if patch[0] not in shown:
        shown[0] = patch[0]
    matches = observed.matches(patch[0])
    for row, layer in zip(axes, _some(len(observed.layers), SHOWN), strict=True):
        for match in matches[layer]:
            if match["frame"] in shown:
                x, y = (match["x"] + 0.5) * width / w - 0.5, (match["y"] + 0.5) * height / h - 0.5
                row[shown.index(match["frame"])].plot(x, y, "o", mfc="none", mec="cyan", ms=9)


def _kept(figure: Any, observed: Observed, images: np.ndarray, patch: tuple[int, int, int]) -> None:
    assert observed.kept is not None
    values = observed.kept.mean(1, dtype=np.float32)  # the share of heads
    _over_photographs(figure, observed, images, patch, values, [1.0] * len(values))


def _dropped(figure: Any, changes: Sequence[Change]) -> None:
    """Points for layers alone, and level lines over the layers of a group that are changed together."""
    figure.set_size_inches(11, 4.6)
    left, right = figure.subplots(1, 2)
    lines: list[tuple[Any, str, str, float]] = [(right, "depth", "C2", 100)]
    if changes[0].rotation is not None:
        lines += [(left, "rotation", "C0", 1), (left, "direction", "C1", 1)]
    for ax, name, color, unit in lines:
        alone = [(one.layers[0], unit * getattr(one, name)) for one in changes if not one.group]
        ax.plot(*zip(*alone, strict=True), color=color, marker="o", label=f"{name}, one layer")
        for one in changes:
            if one.group:
                ends, height = (one.layers[0] - 0.4, one.layers[-1] + 0.4), unit * getattr(one, name)
                label = f"{name}, {len(one.layers)} layers" + " within frames" * one.within_frames
                style = (
                    dict(linestyle=":", linewidth=2) if one.within_frames else dict(linewidth=4, alpha=0.5)
                )
                ax.hlines(height, *ends, color=color, label=label if one.group == "first" else None, **style)
    left.set(title="change of the cameras, degrees")
    right.set(title="change of the depth, %")
    for ax in (left, right):
        ax.set(xlabel="global layer without its attention")
        ax.set_ylim(bottom=0)
        ax.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside lower center", ncols=len(lines), fontsize="small")


def _runtime(figure: Any, runtime: Sequence[Mapping[str, Any]]) -> None:
    figure.set_size_inches(7, 4)
    ax = figure.subplots()
    views = [str(row["views"]) for row in runtime]
    parts = list(dict.fromkeys(part for row in runtime for part in row["parts"]))
    parts.sort(key=lambda part: not part.startswith("global blocks"))
    bottom = np.zeros(len(runtime))
    for part in parts:
        share = np.array([row["parts"].get(part, 0.0) / (sum(row["parts"].values()) or 1) for row in runtime])
        if share.max() >= 0.01:
            ax.bar(views, 100 * share, bottom=bottom, label=part)
            bottom += 100 * share
    ax.set(xlabel="views", ylabel="share of the time of a run, %", ylim=(0, 100))
    figure.legend(loc="outside right", fontsize="small")
