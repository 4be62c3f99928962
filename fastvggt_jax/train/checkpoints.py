"""Saving a training run: the last states with Orbax, in the background and only whole ones, and weight files.

A folder holds `model.json` (which model it is of, and where its weights come from), `last/` (Orbax
checkpoints by step), `metrics.jsonl`, `best.safetensors` (the weights of the lowest validation loss) and,
when it stops, `weights.safetensors`.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from fastvggt_jax.errors import FailedError, InputError, TargetError, WeightsError, is_full, out_of_memory
from fastvggt_jax.io.files import check_name, held, temporary_sibling, write_file
from fastvggt_jax.io.json_files import read_json
from fastvggt_jax.io.weights import open_weights, save_params
from fastvggt_jax.pretrained import weight_file
from fastvggt_jax.train.config import TrainConfig
from fastvggt_jax.train.state import TrainState

KEPT = 2  # of the last ones: if the disk is full while one is written, there is the one before
MARK = "model.json"  # of a folder that holds a training run
LAST = "last"  # the folder of checkpoints
BEST, WEIGHTS = "best.safetensors", "weights.safetensors"


class TrainingFailed(FailedError):
    """A loss or gradient was not finite, or a file could not be written; the text names the last good
    checkpoint.
    """


def check_folder(folder: Path) -> None:
    """Raises TargetError for what can be no folder of a run."""
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise TargetError(f"{folder} is a file; give a folder to train in", argument="workdir")
    check_name(folder, "workdir")


class Checkpoints:
    """What one run keeps. Use as a context manager: leaving it waits until all is written."""

    def __init__(self, folder: Path, config: TrainConfig) -> None:
        """Warns of what it finds damaged, and says what it has done about it.

        Raises WeightsError if the folder is that of another model, or not that of a training run, TargetError
        if another training is running in it.
        """
        self.folder, self.config = folder, config
        model = config.model
        identity = {"model": type(model).__name__, "config": model.config()}
        mark = folder / MARK
        with contextlib.ExitStack() as stack:
            if mark.exists():
                stack.enter_context(held(folder))
                self.origin = self._identity(identity)
            elif folder.exists() and any(folder.iterdir()):
                text = f"the folder {folder} holds something else than a training run"
                raise WeightsError(f"{text}; give an empty or a new one")
            else:
                self.origin = identity | _origin(config)
                write_file(mark, json.dumps(self.origin, indent=1).encode())
                stack.enter_context(held(folder))
            self._open()
            self._held = stack.pop_all()

    def _identity(self, mine: dict[str, Any]) -> dict[str, Any]:
        """What model.json says. Damaged beside checkpoints, which say themselves whether they fit, it is
        written anew.
        """
        try:
            theirs = _read_mark(self.folder)
        except WeightsError:
            if not _steps(self.folder / LAST):
                raise
            theirs = mine | {"source": "unknown weights", "license": "unknown"}
            write_file(self.folder / MARK, json.dumps(theirs, indent=1).encode())
            text = f"{self.folder / MARK} is damaged; it is written anew, without source and licence"
            warnings.warn(text, stacklevel=5)
        _compare(self.folder, theirs, mine)
        return theirs

    def _open(self) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, cleanup_tmp_directories=True)
        self.last = ocp.CheckpointManager((self.folder / LAST).absolute(), options=options)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        # What has already been raised says more.
        with self._held, contextlib.suppress(Exception) if kind else self._writing():
            self.last.close()

    @property
    def last_step(self) -> int | None:
        """Steps done at the last checkpoint, whole or being written."""
        return self.last.latest_step()

    @property
    def last_good(self) -> str:
        """In words, for an error's sentence. Orbax counts a step once it begins to write it; on the disk only
        a whole one has its name.
        """
        with contextlib.suppress(OSError, ValueError):
            self.last.wait_until_finished()
        whole = _steps(self.folder / LAST)
        return (
            f"the last good checkpoint is {self.folder / LAST / str(max(whole))}"
            if whole
            else "there is no checkpoint before it"
        )

    def save(self, state: TrainState) -> None:
        """Begins to write."""
        with self._writing():
            self.last.save(int(state.step), args=ocp.args.StandardSave(state))

    def wait(self) -> None:
        """Until all is written."""
        with self._writing():
            self.last.wait_until_finished()

    def write_weights(self, name: str, state: TrainState) -> None:
        """The weights to use as a native weight file of the folder; what they started from binds what they
        have become.
        """
        weights = jax.tree.map(lambda x: x.astype(self.config.weights_dtype), state.weights())
        source = f"fastvggt_jax.train, {int(state.step)} steps from {self.origin['source']}"
        with self._writing():
            save_params(
                self.folder / name, {"params": weights}, self.config.model, source, self.origin["license"]
            )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Raises TrainingFailed for what could not be written, now or since the last time: Orbax writes in
        the background.
        """
        try:
            yield
        except (OSError, ValueError) as error:  # tensorstore reports a full disk as a ValueError
            raise self.failure(error) from error

    def failure(self, error: OSError | ValueError) -> TrainingFailed:
        """What to raise for a file that could not be written."""
        reason = "no space is left on its disk" if is_full(error) else str(error).splitlines()[0]
        return TrainingFailed(f"a file could not be written in {self.folder}: {reason}; {self.last_good}")

    def restore(self, abstract: TrainState, sharding: TrainState) -> TrainState:
        """The last checkpoint that can be read; those after it are damaged, and renamed to say so.

        Raises WeightsError if none fits.
        """
        target = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, sharding
        )
        steps = sorted(_steps(self.folder / LAST), reverse=True)
        for damaged, step in enumerate(steps):
            try:
                state = self.last.restore(step, args=ocp.args.StandardRestore(target))
            except Exception as error:  # what a damaged file raises is anything
                if out_of_memory(error):
                    raise
                continue
            self._set_aside(steps[:damaged])
            return state
        path = self.folder / LAST / str(steps[0])
        hint = "was it written with another optimizer, ema_decay or frozen, or is it damaged?"
        raise WeightsError(f"{path} does not fit this configuration: {hint}")

    def _set_aside(self, steps: list[int]) -> None:
        if not steps:
            return
        self.last.close()
        for step in steps:
            path, kept = self.folder / LAST / str(step), self.folder / f"damaged-{step}"
            if kept.exists():
                kept = temporary_sibling(kept)
            path.rename(kept)
            text = f"the checkpoint {path} is damaged and left out; it is {kept} now"
            warnings.warn(text, stacklevel=4)
        self._open()


