"""`fastvggt evaluate`: how good a model is on a data set whose truth is known, dense and sparse."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fastvggt_jax import __version__
from fastvggt_jax.cli.errors import INTERRUPTED, one_sentence, say
from fastvggt_jax.cli.options import (
    Block,
    CacheDir,
    Dtype,
    Float8Scores,
    Json,
    Overwrite,
    Quiet,
    Size,
    Sparsities,
    Weights,
    check_sparse,
    use_compilation_cache,
)
from fastvggt_jax.errors import (
    Error,
    ImageError,
    InputError,
    MissingError,
    SceneError,
    TargetError,
    printable,
)

if TYPE_CHECKING:
    from fastvggt_jax.datasets.base import Dataset
    from fastvggt_jax.evaluate.ablations import Configuration
    from fastvggt_jax.evaluate.journal import Journal
    from fastvggt_jax.evaluate.protocols import Rules
    from fastvggt_jax.evaluate.runner import Result
    from fastvggt_jax.evaluate.suite import Table
    from fastvggt_jax.models.base import Model
    from fastvggt_jax.sources import ImagePolicy

REPORT, MEASURED = "evaluation.json", "measured.jsonl"  # MEASURED: the journal, where scenes were left out
OURS = (REPORT, MEASURED, "quality.png", "gallery.png")  # what --overwrite may replace


@one_sentence(smaller="take fewer --views, a smaller --size or a smaller --batch")
def evaluate(
    dataset: Annotated[
        str,
        typer.Argument(
            help="A data set, such as synthetic, rendered scenes, or real, photographs with a cameras.json; "
            "a wrong name lists all. all: the paper's tables, of the data sets whose folders lie in --root."
        ),
    ],
    weights: Weights,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for evaluation.json and quality.png.")
    ] = None,
    scenes: Annotated[
        int | None, typer.Option(help="How many scenes. Default: the data set's own, 200 of synthetic.")
    ] = None,
    first: Annotated[int | None, typer.Option(help="Number of the first one.")] = None,
    views: Annotated[
        int | None, typer.Option(help="Views of each scene. Default: the data set's own, 8 of synthetic.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Of the photographs of a scene every so manieth.")
    ] = None,
    frames: Annotated[
        Path | None,
        typer.Option(
            help="A JSON file of {scene: [numbers of its photographs]}, as π³'s evaluation has them."
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="How it is measured: pi3-2025-08, the default where papers measure on the data set, ours, "
            "or another; a wrong name lists all."
        ),
    ] = None,
    size: Size = None,
    root: Annotated[
        Path | None, typer.Option(help="Folder of the data set's files, where it does not bring them along.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Scenes at a time, at most.")] = 8,
    sparsity: Sparsities = None,
    ablations: Annotated[
        bool,
        typer.Option("--ablations", help="All of the method's ablations and its baseline of random blocks."),
    ] = False,
    family: Annotated[
        list[str] | None,
        typer.Option(
            help="Of the ablations these only, such as 'random blocks'; may be given several times."
        ),
    ] = None,
    block: Block = None,
    float8_scores: Float8Scores = False,
    dtype: Dtype = "auto",
    points_from: Annotated[
        str | None,
        typer.Option(help="VGGT's points: depth, unprojected, or point_head. Default: the model's own."),
    ] = None,
    gallery: Annotated[
        bool, typer.Option("--gallery", help="Write gallery.png: the worst, the median and the best scene.")
    ] = False,
    plot: Annotated[
        bool | None,
        typer.Option("--plot/--no-plot", help="Write quality.png. Default: if matplotlib is installed."),
    ] = None,
    overwrite: Overwrite = False,
    cache_dir: CacheDir = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Cameras, depth and points of a data set's scenes, as far as their truth is known.

    Interrupted (Ctrl-C), it reports the scenes up to there. With -o the numbers are written down batch by
    batch, beside that folder: the same command goes on where one was ended, however it was. Where scenes were
    left out, it measures these alone: they may have been mended.
    """
    from fastvggt_jax.datasets.base import Options
    from fastvggt_jax.evaluate.plot import require_matplotlib
    from fastvggt_jax.evaluate.protocols import protocol_named
    from fastvggt_jax.evaluate.suite import ALL, Table, tables_in
    from fastvggt_jax.io.files import check_output_folder
    from fastvggt_jax.pretrained import recommended_block
    from fastvggt_jax.sparsity import parse_block

    blocks = parse_block(block) if block else recommended_block(weights)
    if not (ablations or family):
        check_sparse(sparsity or ["dense"], block=block)
    if protocol is not None:
        protocol_named(protocol)
    given = Options(scenes, first, views, size, root, stride, frames, protocol)
    missing: list[str] = []
    if dataset == ALL:
        given.refuse(ALL, "first", "views", "stride", "frames", "protocol")
        tables, missing = tables_in(root)
        assert root is not None
        tables = [
            table._replace(
                options=dataclasses.replace(
                    table.options, scenes=scenes, size=size, root=root / table.dataset
                )
            )
            for table in tables
        ]
    else:
        tables = [Table(dataset, dataset, given)]
    failed: dict[str, Error] = {}

    @contextlib.contextmanager
    def by_itself(label: str) -> Iterator[None]:
        """One of all data sets that cannot be measured does not end the others."""
        try:
            yield
        except Error as error:
            if dataset != ALL:
                raise
            failed[label] = error
            say("error", f"{label}: {error}")

    tasks: dict[str, _Task] = {}
    for table in tables:
        with by_itself(table.label):
            tasks[table.label] = _task(table, output / table.label if output and dataset == ALL else output)
    if plot or gallery:
        require_matplotlib()
        if output is None:
            what = ("--plot", "quality.png") if plot else ("--gallery", "gallery.png")
            raise InputError(f"{what[0]} needs a folder to write {what[1]} into: give -o")
    plot = importlib.util.find_spec("matplotlib") is not None if plot is None else plot
    if batch < 1:
        raise InputError(f"batch must be at least 1, not {batch}", argument="batch")
    for task in tasks.values():
        if dataset != ALL and output is not None and not _open(_report_in(output) or {}, len(task.data)):
            check_output_folder(output, overwrite=overwrite, ours=OURS)
    by_hand = _by_hand(sparsity, blocks, dense=not (ablations or family))
    use_compilation_cache(cache_dir)
    model, params = _load(weights, dtype, points_from)
    model = model.clone(float8_scores=float8_scores)
    setup = _Setup(
        model,
        params,
        weights,
        blocks,
        by_hand,
        ablations,
        family,
        batch,
        points_from,
        plot,
        gallery,
        overwrite,
        {},
    )
    reports: dict[str, Any] = {}
    for label, task in tasks.items():
        with by_itself(label):
            found, whole = _one(setup, task, goes_on=dataset == ALL, silent=quiet or as_json)
            reports[label] = found
        if label in failed:
            continue
        if not (quiet or as_json):
            if dataset == ALL:
                typer.echo(f"\n{label}")
            _say(found)
        if not quiet:
            _say_left_out(found)
        if not whole:
            on = "" if output is None else "; the same command goes on"
            counted = f"{_seen(found)} of {len(task.data)} scenes"
            typer.echo(f"interrupted: this is of the first {counted}{on}", err=True)
            raise typer.Exit(INTERRUPTED)
    if missing and not quiet:
        typer.echo(f"not in {root}, so not measured: {', '.join(missing)}", err=True)
    if as_json:
        reports |= {label: {"error": error.text} for label, error in failed.items()}
        typer.echo(json.dumps(reports if dataset == ALL else reports[dataset]))
    if failed:
        typer.echo(f"{len(failed)} of {len(tables)} tables could not be made: {', '.join(failed)}", err=True)
        raise typer.Exit(max(error.exit_code for error in failed.values()))


