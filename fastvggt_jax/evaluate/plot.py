"""Configurations as a picture: quality against effective sparsity and against time. Needs matplotlib (extra
`plot`).
"""

from __future__ import annotations

import importlib.util
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

from fastvggt_jax.errors import ExtraError, InputError
from fastvggt_jax.evaluate.ablations import DENSE
from fastvggt_jax.io.files import write_file

PANELS = {
    "AUC@30": "AUC@30, % (higher is better)",
    "AbsRel": "depth AbsRel (lower is better)",
    "point error": "point error, % (lower is better)",
    "rank correlation": "rank correlation of depth (higher is better)",
    "normalised ATE": "ATE, without unit (lower is better)",
    "trajectory ATE": "ATE, in the data set's unit (lower is better)",
    "point clouds": "Chamfer distance, in the data set's unit (lower is better)",
    "AbsRel, scale": "video depth AbsRel (lower is better)",
}
SPARSITY, SECONDS = "effective sparsity, %", "seconds a scene"


def require_matplotlib() -> None:
    """Raises ExtraError, naming the extra, if matplotlib is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ExtraError("plotting needs matplotlib: pip install 'fastvggt_jax[plot]'")


def measured_panels(rows: Sequence[Mapping]) -> dict[str, str]:
    """Those of PANELS that all rows of evaluation.json have numbers for."""
    known = lambda metric: all(row["summary"].get(metric) is not None for row in rows)
    return {metric: label for metric, label in PANELS.items() if known(metric)}


def write_plot(rows: Sequence[Mapping], title: str, path: str | os.PathLike) -> None:
    """Writes a PNG with a panel for each of PANELS that was measured and a line for each family; dense, where
    it was run, is a horizontal one. Below, the same against the time that a scene takes, where that is known
    of more than one configuration.

    rows: with "family", "summary" and "seconds", as in evaluation.json. Raises ExtraError without matplotlib,
      InputError if none of PANELS was measured, FileError if writing fails.
    """
    require_matplotlib()
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    panels = measured_panels(rows)
    if not panels:
        raise InputError(
            f"there is nothing to plot: none of {', '.join(PANELS)} was measured", argument="rows"
        )
    timed = len(rows) > 1 and all(row.get("seconds") for row in rows)
    kinds = (SPARSITY, SECONDS) if timed else (SPARSITY,)
    figure = Figure(figsize=(5 * max(2, len(panels)), 0.7 + 4.5 * len(kinds)), layout="constrained")
    families: dict[str, list[Mapping]] = {}
    for row in rows:
        families.setdefault(row["family"], []).append(row)
    grid = figure.subplots(len(kinds), len(panels), squeeze=False)
    for kind, line in zip(kinds, grid, strict=True):
        for axes, (metric, label) in zip(line, panels.items(), strict=True):
            _draw(axes, families, metric, kind)
            axes.set(xlabel=kind, ylabel=label, xlim=(0, None))
            axes.grid(alpha=0.3)
    figure.suptitle(title)
    handles = grid[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=6, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    write_file(path, buffer.getbuffer())


def _draw(axes: Any, families: Mapping[str, list[Mapping]], metric: str, kind: str) -> None:
    for number, (family, members) in enumerate(families.items()):
        style: dict[str, Any] = dict(color=f"C{number % 10}", marker="osDv^<>Px*"[number % 10], markersize=5)
        if family == DENSE and kind == SPARSITY:
            axes.axhline(members[0]["summary"][metric], color="black", linestyle="--", label=DENSE)
            continue
        if family == DENSE:
            style = dict(color="black", marker="x", markersize=7, linestyle="")
        points = sorted((_across(row, kind), row["summary"][metric]) for row in members)
        axes.plot([x for x, _ in points], [y for _, y in points], label=family, **style)


def _across(row: Mapping, kind: str) -> float:
    if kind == SPARSITY:
        return 100 * row["summary"]["effective sparsity"]
    return sum(row["seconds"]) / len(row["seconds"])
