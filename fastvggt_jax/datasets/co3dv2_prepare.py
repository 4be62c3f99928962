"""CO3Dv2's released annotations of a category as the one file that its evaluations read.

What VGGT's and RayDiffusion's preprocess_co3d.py keep: the frames of `set_lists/set_lists_fewview_dev.json`,
in its order, of sequences whose `viewpoint_quality_score` is above 0.5.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastvggt_jax.datasets.base import Options
from fastvggt_jax.datasets.co3dv2 import SEEN, UNSEEN
from fastvggt_jax.datasets.files import need, root_of, there
from fastvggt_jax.errors import SceneError
from fastvggt_jax.io.files import write_file

FRAMES, SEQUENCES = "frame_annotations.jgz", "sequence_annotations.jgz"
LISTS, SUBSET = "set_lists/set_lists_fewview_dev.json", "test"
QUALITY = 0.5
KEPT = ("R", "T", "focal_length", "principal_point")


def prepare(
    root: Path, output: Path, say: Callable[[str], object] = lambda text: None
) -> list[tuple[str, str]]:
    """Writes `output`/CATEGORY_test.jgz of every category in `root`; those that are there already stay. Calls
    `say` with a line for each.

    Returns (category, reason) of those that could not be made. Raises MissingError if there is none,
    FileError.
    """
    root = root_of(Options(root=root), "co3dv2")
    categories = sorted(SEEN + UNSEEN)
    there(root, categories, "set_lists")
    failed = []
    for category in categories:
        target = output / f"{category}_{SUBSET}.jgz"
        if target.is_file() or not (root / category / "set_lists").is_dir():
            continue
        try:
            kept = _kept(root / category, category)
            write_file(target, gzip.compress(json.dumps(kept).encode()))
            say(f"{category}: {len(kept)} sequences")
        except SceneError as error:
            failed.append((category, error.text))
    return failed


def _kept(folder: Path, category: str) -> dict[str, list[dict[str, Any]]]:
    need(category, [folder / FRAMES, folder / SEQUENCES, folder / LISTS])
    try:
        good = {
            one["sequence_name"]
            for one in _read(folder / SEQUENCES)
            if one["viewpoint_quality_score"] > QUALITY
        }
        cameras = {
            (one["sequence_name"], one["frame_number"]): one["viewpoint"]
            for one in _read(folder / FRAMES)
            if one["sequence_name"] in good
        }
        found: dict[str, list[dict[str, Any]]] = {}
        for sequence, number, path in json.loads((folder / LISTS).read_text(encoding="utf-8"))[SUBSET]:
            if sequence in good:
                camera = cameras[sequence, number]
                found.setdefault(sequence, []).append(
                    {"filepath": path} | {name: camera[name] for name in KEPT}
                )
        return found
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        text = f"{folder} is damaged, or no category of CO3Dv2 ({type(error).__name__}: {error})"
        raise SceneError(text, scene=category) from error


def _read(path: Path) -> Any:
    with gzip.open(path) as file:
        return json.load(file)