class _Task(NamedTuple):
    """A data set, how it is measured, and where its report goes."""

    data: Dataset
    rules: Rules
    output: Path | None
    options: dict[str, Any]


class _Setup(NamedTuple):
    """What is the same for all data sets."""

    model: Model
    params: Any
    weights: str
    block: tuple[int, int]
    by_hand: list[Configuration]
    ablations: bool
    family: list[str] | None
    batch: int
    points_from: str | None
    plot: bool
    gallery: bool
    overwrite: bool
    placed: dict[Any, Any]


def _task(table: Table, output: Path | None) -> _Task:
    from fastvggt_jax.datasets.base import load_dataset
    from fastvggt_jax.evaluate.protocols import rules_for

    data = load_dataset(table.dataset, table.options)
    chosen = dataclasses.asdict(table.options)
    chosen |= {name: str(os.path.abspath(chosen[name])) for name in ("root", "frames") if chosen[name]}
    return _Task(data, rules_for(data, table.options.protocol), output, chosen)


def _one(setup: _Setup, task: _Task, *, goes_on: bool, silent: bool) -> tuple[dict[str, Any], bool]:
    """The report of one data set, and whether it is of all scenes. goes_on: what is written already, and is
    of the same evaluation and whole, is taken.
    """
    from fastvggt_jax.evaluate.journal import Journal
    from fastvggt_jax.evaluate.report import encode, report
    from fastvggt_jax.evaluate.runner import check_size, whole_batch
    from fastvggt_jax.io.files import check_output_folder, output_folder, write_file

    data, rules, output, model = task.data, task.rules, task.output, setup.model
    batch = whole_batch(len(data), setup.batch)
    check_size(data, rules.policy(model.image_policy))
    runs = []
    if setup.ablations or setup.family:
        runs = _ablations(model, data, setup.block, setup.family, rules)
    runs = list({run.label: run for run in (*runs, *setup.by_hand)}.values())
    known = data.describe()
    known.pop("frame_list", None)
    frames = known.pop("frames", {})  # of a scene that is mended there may be others
    described = _describe(setup.weights, model, setup.points_from)
    described["image_policy"] = rules.policy(model.image_policy)._asdict()
    of = {
        "model": described,
        "weights": _version_of(setup.weights),
        "dataset": {"name": data.name, **known, "scenes": len(data)},
        "options": task.options,
        "protocol": rules.describe(),
        "configurations": [repr(run) for run in runs],
        "batch": batch,
        "version": __version__,
    }
    before = None
    if output is not None and not setup.overwrite:
        before = _to_go_on_with(output, _digest(of), frames, len(data), whole=goes_on)
        if before is not None and not _open(before, len(data)):
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
                typer.echo(f"{done} scenes were measured before, and stand in {journal.path}", err=True)
        results = _measure(setup, runs, data, batch, journal, rules, silent=silent)
        found = report(
            described,
            data,
            runs,
            results,
            batch=batch,
            block=setup.block,
            version=__version__,
            rules=rules,
            options=task.options,
        )
        found["of"] = _digest(of)
        whole = _seen(found) == len(data)
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


