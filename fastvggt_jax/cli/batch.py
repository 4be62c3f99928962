"""`fastvggt batch`: what `reconstruct` does, for many scenes with one model."""

from __future__ import annotations

import functools
import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fastvggt_jax.cli.errors import FAILED, one_sentence, say
from fastvggt_jax.cli.options import Quiet, made_by, take_gpu_memory, use_compilation_cache
from fastvggt_jax.cli.reconstruct import check_weights, chosen_settings, reconstruct, without_extras
from fastvggt_jax.errors import printable

# Of one scene alone, some of which an index may give per scene, and those that are said in other words here.
LEFT_OUT = (
    "photos",
    "demo",
    "align_to",
    "masks",
    "cameras",
    "depth",
    "devices",
    "debug",
    "output",
    "overwrite",
    "quiet",
    "as_json",
)


def options_of(command: Callable[..., None], leave_out: tuple[str, ...]) -> Callable[[Callable], Callable]:
    """Gives a command the options of another one, as its keywords `options`: one spelling and one meaning."""

    def wrap(function: Callable) -> Callable:
        own = inspect.signature(function, eval_str=True).parameters.values()
        others = inspect.signature(command).parameters.values()
        taken = [one for one in others if one.name not in leave_out]
        parameters = [one for one in own if one.kind is not inspect.Parameter.VAR_KEYWORD] + taken
        keyword = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters]
        function.__signature__ = inspect.Signature(keyword)  # type: ignore[attr-defined]
        return function

    return wrap


@one_sentence(smaller="take scenes of fewer photographs, a smaller --size, or weights in bfloat16")
@options_of(reconstruct, LEFT_OUT)
def batch(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for the results, a folder for each scene.")
    ],
    scenes: Annotated[
        list[str] | None,
        typer.Argument(
            help="Folders of photographs, videos, patterns in quotes ('scenes/*'), or an index: a .txt file "
            "with a scene per line, .jsonl or .parquet with a column scene or path."
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", help="So many processes by Ray (extra ray), each with a GPU of its own."),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="A Ray cluster that runs: auto, HOST:PORT or ray://HOST:PORT."),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Begin anew, and replace what earlier runs have left for these scenes."
        ),
    ] = False,
    quiet: Quiet = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object per line as things happen, and nothing else.")
    ] = False,
    **options: Any,
) -> None:
    """Many scenes with one model, each as reconstruct would write it. Started again, it goes on."""
    from fastvggt_jax.batch.run import run

    cache_dir, weights = options.pop("cache_dir"), options.pop("weights")
    if workers is not None or ray is not None:
        only_a_cpu()
    prepare = functools.partial(prepare_process, cache_dir)
    settings = chosen_settings(
        **(options | {"intrinsics": _absolute(options["intrinsics"])}),
        weights=_absolute(check_weights(weights)),
        photos=(),
        output=Path(os.path.abspath(output)) if os.fspath(output) else output,
        align_to=None,
        masks=None,
        cameras=None,
        depth=None,
        overwrite=overwrite,
    )
    if options["formats"] is None and not (quiet or as_json):
        for text in without_extras():
            say("warning", text)
    silent = quiet or as_json
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True, quiet=silent), disable=silent) as progress:
        bar = progress.add_task("scenes", total=None)

        def show(event: dict[str, Any]) -> None:
            if as_json:
                typer.echo(json.dumps(event))
            if event["event"] == "start":
                progress.update(bar, total=event["scenes"])
            elif event["event"] in ("done", "finished", "failed"):
                progress.advance(bar)
            _say(event, quiet, as_json)

        by = made_by()
        end = run(scenes or [], settings, show, workers=workers, ray=ray, prepare=prepare, by=by)
    if as_json:
        typer.echo(json.dumps(end))
    elif not quiet:
        before = f", {end['finished']} were finished before" if end["finished"] else ""
        typer.echo(
            f"{end['done']} scenes done, {end['failed']} failed{before}; {end['views']} photographs in "
            f"{end['seconds']:.1f} s -> {printable(str(settings.output))}"
        )
    if end["failed"]:
        raise typer.Exit(FAILED)


def _say(event: dict[str, Any], quiet: bool, as_json: bool) -> None:
    """A failure and its traceback always, unless the JSON has them; warnings unless nobody wants any."""
    if as_json:
        return
    if event["event"] == "failed":
        say("error", f"{event['scene']}: {event['error']}")
        if "traceback" in event:
            typer.echo(event["traceback"], err=True)
    elif not quiet:
        for text in [event["text"]] if event["event"] == "warning" else event.get("warnings", ()):
            say("warning", f"{event['scene']}: {text}" if "scene" in event else text)


def only_a_cpu() -> None:
    """In this process, which computes nothing: to convert weights asks for a device, and GPUs are for the
    workers.
    """
    import jax

    jax.config.update("jax_platforms", "cpu")


def prepare_process(cache_dir: str | None) -> None:
    """Before JAX is used, in each process."""
    take_gpu_memory()
    use_compilation_cache(cache_dir)


def _absolute(name: str | None) -> Any:
    """A path that is there, as processes that run elsewhere find it; other names as they are."""
    return os.path.abspath(name) if name is not None and os.path.lexists(name) else name
