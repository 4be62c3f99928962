"""What an evaluation has found: the report, which is evaluation.json, and the table on the terminal."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from fastvggt_jax.datasets.base import Dataset
from fastvggt_jax.evaluate.ablations import Configuration
from fastvggt_jax.evaluate.measures import DEFINITIONS
from fastvggt_jax.evaluate.protocols import Rules
from fastvggt_jax.evaluate.published import COMPARABLE, Published, as_published, published_for
from fastvggt_jax.evaluate.runner import Result
from fastvggt_jax.evaluate.suite import EVERY

MOST = 10  # scenes that are named, of those that are left out
Rows = Sequence[Mapping[str, Any]]
RARE = ("RRA@30", "RTA@30", "AUC@15")  # columns that are shown where published ones have them
LESS = ("rotation error",)  # and that are not, where anything is published
BLANK = str.maketrans("0123456789.,%", " " * 13)
COLUMNS = {  # of the table: name in a summary -> (heading, format)
    "effective sparsity": ("sparsity", "8.1%"),
    "rotation error": ("rot °", "7.2f"),
    "RRA@5": ("RRA@5", "6.1f"),
    "RTA@5": ("RTA@5", "6.1f"),
    "RRA@30": ("RRA@30", "6.1f"),
    "RTA@30": ("RTA@30", "6.1f"),
    "AUC@5": ("AUC@5", "6.1f"),
    "AUC@15": ("AUC@15", "6.1f"),
    "AUC@30": ("AUC@30", "6.1f"),
    "normalised ATE": ("ATE", "6.3f"),
    "trajectory ATE": ("ATE", "7.4f"),
    "RPE translation": ("RPE t", "7.4f"),
    "RPE rotation": ("RPE r °", "7.3f"),
    "Acc mean": ("Acc", "7.4f"),
    "Acc median": ("median", "7.4f"),
    "Comp mean": ("Comp", "7.4f"),
    "Comp median": ("median", "7.4f"),
    "NC mean": ("NC", "6.3f"),
    "NC median": ("median", "6.3f"),
    "point clouds": ("Chamfer", "7.4f"),
    "points AbsRel": ("points", "7.4f"),
    "points within 3 %": ("<3 %", "6.1f"),
    "z AbsRel": ("depth", "7.4f"),
    "z within 3 %": ("<3 %", "6.1f"),
    "rigid ATE": ("ATE", "7.4f"),
    "ray error": ("ray °", "6.2f"),
    "scale AbsRel": ("scale", "6.3f"),
    "AbsRel, scale": ("AbsRel", "7.4f"),
    "delta, scale": ("δ<1.25", "6.1f"),
    "AbsRel, scale&shift": ("AbsRel s&s", "10.4f"),
    "delta, scale&shift": ("δ<1.25 s&s", "10.1f"),
    "seconds": ("s/scene", "8.3f"),
    "ATE": ("ATE %", "6.2f"),
    "AbsRel": ("AbsRel", "7.4f"),
    "delta": ("δ<1.25", "6.1f"),
    "point error": ("point %", "7.2f"),
    "accuracy": ("acc %", "6.2f"),
    "completeness": ("comp %", "6.2f"),
    "Chamfer": ("Chamfer", "7.2f"),
    "normal consistency": ("NC", "5.3f"),
    "rank correlation": ("rank ρ", "6.3f"),
    "ranked pixels": ("pixels", "9,.0f"),
    "ranked share": ("of all %", "8.1f"),
}


def report(
    model: Mapping[str, Any],
    dataset: Dataset,
    runs: Sequence[Configuration],
    results: Mapping[str, Result],
    *,
    batch: int,
    block: tuple[int, int],
    version: str,
    rules: Rules,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """All that was found, as JSON values; None for numbers that are not finite.

    model: which it was. rules: how it was measured. results: by the labels of the runs. version: of
    this package. options: what was chosen of the data set, by the names of `Options`.
    """
    rows = [
        {"label": run.label, "family": run.family, "name": run.name}
        | results[run.label].report(rules.mean_over)
        for run in runs
    ]
    first = results[runs[0].label]
    left_out = [{"scene": one.scene, "reason": one.reason} for one in first.left_out]
    photographs = {scene: some for scene, some in zip(first.scenes, first.photographs, strict=False) if some}
    names = {"scene's size", "baselines", *(name for row in rows for name in row["summary"])}
    described = {"name": dataset.name, **dataset.describe(), "scenes": first.scenes, "batch": batch}
    described |= {"resolution": dict(Counter(first.resolution))}  # of how many scenes each is
    described |= {"photographs": photographs} if photographs else {}
    comparable = rules.protocol.published and as_published(dataset.name, options)
    published = published_of(dataset, rules) if comparable else []
    return {
        "format": "fastvggt_jax evaluation",
        "version": version,
        "model": dict(model),
        "protocol": rules.describe(),
        "dataset": described | ({"left_out": left_out} if left_out else {}),
        "block": list(block),
        "device": jax.devices()[0].device_kind,
        "devices": jax.local_device_count(),
        "definitions": {name: text for name, text in DEFINITIONS.items() if name in names},
        "configurations": _finite(rows),
        "published": [{"label": row.label, **row._asdict()} for row in published],
        "comparable": COMPARABLE.get(dataset.name) if comparable else None,
    }


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def published_of(dataset: Dataset, rules: Rules) -> list[Published]:
    """What papers say of this data set, measured in this way."""
    views = getattr(dataset, "views", None)
    options = {"protocol": rules.protocol.name} | (
        {} if views is None else {"views": views if views < EVERY else None}
    )
    return published_for(dataset.name, **options)


def comparison(found: Mapping[str, Any]) -> list[str]:
    """Lines that say which published rows ours can be compared with."""
    if not found["published"] and not found["comparable"]:
        return []
    lines = (
        ["Rows in brackets are published, on other devices, and were not measured here."]
        if found["published"]
        else []
    )
    return lines + [f"To be compared with: {found['comparable']}"] * bool(found["comparable"])


def encode(found: Mapping[str, Any]) -> bytes:
    """The report as evaluation.json holds it."""
    return json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False).encode()


def left_out_lines(dataset: Mapping[str, Any]) -> list[str]:
    """What to say of scenes that were not measured, from the "dataset" of a report."""
    some = dataset.get("left_out", [])
    if not some:
        return []
    counted = f"{len(some)} of {len(some) + len(dataset['scenes'])} scenes are left out"
    lines = [f"{counted}, and in no number:", *(f"  {one['scene']}: {one['reason']}" for one in some[:MOST])]
    return lines + ([f"  and {len(some) - MOST} more"] if len(some) > MOST else [])


def table(rows: Rows, published: Rows = ()) -> str:
    """A line for each configuration, a column for each of COLUMNS that was measured; then what is published,
    in brackets.
    """
    labels = [row["label"] for row in rows] + [f"[{row['label']}]" for row in published]
    width = max(map(len, labels))
    known = {name for row in published for name in row["values"]}
    ours = [row["summary"] | _seconds(row) for row in rows]
    columns = {
        name: column
        for name, column in COLUMNS.items()
        if name in ours[0] and (name not in RARE or name in known) and (name not in LESS or not known)
    }
    filled = [*ours, *(row["values"] for row in published)]
    cells = [[_cell(values.get(name), form) for name, (_, form) in columns.items()] for values in filled]
    heads = [heading.rjust(len(cell)) for (heading, _), cell in zip(columns.values(), cells[0], strict=True)]
    lines = [" " * width + "  " + "  ".join(heads)]
    lines += [f"{label:{width}}  " + "  ".join(values) for label, values in zip(labels, cells, strict=True)]
    return "\n".join(lines)


def _cell(value: float | None, form: str) -> str:
    return f"{0:{form}}".translate(BLANK) if value is None else f"{value:{form}}"


def _seconds(row: Mapping[str, Any]) -> dict[str, float]:
    """The mean over scenes; the first one's may have waited for the disk."""
    seconds = row.get("seconds") or []
    return {"seconds": sum(seconds) / len(seconds)} if seconds else {}


def baseline_table(rows: Rows) -> str:
    """AUC@30 of near and far pairs of views, a line for each configuration; empty where no cameras were
    measured.
    """
    bins = rows[0]["baselines"]  # the same scenes, so the same for all
    if not bins:
        return ""
    share = "% of pairs"
    width = max(len(label) for label in (share, *(row["label"] for row in rows)))
    heads = [f"{b['from']}-{b['to']}" if b["to"] else f"{b['from']}-" for b in bins]
    line = lambda label, cells: f"{label:{width}}  " + "  ".join(f"{cell:>6}" for cell in cells)
    lines = ["AUC@30 of pairs of views by their distance, in percent of the scene's size", line("", heads)]
    lines.append(line(share, [f"{b['share']:.1f}" for b in bins]))
    lines += [line(row["label"], [_cell(b["AUC@30"], "6.1f") for b in row["baselines"]]) for row in rows]
    return "\n".join(lines)
