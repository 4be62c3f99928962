"""The loop of one process: while a scene is computed, the next one is loaded and the last ones written."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax

from fastvggt_jax import pipeline
from fastvggt_jax.batch.scenes import Scene
from fastvggt_jax.errors import Error, out_of_memory
from fastvggt_jax.export.apart import Apart
from fastvggt_jax.export.conventions import keep_run
from fastvggt_jax.pipeline import Plan, Settings
from fastvggt_jax.programs import Programs, Step
from fastvggt_jax.sources.photographs import without_pillows_warnings

T = TypeVar("T")
Event = dict[str, Any]  # JSON values; "event" says what happened
Take = Callable[[bool], "Job | None"]  # the next job; see `work`
MOST_WRITERS = 8
WRITTEN = 8 * 2**30  # bytes of results, about, that are written at a time, at most, beyond the first scene's
BYTES_PER_PIXEL = 26  # of a result and its photographs


class Job(NamedTuple):
    """A scene with the settings that are its own."""

    scene: Scene
    settings: Settings


def job_of(scene: Scene, settings: Settings, *, replaces: bool = False) -> Job:
    """settings: of all scenes; `output` is the folder for all results."""
    own: dict[str, Any] = dict(photos=(scene.path,), output=Path(settings.output) / scene.name)
    overwrite = settings.overwrite or replaces
    return Job(scene, dataclasses.replace(settings, **own, overwrite=overwrite, **scene.options))


class _Account:
    """Of one scene while it goes from thread to thread: seconds of its steps, and its warnings."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.warnings: dict[str, None] = {}

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0) + time.perf_counter() - start, 3)


_account: ContextVar[_Account | None] = ContextVar("account", default=None)  # whose warnings these are


@contextlib.contextmanager
def _warnings_by_thread() -> Iterator[None]:
    """Within the block a UserWarning goes to the account that it is for, if there is one. Filters belong to
    all threads, so they are set once, around all of them.
    """
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.simplefilter("always", UserWarning)
        stack.enter_context(without_pillows_warnings())
        before = warnings.showwarning

        def show(message: Any, category: type[Warning], *where: Any, **how: Any) -> None:
            account = _account.get()
            if account is not None and issubclass(category, UserWarning):
                account.warnings[str(message)] = None
            else:
                before(message, category, *where, **how)

        warnings.showwarning = show
        yield


def _within(account: _Account, function: Callable[..., T], *arguments: Any) -> T:
    token = _account.set(account)
    try:
        return function(*arguments, account.step)
    finally:
        _account.reset(token)


class Model(NamedTuple):
    """Loaded once; programs: that were compiled for it."""

    plan: Plan
    model: Any
    params: Any
    programs: Programs

    @classmethod
    def of(cls, settings: Settings, plan: Plan, emit: Callable[[Event], None]) -> Model:
        """emit gets an event {"event": "warning", "text"} of what there is to say of it."""
        account = _Account()
        with _warnings_by_thread():
            model = _within(account, lambda _: pipeline.load_model(settings, plan))
        for text in account.warnings:
            emit({"event": "warning", "text": text})
        return cls(plan, *model, Programs())


def in_turn(jobs: Iterable[Job]) -> Take:
    """These, for one process, which may take them as early as it likes."""
    waiting = iter(jobs)
    return lambda early: next(waiting, None)


