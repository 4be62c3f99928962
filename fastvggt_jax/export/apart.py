"""Files that other processes write, from the scene as it is saved. A GPU computes a scene in less time than
one process takes to write it, and in threads of one process numpy waits for Python's lock and for memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import jax

from fastvggt_jax.errors import InputError
from fastvggt_jax.export.base import Export, ExportOptions, Format, find, write_formats
from fastvggt_jax.export.cameras import SCENE
from fastvggt_jax.io.files import remove_temporaries
from fastvggt_jax.io.scenes import DENSE, mapped_arrays
from fastvggt_jax.scene import Scene

CORES = 2  # that such a process uses, of which there are as many as `batch.work.good_writers`
KEPT = 1 << 30  # bytes of memory that such a process keeps for its next scene, about


class Written(NamedTuple):
    """What such a process says: its warnings, `Export.points`, and `Export.tracks_report`."""

    warnings: list[tuple[type[Warning], str]]
    points: int
    tracks: dict[str, float] | None


class Apart:
    """Processes that are started as they are needed, so many as scenes are written at a time, and end with
    this one. Use it within a `with`.
    """

    def __init__(self) -> None:
        # Of one process each, so that one that is killed takes no other's scene with it.
        self._idle: list[ProcessPoolExecutor] = []

    def __enter__(self) -> Apart:
        return self

    def __exit__(self, *_: object) -> None:
        with ThreadPoolExecutor(len(self._idle) or 1) as ends:
            ends.map(ProcessPoolExecutor.shutdown, self._idle)

    def begin(
        self, export: Export, folder: Path, formats: list[Format]
    ) -> tuple[list[Format], Callable[[], None]]:
        """Has those written that can be made of the saved scene, if that is among them, bit for bit as here.

        Returns those that are left to be written here, and what is to be called then: it waits for the
        others, warns as they do, and raises the error that one of them does. The export's scene is the saved
        one then, so that what the model has found leaves the memory. Raises FileError.
        """
        others = [format for format in formats if format.of_saved]
        alike = export.followed is None and export.measured is None and not export.options.float16
        if SCENE not in formats or not others or not alike:
            return formats, lambda: None
        SCENE.write(export, folder)
        saved: dict[str, Any] = mapped_arrays(folder / SCENE.files[0])
        export.scene = dataclasses.replace(export.scene, **{name: saved[name] for name in DENSE})
        names = [format.name for format in others]
        try:
            pool = self._one()
            with _deaf_to_interrupts():
                future = pool.submit(_write_saved, folder, names, export.options)
        except (RuntimeError, OSError):  # none can be started, or this one was killed while it had no scene
            return [format for format in formats if format is not SCENE], lambda: None

        def wait() -> None:
            if isinstance(future.exception(), BrokenProcessPool):  # it was killed, say for its memory
                pool.shutdown()  # it ends only now
                remove_temporaries(folder)
                said = None
            else:
                self._idle.append(pool)
                said = future.result()
            if said is None:
                write_formats(export, folder, others)
                return
            for category, text in said.warnings:
                warnings.warn(text, category, stacklevel=3)
            export.said["points"] = said.points
            if said.tracks is not None:
                export.said["tracks"] = said.tracks

        left = [format for format in formats if format not in others and format is not SCENE]
        return left, wait

    def _one(self) -> ProcessPoolExecutor:
        try:
            return self._idle.pop()
        except IndexError:
            # Not forked: JAX has threads, and what they hold stays locked in a fork for ever.
            return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_start)


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Processes that this thread starts within the block, from their first moment on where the system has
    that: Ctrl-C lets the scenes end that are being written.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start() -> None:
    _keep_memory()
    jax.config.update("jax_platforms", "cpu")  # the device is not theirs
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _keep_memory() -> None:
    """What one scene's arrays have taken is for the next one's. By itself glibc gives it back to the system,
    which clears every page that it hands out again; that takes a sixth of such a process' time.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # of another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-8, 1)  # M_ARENA_MAX: one heap for all threads,
        mallopt(-4, 0)  # M_MMAP_MAX: which has the large arrays too,
        mallopt(-1, KEPT)  # M_TRIM_THRESHOLD: and of what is free at its end so much


def _end_with_parent() -> None:
    """However that ends: it may be killed."""
    parent: Any = multiprocessing.parent_process()
    parent.join()
    os._exit(1)


def _write_saved(folder: Path, names: Sequence[str], options: ExportOptions) -> Written | None:
    """The formats of these names of the scene that is saved in a folder. None, and nothing is written, where
    they are not known here, or `Scene.load` refuses what a model has found.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            formats, scene = [find(name) for name in names], Scene.load(folder, mapped=True)
        except InputError:
            return None
        export = Export(scene, options, cores=CORES)
        write_formats(export, folder, formats)
        points = export.points
    return Written([(one.category, str(one.message)) for one in caught], points, export.tracks_report())