def _report_in(output: Path) -> dict[str, Any] | None:
    """The report that lies there, an empty one of what is none; None without such a file. FileError."""
    from fastvggt_jax.io.json_files import read_json

    if not (output / REPORT).is_file():
        return None
    found = read_json(output / REPORT)
    try:
        _seen(found)
        return found
    except (KeyError, TypeError, AttributeError):
        return {}


def _open(found: dict[str, Any], scenes: int) -> bool:
    """Whether it is a report that lacks scenes, or leaves some out."""
    return bool(found) and (_seen(found) < scenes or "left_out" in found["dataset"])


def _to_go_on_with(
    output: Path, of: str, frames: dict[str, Any], scenes: int, *, whole: bool
) -> dict[str, Any] | None:
    """The report that lies there and lacks scenes or leaves some out, or, where a whole one is wanted too,
    any. Raises TargetError if it is of another evaluation.

    of: the digest of all that its numbers depend on, but for the photographs, which are by scene in `frames`.
    """
    found = _report_in(output)
    if found is None or not (whole or _open(found, scenes)):
        return None
    if found.get("of") != of or not (_open(found, scenes) or found["dataset"].get("frames", {}) == frames):
        text = f"{output / REPORT} is of another evaluation; delete it, give another output, or overwrite it"
        raise TargetError(text, argument="overwrite")
    return found


def _digest(of: dict[str, Any]) -> str:
    """By which an evaluation is known again. It names no folder of the user's."""
    return hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:16]


def _seen(found: dict[str, Any]) -> int:
    """How many scenes a report has measured or left out."""
    return len(found["dataset"]["scenes"]) + len(found["dataset"].get("left_out", []))


def _say(found: dict[str, Any]) -> None:
    from fastvggt_jax.evaluate.report import baseline_table, comparison, table

    typer.echo(table(found["configurations"], found["published"]))
    if baselines := baseline_table(found["configurations"]):
        typer.echo(baselines)
    for line in comparison(found):
        typer.echo(line)


def _say_left_out(found: dict[str, Any]) -> None:
    from fastvggt_jax.evaluate.report import left_out_lines

    for line in left_out_lines(found["dataset"]):
        typer.echo(printable(line), err=True)


