"""One evaluation: a model on a data set, measured, and its report written into a folder; the same goes on
where one was ended.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fastvggt_jax.datasets.base import Dataset, load_dataset
from fastvggt_jax.errors import Error, ImageError, MissingError, SceneError, TargetError
from fastvggt_jax.evaluate.ablations import Configuration, ablations
from fastvggt_jax.evaluate.gallery import write_gallery
from fastvggt_jax.evaluate.journal import Journal
from fastvggt_jax.evaluate.plot import measured_panels, write_plot
from fastvggt_jax.evaluate.protocols import Rules, rules_for
from fastvggt_jax.evaluate.report import encode, report
from fastvggt_jax.evaluate.runner import Result, check_size, evaluate, predictor, sized_images, whole_batch
from fastvggt_jax.evaluate.suite import Table
from fastvggt_jax.io.files import check_output_folder, output_folder, write_file
from fastvggt_jax.io.json_files import read_json
from fastvggt_jax.models.base import Model
from fastvggt_jax.sources import ImagePolicy
from pallas_kernels import compiles_in_threads

REPORT, MEASURED = "evaluation.json", "measured.jsonl"  # MEASURED: the journal, where scenes were left out
OURS = (REPORT, MEASURED, "quality.png", "gallery.png")  # what --overwrite may replace
# Given how many scenes are to be measured, by all configurations together, a context of what counts them.
Progress = Callable[[int], contextlib.AbstractContextManager[Callable[[int], None]]]


class Task(NamedTuple):
    """A data set, how it is measured, and where its report goes."""

    data: Dataset
    rules: Rules
    output: Path | None
    options: dict[str, Any]


class Setup(NamedTuple):
    """What is the same for all data sets.

    weights: as they were asked for, and the file. version: of this package. say: called with what the user
      should know meanwhile. placed: see `runner.predictor`.
    """

    model: Model
    params: Any
    weights: str
    file: Path
    version: str
    block: tuple[int, int]
    by_hand: list[Configuration]
    ablations: bool
    family: list[str] | None
    batch: int
    points_from: str | None
    plot: bool
    gallery: bool
    overwrite: bool
    progress: Progress
    say: Callable[[str], None]
    placed: dict[Any, Any]


def task_of(table: Table, output: Path | None) -> Task:
    data = load_dataset(table.dataset, table.options)
    chosen = dataclasses.asdict(table.options)
    chosen |= {name: str(os.path.abspath(chosen[name])) for name in ("root", "frames") if chosen[name]}
    return Task(data, rules_for(data, table.options.protocol), output, chosen)


def carry_out(setup: Setup, task: Task, *, goes_on: bool) -> tuple[dict[str, Any], bool]:
    """The report of one data set, and whether it is of all scenes. goes_on: what is written already, and is
    of the same evaluation and whole, is taken.
    """
    data, rules, output, model = task.data, task.rules, task.output, setup.model
    batch = whole_batch(len(data), setup.batch)
    check_size(data, rules.policy(model.image_policy))
    runs = []
    if setup.ablations or setup.family:
        runs = ablations_of(model, data, setup.block, setup.family, rules)
    runs = list({run.label: run for run in (*runs, *setup.by_hand)}.values())
    known = data.describe()
    known.pop("frame_list", None)
    frames = known.pop("frames", {})  # of a scene that is mended there may be others
    described = _describe(setup.weights, model, setup.points_from)
    described["image_policy"] = rules.policy(model.image_policy)._asdict()
    of = {
        "model": described,
        "weights": _version_of(setup.file),
        "dataset": {"name": data.name, **known, "scenes": len(data)},
        "options": task.options,
        "protocol": rules.describe(),
        "configurations": [repr(run) for run in runs],
        "batch": batch,
        "version": setup.version,
    }
    before = None
    if output is not None and not setup.overwrite:
        before = _to_go_on_with(output, _digest(of), frames, len(data), whole=goes_on)
        if before is not None and not is_open(before, len(data)):
            return before, True
    replace = setup.overwrite or before is not None
    with contextlib.ExitStack() as stack:
        journal = None
        if output is not None:
            check_output_folder(output, overwrite=replace, ours=OURS)
            if before is not None and (output / MEASURED).is_file() and not _so_far(output).exists():
                write_file(_so_far(output), (output / MEASURED).read_bytes())
            journal = stack.enter_context(Journal(_so_far(output), of, frames, overwrite=setup.overwrite))
            done = sum(len(next(iter(b.values())).scenes) for b in journal.batches.values())
            if done:
                setup.say(f"{done} scenes were measured before, and stand in {journal.path}")
        results = _measure(setup, runs, data, batch, journal, rules)
        found = report(
            described,
            data,
            runs,
            results,
            batch=batch,
            block=setup.block,
            version=setup.version,
            rules=rules,
            options=task.options,
        )
        found["of"] = _digest(of)
        whole = seen(found) == len(data)
        if before is not None and whole and json.loads(encode(found))["dataset"] == before["dataset"]:
            assert journal is not None
            journal.remove()  # of what was left out, nothing is mended
            return before, True
        if output is not None:
            with output_folder(output, overwrite=replace, ours=OURS) as folder:
                write_file(folder / REPORT, encode(found))
                if found["dataset"].get("left_out"):
                    write_file(folder / MEASURED, _so_far(output).read_bytes())
                _draw(setup, task, runs, found, folder)
        if journal is not None and whole:
            journal.remove()
    return found, whole


def report_in(output: Path) -> dict[str, Any] | None:
    """The report that lies there, an empty one of what is none; None without such a file. FileError."""
    if not (output / REPORT).is_file():
        return None
    found = read_json(output / REPORT)
    try:
        seen(found)
        return found
    except (KeyError, TypeError, AttributeError):
        return {}


def is_open(found: dict[str, Any], scenes: int) -> bool:
    """Whether it is a report that lacks scenes, or leaves some out."""
    return bool(found) and (seen(found) < scenes or "left_out" in found["dataset"])


def _to_go_on_with(
    output: Path, of: str, frames: dict[str, Any], scenes: int, *, whole: bool
) -> dict[str, Any] | None:
    """The report that lies there and lacks scenes or leaves some out, or, where a whole one is wanted too,
    any. Raises TargetError if it is of another evaluation.

    of: the digest of all that its numbers depend on, but for the photographs, which are by scene in `frames`.
    """
    found = report_in(output)
    if found is None or not (whole or is_open(found, scenes)):
        return None
    if found.get("of") != of or not (is_open(found, scenes) or found["dataset"].get("frames", {}) == frames):
        text = f"{output / REPORT} is of another evaluation; delete it, give another output, or overwrite it"
        raise TargetError(text, argument="overwrite")
    return found


def _digest(of: dict[str, Any]) -> str:
    """By which an evaluation is known again. It names no folder of the user's."""
    return hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:16]


