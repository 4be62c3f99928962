"""Saving a training run with Orbax: asynchronously, the last states and the best one, and only whole ones.

A folder holds `model.json` (which model it is of), `last/` and `best/` (Orbax checkpoints by step), `metrics.jsonl` and, at the end,
`weights.safetensors`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from fastvggt_jax.checkpoint import CheckpointError
from fastvggt_jax.models.vggt import VGGT
from fastvggt_jax.train.state import TrainState

KEPT = 2  # of the last ones: if the disk is full while one is written, there is the one before


class TrainingFailed(RuntimeError):
    """The loss was not finite, or a file could not be written; the text names the last good checkpoint."""


class Checkpoints:
    """The checkpoints of one run. Use as a context manager: leaving it waits until all is written."""

    def __init__(self, folder: Path, model: VGGT) -> None:
        """Raises CheckpointError if the folder is that of another model, or not that of a training run."""
        identity = {"model": type(model).__name__, "config": model.config()}
        mark = folder / "model.json"
        if mark.exists():
            _compare(folder, json.loads(mark.read_text()), identity)
        elif folder.exists() and any(folder.iterdir()):
            raise CheckpointError(f"the folder {folder} holds something else than a training run; give an empty or a new one")
        folder.mkdir(parents=True, exist_ok=True)
        mark.write_text(json.dumps(identity, indent=1))
        self.folder = folder
        self.last = ocp.CheckpointManager((folder / "last").absolute(), options=ocp.CheckpointManagerOptions(max_to_keep=KEPT))
        self.best = ocp.CheckpointManager(
            (folder / "best").absolute(),
            options=ocp.CheckpointManagerOptions(max_to_keep=1, best_fn=lambda metrics: metrics["loss"], best_mode="min"),
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: Any) -> None:
        self.last.close()
        self.best.close()

    @property
    def last_step(self) -> int | None:
        """Steps done at the last whole checkpoint."""
        return self.last.latest_step()

    @property
    def last_good(self) -> str:
        """In words, for an error's sentence."""
        return "there is no checkpoint before it" if self.last_step is None else f"the last good checkpoint is {self._last_folder}"

    @property
    def _last_folder(self) -> Path:
        return self.folder / "last" / str(self.last_step)

    def save(self, state: TrainState) -> None:
        """Begins to write."""
        with self._writing():
            self.last.save(int(state.step), args=ocp.args.StandardSave(state))

    def save_if_best(self, state: TrainState, loss: float) -> None:
        """Keeps the averaged weights of the lowest validation loss."""
        with self._writing():
            self.best.save(int(state.step), args=ocp.args.StandardSave({"params": state.weights()}), metrics={"loss": loss})

    def wait(self) -> None:
        """Until all is written."""
        with self._writing():
            self.last.wait_until_finished()
            self.best.wait_until_finished()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Raises TrainingFailed for what could not be written, now or since the last time: Orbax writes in the background."""
        try:
            yield
        except (OSError, ValueError) as error:  # tensorstore reports a full disk as a ValueError
            full = "No space left on device" in str(error)
            reason = "no space is left on its disk" if full else str(error).splitlines()[0]
            raise TrainingFailed(f"a checkpoint could not be written in {self.folder}: {reason}; {self.last_good}") from error

    def restore(self, abstract: TrainState, sharding: TrainState) -> TrainState:
        """The last whole checkpoint."""
        target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, sharding)
        try:
            return self.last.restore(self.last_step, args=ocp.args.StandardRestore(target))
        except ValueError as error:
            hint = "was it written with another optimizer, ema_decay or frozen?"
            raise CheckpointError(f"{self._last_folder} does not fit this configuration ({hint}): {error}") from error


def _compare(folder: Path, theirs: dict[str, Any], mine: dict[str, Any]) -> None:
    if theirs["model"] != mine["model"]:
        raise CheckpointError(f"the folder {folder} is the training of a {theirs['model']}, not of a {mine['model']}")
    names = [name for name in mine["config"] if theirs["config"].get(name) != mine["config"][name]]
    if names:
        text = ", ".join(f"{name}={theirs['config'].get(name)} (here {mine['config'][name]})" for name in names)
        raise CheckpointError(f"the folder {folder} is the training of another model: {text}")