def good_writers(cores: int | None = None) -> int:
    """Scenes to be written at a time by a process that has so many CPU cores, by default all. A fast GPU
    computes one in less time than it takes to write it.
    """
    if jax.default_backend() == "cpu":
        return 1
    return max(1, min(MOST_WRITERS, (os.cpu_count() or 1 if cores is None else cores) // 2))


def work(
    model: Model,
    take: Take,
    emit: Callable[[Event], None],
    by: Mapping[str, str] | None = None,
    writers: int | None = None,
) -> None:
    """Reconstructs one job after the other. What goes wrong with one is an event, and the next one's turn.

    take: called with True before a job is computed, for the next one, to be loaded meanwhile; where it gives
      none, with False when that is computed. It gives none then once there are no more.
    emit: gets an event for each job as it ends, {"event": "done", "scene": name, **report of
      `pipeline.reconstruct`, "seconds"} or {"event": "failed", "scene", "error": a sentence}, with
      "traceback" where it is our fault; it may be called in another thread.
    by: what each scene.json says of the command, and then of the scene what "done" does; None: neither.
    writers: scenes that are written at a time, each by a process of its own if these are more than one; by
      default `good_writers`.
    When it is interrupted, what is being written is finished first.
    """
    writers = good_writers() if writers is None else writers
    loader, writer = ThreadPoolExecutor(1, "load"), ThreadPoolExecutor(writers, "write")
    apart = Apart()
    writing: deque[tuple[Future[None], int]] = deque()

    def compute(loaded: pipeline.Loaded, step: Step) -> pipeline.Computed:
        return pipeline.compute(loaded, model.model, model.params, step, programs=model.programs)

    def write(job: Job, account: _Account, loaded: pipeline.Loaded, computed: pipeline.Computed) -> None:
        def done(report: dict[str, Any]) -> Event:
            more = {"warnings": list(account.warnings), "seconds": account.seconds}
            return {"scene": job.scene.name} | report | more

        def keep(folder: Path, report: dict[str, Any]) -> None:
            if by is not None:
                keep_run(folder, {**by, **done(report)})

        def written(step: Step) -> dict[str, Any]:
            return pipeline.write(loaded, computed, step, keep, apart.begin if writers > 1 else None)

        found = _tried(job, partial(_within, account, written))
        emit(found.event if isinstance(found, _Failed) else {"event": "done"} | done(found))

    def begin(*, early: bool) -> tuple[Job, _Account, Future[Any]] | None:
        job = take(early)
        if job is None:
            return None
        account = _Account()
        steps = partial(_within, account, pipeline.load, job.settings, model.plan)
        return job, account, loader.submit(_tried, job, steps)

    def room_for(size: int) -> None:
        """Waits until the results that are still to be written leave some."""
        while writing and (len(writing) >= writers or size + sum(other for _, other in writing) > WRITTEN):
            writing.popleft()[0].result()

    with contextlib.ExitStack() as ends:
        ends.enter_context(_warnings_by_thread())
        ends.enter_context(apart)
        ends.callback(writer.shutdown)
        ends.callback(loader.shutdown, wait=False, cancel_futures=True)
        coming = begin(early=False)
        while coming is not None:
            job, account, future = coming
            loaded = future.result()
            coming = begin(early=True)
            if isinstance(loaded, _Failed):
                emit(loaded.event)
            else:
                computed = _tried(job, partial(_within, account, compute, loaded))
                if isinstance(computed, _Failed):
                    emit(computed.event)
                else:
                    size = bytes_of(loaded)
                    room_for(size)
                    writing.append((writer.submit(write, job, account, loaded, computed), size))
                del computed
            del loaded, future
            coming = coming or begin(early=False)
        for one, _ in writing:
            one.result()


def bytes_of(loaded: pipeline.Loaded) -> int:
    frames, height, width, _ = loaded.images.pixels.shape
    return BYTES_PER_PIXEL * frames * height * width


class _Failed(NamedTuple):
    event: Event


def _tried(job: Job, function: Callable[[], T]) -> T | _Failed:
    """What the function gives, or how it failed."""
    try:
        return function()
    except Exception as error:
        found = _Failed(_event_of(error, job.scene))
        # A future that failed and who asked it hold one another, and results, and the room of a mapped file.
        traceback.clear_frames(error.__traceback__)
        return found


def _event_of(error: Exception, scene: Scene) -> Event:
    if isinstance(error, Error):
        return failed(scene, str(error))
    if out_of_memory(error):
        return failed(scene, f"{scene.path} takes more memory than there is")
    text = f"{scene.path} met a bug of this program: {type(error).__name__}: {error}"
    return failed(scene, text) | {"traceback": traceback.format_exc()}


def failed(scene: Scene, sentence: str) -> Event:
    return {"event": "failed", "scene": scene.name, "path": scene.path, "error": sentence}
