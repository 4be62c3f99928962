"""The ablations as a picture: quality against effective sparsity. Needs matplotlib (extra `plot`)."""

from __future__ import annotations

import importlib.util
import io
import os
from collections.abc import Mapping, Sequence

from fastvggt_jax.errors import ExtraError, InputError
from fastvggt_jax.evaluate.ablations import DENSE
from fastvggt_jax.io.files import write_file

PANELS = {
    "AUC@30": "AUC@30, % (higher is better)",
    "AbsRel": "depth AbsRel (lower is better)",
    "point error": "point error, % (lower is better)",
    "rank correlation": "rank correlation of depth (higher is better)",
}


def require_matplotlib() -> None:
    """Raises ExtraError, naming the extra, if matplotlib is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ExtraError("plotting needs matplotlib: pip install 'fastvggt_jax[plot]'")


def measured_panels(rows: Sequence[Mapping]) -> dict[str, str]:
    """Those of PANELS that the rows of evaluation.json have numbers for."""
    return {metric: label for metric, label in PANELS.items() if metric in rows[0]["summary"]}


def write_plot(rows: Sequence[Mapping], title: str, path: str | os.PathLike) -> None:
    """Writes a PNG with a panel for each of PANELS that was measured and a line for each family; dense, where
    it was run, is a horizontal one.

    rows: with "family" and "summary", as in evaluation.json. Raises ExtraError without matplotlib, InputError
      if none of PANELS was measured, FileError if writing fails.
    """
    require_matplotlib()
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    panels = measured_panels(rows)
    if not panels:
        raise InputError(
            f"there is nothing to plot: none of {', '.join(PANELS)} was measured", argument="rows"
        )
    figure = Figure(figsize=(5 * max(2, len(panels)), 5.2), layout="constrained")
    families: dict[str, list[Mapping]] = {}
    for row in rows:
        families.setdefault(row["family"], []).append(row["summary"])
    for axes, (metric, label) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for number, (family, members) in enumerate(families.items()):
            if family == DENSE:
                axes.axhline(members[0][metric], color="black", linestyle="--", label=DENSE)
                continue
            members = sorted(members, key=lambda summary: summary["effective sparsity"])
            style = dict(color=f"C{number % 10}", marker="osDv^<>Px*"[number % 10], markersize=5)
            axes.plot(
                [100 * m["effective sparsity"] for m in members],
                [m[metric] for m in members],
                label=family,
                **style,
            )
        axes.set(xlabel="effective sparsity, %", ylabel=label, xlim=(0, None))
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    handles = axes.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=6, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    write_file(path, buffer.getbuffer())