def _draw(setup: _Setup, task: _Task, runs: list[Configuration], found: dict[str, Any], folder: Path) -> None:
    """quality.png and gallery.png, as far as they are wanted."""
    from fastvggt_jax.evaluate.gallery import write_gallery
    from fastvggt_jax.evaluate.plot import measured_panels, write_plot

    rows, measured = found["configurations"], len(found["dataset"]["scenes"])
    title = f"{Path(setup.weights).stem}: {measured} scene{'s' * (measured != 1)} of {task.data.name}"
    if setup.plot and not measured_panels(rows):
        typer.echo("nothing of what quality.png shows was measured: it is not written", err=True)
    elif setup.plot:
        write_plot(rows, title, folder / "quality.png")
    if setup.gallery:
        from fastvggt_jax.evaluate.runner import predictor

        model = setup.model.clone(sparsity=runs[0].sparsity)
        predict = predictor(model, setup.params, setup.points_from)
        write_gallery(
            predict, model.image_policy, task.data, task.rules, found, title, folder / "gallery.png"
        )


def _by_hand(texts: list[str] | None, block: tuple[int, int], *, dense: bool) -> list[Configuration]:
    """The configurations that --sparsity names; without it dense, where that is wanted."""
    from fastvggt_jax.evaluate.ablations import configuration
    from fastvggt_jax.sparsity import parse_sparsity

    chosen = texts or (["dense"] if dense else [])
    return [configuration(parse_sparsity(text, block)) for text in chosen]


def _ablations(
    model: Model,
    data: Dataset,
    block: tuple[int, int],
    family: list[str] | None,
    rules: Rules | None = None,
) -> list[Configuration]:
    from fastvggt_jax.evaluate.ablations import ablations

    policy = model.image_policy if rules is None else rules.policy(model.image_policy)
    frames, height, width, _ = _first_shape(data, policy)
    return ablations(model.depth, block, frames * height * width // policy.patch**2, family)


def _first_shape(data: Dataset, policy: ImagePolicy) -> tuple[int, ...]:
    """[F, H, W, 3] of the first scene that can be read; where none can, the error of the first."""
    from fastvggt_jax.evaluate.runner import sized_images

    errors: list[Error] = []
    for number in range(len(data)):
        try:
            return sized_images(data, data[number].images, policy).pixels.shape
        except (SceneError, ImageError, MissingError) as error:
            errors.append(error)
    raise errors[0]


def _load(weights: str, dtype: str, points_from: str | None) -> tuple[Model, Any]:
    """(model, params) with the heads that are measured."""
    import jax

    from fastvggt_jax.pipeline import compute_dtype
    from fastvggt_jax.pretrained import from_pretrained, read_model

    model, params = from_pretrained(weights, heads=read_model(weights).heads_for(points_from))
    if dtype == "float32" and jax.default_backend() == "gpu":
        # And not TF32, whose errors would be measured too.
        jax.config.update("jax_default_matmul_precision", "highest")
    return model.clone(dtype=compute_dtype(dtype)), params


def _measure(
    setup: _Setup,
    runs: list[Configuration],
    data: Dataset,
    batch: int,
    journal: Journal | None,
    rules: Rules,
    *,
    silent: bool,
) -> dict[str, Result]:
    import jax

    from fastvggt_jax.evaluate.runner import evaluate, predictor
    from pallas_kernels import compiles_in_threads

    model = setup.model
    predictors = {
        run.label: predictor(
            model.clone(sparsity=run.sparsity), setup.params, setup.points_from, setup.placed
        )
        for run in runs
    }
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True, quiet=silent), disable=silent) as progress:
        task = progress.add_task("evaluate", total=len(runs) * len(data))
        return evaluate(
            predictors,
            model.image_policy,
            data,
            batch=batch,
            advance=lambda scenes: progress.advance(task, scenes),
            # Only where compiling takes longer than running.
            together=jax.default_backend() == "gpu" and compiles_in_threads(model.dtype),
            journal=journal,
            rules=rules,
        )


def _so_far(output: Path) -> Path:
    """Where the numbers stand until the folder appears."""
    return Path(f"{os.path.abspath(output)}.so-far.jsonl")


def _version_of(weights: str) -> list[int]:
    """Of a weight file: another file under the same name is another model."""
    from fastvggt_jax.pretrained import weight_file

    status = weight_file(weights).stat()
    return [status.st_size, status.st_mtime_ns]


def _describe(weights: str, model: Model, points_from: str | None) -> dict[str, Any]:
    import jax.numpy as jnp

    return {
        "file": Path(weights).name,
        "class": type(model).__name__,
        "dtype": jnp.dtype(model.dtype).name,
        "float8_scores": model.float8_scores,
        "points_from": points_from or model.point_sources[0],
    }