def _steps(folder: Path) -> list[int]:
    """Of the checkpoints that were written to their end."""
    if not folder.is_dir():
        return []
    return [int(path.name) for path in folder.iterdir() if path.name.isdecimal() and path.is_dir()]


def _origin(config: TrainConfig) -> dict[str, str]:
    """Source and licence of what the run starts from."""
    if config.init is None:
        return {"source": "random numbers", "license": "that of whoever trained it"}
    before = open_weights(weight_file(config.init))
    return {
        "source": before.source or config.init,
        "license": before.license,
    }


def _read_mark(folder: Path) -> dict[str, Any]:
    try:
        found = read_json(folder / MARK)
        if not isinstance(found["config"], dict):
            raise TypeError("config is no object")
        return {name: found[name] for name in ("model", "config", "source", "license")}
    except (InputError, KeyError, TypeError) as error:
        raise WeightsError(
            f"the folder {folder} holds a {MARK} that no training run has written; give another folder"
        ) from error


def _compare(folder: Path, theirs: dict[str, Any], mine: dict[str, Any]) -> None:
    if theirs["model"] != mine["model"]:
        raise WeightsError(
            f"the folder {folder} is the training of a {theirs['model']}, not of a {mine['model']}"
        )
    names = [name for name in mine["config"] if theirs["config"].get(name) != mine["config"][name]]
    if names:
        text = ", ".join(
            f"{name}={theirs['config'].get(name)} (here {mine['config'][name]})" for name in names
        )
        raise WeightsError(f"the folder {folder} is the training of another model: {text}")