def seen(found: dict[str, Any]) -> int:
    """How many scenes a report has measured or left out."""
    return len(found["dataset"]["scenes"]) + len(found["dataset"].get("left_out", []))


def _draw(setup: Setup, task: Task, runs: list[Configuration], found: dict[str, Any], folder: Path) -> None:
    """quality.png and gallery.png, as far as they are wanted."""
    rows, measured = found["configurations"], len(found["dataset"]["scenes"])
    title = f"{Path(setup.weights).stem}: {measured} scene{'s' * (measured != 1)} of {task.data.name}"
    if setup.plot and not measured_panels(rows):
        setup.say("nothing of what quality.png shows was measured: it is not written")
    elif setup.plot:
        write_plot(rows, title, folder / "quality.png")
    if setup.gallery:
        model = setup.model.clone(sparsity=runs[0].sparsity)
        predict = predictor(model, setup.params, setup.points_from)
        write_gallery(
            predict, model.image_policy, task.data, task.rules, found, title, folder / "gallery.png"
        )


def ablations_of(
    model: Model,
    data: Dataset,
    block: tuple[int, int],
    family: list[str] | None,
    rules: Rules | None = None,
) -> list[Configuration]:
    policy = model.image_policy if rules is None else rules.policy(model.image_policy)
    frames, height, width, _ = _first_shape(data, policy)
    return ablations(model.depth, block, frames * height * width // policy.patch**2, family)


def _first_shape(data: Dataset, policy: ImagePolicy) -> tuple[int, ...]:
    """[F, H, W, 3] of the first scene that can be read; where none can, the error of the first."""
    errors: list[Error] = []
    for number in range(len(data)):
        try:
            return sized_images(data, data[number].images, policy).pixels.shape
        except (SceneError, ImageError, MissingError) as error:
            errors.append(error)
    raise errors[0]


def _measure(
    setup: Setup,
    runs: list[Configuration],
    data: Dataset,
    batch: int,
    journal: Journal | None,
    rules: Rules,
) -> dict[str, Result]:
    model = setup.model
    predictors = {
        run.label: predictor(
            model.clone(sparsity=run.sparsity), setup.params, setup.points_from, setup.placed
        )
        for run in runs
    }
    with setup.progress(len(runs) * len(data)) as advance:
        return evaluate(
            predictors,
            model.image_policy,
            data,
            batch=batch,
            advance=advance,
            # Only where compiling takes longer than running.
            together=jax.default_backend() == "gpu" and compiles_in_threads(model.dtype),
            journal=journal,
            rules=rules,
        )


def _so_far(output: Path) -> Path:
    """Where the numbers stand until the folder appears."""
    return Path(f"{os.path.abspath(output)}.so-far.jsonl")


def _version_of(file: Path) -> list[int]:
    """Of weights: another file under the same name is another model."""
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


def _describe(weights: str, model: Model, points_from: str | None) -> dict[str, Any]:
    return {
        "file": Path(weights).name,
        "class": type(model).__name__,
        "dtype": jnp.dtype(model.dtype).name,
        "float8_scores": model.float8_scores,
        "points_from": points_from or model.point_sources[0],
    }
