"""Files that other processes write, from the scene as it is saved. A GPU computes a scene in less time than
one process takes to write it, and in threads of one process numpy waits for Python's lock and for memory.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import jax

from fastvggt_jax.errors import Error, FileError
from fastvggt_jax.export.base import Export, ExportOptions, Format, find, write_formats
from fastvggt_jax.export.cameras import SCENE
from fastvggt_jax.scene import Scene


class Written(NamedTuple):
    """What such a process says: its warnings, `Export.tracks_report`, and the error that it ended with."""

    warnings: list[str]
    tracks: dict[str, float] | None
    error: str | None


class Apart:
    """At most so many processes, which are started as they are needed and end with this one; each writes one
    scene at a time. Use it within a `with`.
    """

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._lock = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Apart:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def begin(
        self, export: Export, folder: Path, formats: list[Format]
    ) -> tuple[list[Format], Callable[[], None]]:
        """Has those written that can be made of the saved scene, if that is among them, bit for bit as here.

        Returns those that are left to be written here, and what is to be called then: it waits for the
        others, warns as they do, and raises the error that one of them does.
        """
        others = [format for format in formats if format.of_saved]
        alike = export.followed is None and export.measured is None and not export.options.float16
        if SCENE not in formats or not others or not alike:
            return formats, lambda: None
        SCENE.write(export, folder)
        names = [format.name for format in others]
        pool = self._started()
        future = pool.submit(_write_saved, folder, names, export.options)

        def wait() -> None:
            try:
                said = future.result()
            except BrokenProcessPool:  # one was killed, say for its memory; the next scene gets new ones
                with self._lock:
                    self._pool = None if self._pool is pool else self._pool
                write_formats(export, folder, others)
                return
            for text in said.warnings:
                warnings.warn(text, stacklevel=3)
            if said.error is not None:
                raise FileError(said.error)
            export.said["tracks"] = said.tracks

        left = [format for format in formats if format not in others and format is not SCENE]
        return left, wait

    def _started(self) -> ProcessPoolExecutor:
        with self._lock:
            if self._pool is None:
                # Not forked: JAX has threads, and what they hold stays locked in a fork for ever.
                spawn = multiprocessing.get_context("spawn")
                self._pool = ProcessPoolExecutor(self._processes, spawn, initializer=_start)
            return self._pool


def _start() -> None:
    jax.config.update("jax_platforms", "cpu")  # the device is not theirs
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C lets the scenes end that are being written
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """However that ends: it may be killed."""
    parent: Any = multiprocessing.parent_process()
    parent.join()
    os._exit(1)


def _write_saved(folder: Path, names: Sequence[str], options: ExportOptions) -> Written:
    """The formats of these names of the scene that is saved in a folder."""
    error = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        export = Export(Scene.load(folder), options)
        try:
            write_formats(export, folder, map(find, names))
        except Error as raised:
            error = str(raised)
    texts = [str(one.message) for one in caught if issubclass(one.category, UserWarning)]
    return Written(texts, export.tracks_report(), error)
