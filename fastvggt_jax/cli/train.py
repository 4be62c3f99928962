"""`fastvggt train`: a training run that a Python file describes."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from fastvggt_jax.cli.errors import INTERRUPTED, one_sentence
from fastvggt_jax.cli.options import CacheDir, Quiet, take_gpu_memory, use_compilation_cache
from fastvggt_jax.errors import ExtraError

SMALLER = (
    "take fewer scenes or views per batch, remat=True in the model, or shard_params=true on several devices"
)


@one_sentence(smaller=SMALLER)
def train(
    config: Annotated[
        Path,
        typer.Argument(help="A Python file whose get_config() returns a fastvggt_jax.train.TrainConfig."),
    ],
    workdir: Annotated[
        Path,
        typer.Option(help="Folder of checkpoints, metrics and weights; a run that is there is continued."),
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="field=value, instead of the configuration's: steps=1e5, loss_weights.pairs=3."
        ),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Stop after so long, compiling included, and save.")
    ] = None,
    cache_dir: CacheDir = None,
    quiet: Quiet = False,
) -> None:
    """Train a model on procedural scenes, from random numbers or on from a weight file.

    Interrupted (Ctrl-C), it saves and ends with exit code 130; interrupted again, it ends at once.
    """
    try:
        from fastvggt_jax.train import load_config
        from fastvggt_jax.train import train as run
    except ModuleNotFoundError as error:
        raise ExtraError(f"training needs {error.name}: pip install 'fastvggt_jax[train]'") from error
    with _silent_threads():
        take_gpu_memory()
        use_compilation_cache(cache_dir)
        wanted, start = load_config(config, set_ or ()), time.monotonic()
        state = run(wanted, workdir, minutes=minutes, quiet=quiet)
    in_time = minutes is None or time.monotonic() - start < 60 * minutes
    if int(state.step) < wanted.steps and in_time:  # neither at its end nor out of time: interrupted
        raise typer.Exit(INTERRUPTED)


@contextlib.contextmanager
def _silent_threads() -> Iterator[None]:
    """On a full disk Orbax's and tensorstore's threads print pages of tracebacks beside the error that they
    raise.
    """
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels, hook = [logger.level for logger in loggers], sys.unraisablehook
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    sys.unraisablehook = lambda _: None
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
