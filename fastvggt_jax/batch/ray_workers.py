"""Several processes by Ray (extra `ray`), on one machine or a cluster, each with a GPU of its own where there
are any. They take scenes from a desk, an actor, and report to it; this process reads from there.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fastvggt_jax.batch.journal import clean
from fastvggt_jax.batch.scenes import Scene
from fastvggt_jax.batch.work import Event, Job, Model, failed, good_writers, in_turn, work
from fastvggt_jax.errors import Error, ExtraError, FailedError, InputError
from fastvggt_jax.pipeline import Settings, planned

PATIENCE = 5.0  # seconds for a cluster to answer
POLL = 0.2  # seconds


def check(workers: int | None, address: str | None) -> None:
    """Raises ExtraError, InputError, or FailedError where nobody answers."""
    try:
        import ray  # noqa: F401
    except ImportError as error:
        text = "workers needs Ray: pip install 'fastvggt_jax[ray]', or leave it out"
        raise ExtraError(text, argument="workers") from error
    if workers is not None and workers < 1:
        raise InputError(f"workers must be at least 1, not {workers}", argument="workers")
    if address is None or address in ("auto", "local"):
        return
    where = re.fullmatch(r"(?:ray://)?([^\s/:]+|\[[0-9a-fA-F:]+\]):(\d{1,5})", address)
    if where is None:
        text = f"ray must be auto, local, HOST:PORT or ray://HOST:PORT, not {address!r}"
        raise InputError(text, argument="ray")
    try:  # which Ray itself tries for a minute, and then ends the process
        socket.create_connection((where[1].strip("[]"), int(where[2])), PATIENCE).close()
    except (OSError, OverflowError) as error:
        text = f"ray {address} does not answer ({error}): give the address of a Ray cluster that runs"
        raise FailedError(text, argument="ray") from error


class Desk:
    """Scenes that wait, largest first, who has which, and what is reported of them.

    A worker may take its next scene early, to load it while it computes another, only while more scenes wait
    than there are workers: the last ones are for whoever can begin them.
    """

    def __init__(self, jobs: Sequence[Job], workers: int) -> None:
        self.waiting, self.workers = deque(jobs), workers
        self.taken: dict[int, dict[str, Job]] = {}
        self.events: list[Event] = []

    def take(self, worker: int, early: bool = False) -> Job | None:
        if len(self.waiting) <= (self.workers if early else 0):
            return None
        job = self.waiting.popleft()
        self.taken.setdefault(worker, {})[job.scene.name] = job
        return job

    def report(self, worker: int, event: Event) -> None:
        self.taken.get(worker, {}).pop(event.get("scene", ""), None)
        self.events.append(event)

    def read(self) -> list[Event]:
        """What was reported since the last time."""
        events, self.events = self.events, []
        return events

    def lost(self, worker: int) -> list[Job] | None:
        """What a worker had that has died; None if it never took any."""
        taken = self.taken.pop(worker, None)
        return None if taken is None else list(taken.values())

    def left(self) -> int:
        return len(self.waiting)


def run(
    jobs: Sequence[Job],
    settings: Settings,
    record: Callable[[Event], None],
    finished: Callable[[Scene], bool],
    workers: int | None,
    address: str | None,
    prepare: Callable[[], None],
    by: Mapping[str, str] | None,
) -> None:
    """The jobs, by at most so many workers; by default one for each GPU, or where there is none one in all.

    A scene whose worker dies is tried once more, alone in a new worker, since others that it had with it are
    not to blame; then it has failed.
    """
    import ray

    with _cluster(address):
        try:
            _Crew(jobs, settings, record, finished, workers, prepare, by).run()
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, Error):
                raise cause from error
            if isinstance(error, ray.exceptions.RayTaskError):
                raise
            text = f"Ray has failed ({_first_line(error)}): start the same command again, it goes on"
            raise FailedError(text) from error
    for job in jobs:  # of workers that were ended
        clean(job.settings.output)


@contextlib.contextmanager
def _cluster(address: str | None) -> Iterator[None]:
    import ray

    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray's own handler of this signal would end the process before anything is cleaned up.
    ending = signal.getsignal(signal.SIGTERM)
    try:
        here = dict(include_dashboard=False) if address in (None, "local") else {}
        how: dict[str, Any] = dict(log_to_driver=False, logging_level="ERROR", configure_logging=True)
        ray.init(address=address or "local", **how, **here)
    except (ConnectionError, RuntimeError, ValueError) as error:
        text = f"ray could not be started or reached ({_first_line(error)})"
        raise FailedError(f"{text}: give the address of a Ray cluster that runs", argument="ray") from error
    if ending is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, ending)
    try:
        yield
    finally:
        ray.shutdown()


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".:") if lines else type(error).__name__


def _needs(workers: int | None) -> tuple[int, dict[str, float], int]:
    """(how many workers, what each asks Ray for, and the CPU cores that there are for each). Raises
    InputError where there is less.
    """
    import ray

    there = ray.cluster_resources()
    gpus = 0 if os.environ.get("JAX_PLATFORMS") == "cpu" else int(there.get("GPU", 0))
    cores = int(there.get("CPU", 1))
    kind, most = ("GPUs", gpus) if gpus else ("CPU cores", cores)
    count = workers or (gpus or 1)
    if count > most:
        raise InputError(
            f"workers must be at most {most}, the {kind} that Ray has, not {count}", argument="workers"
        )
    return count, {"num_gpus": 1 if gpus else 0, "num_cpus": 1}, cores // count


class _Crew:
    """The workers that run, each a task of Ray's."""

    def __init__(
        self,
        jobs: Sequence[Job],
        settings: Settings,
        record: Callable[[Event], None],
        finished: Callable[[Scene], bool],
        workers: int | None,
        prepare: Callable[[], None],
        by: Mapping[str, str] | None,
    ) -> None:
        import ray

        self.settings, self.record, self.finished = settings, record, finished
        self.prepare, self.by = prepare, by
        self.most, needs, self.cores = _needs(workers)
        self.most = min(self.most, len(jobs))
        self.desk = ray.remote(num_cpus=0)(Desk).remote(list(jobs), self.most)
        # A process for each: another one's would hold the GPU's memory.
        self.task = ray.remote(**needs, max_retries=0, max_calls=1)(_work)
        self.running: dict[Any, tuple[int, Job | None]] = {}
        self.again: list[Job] = []
        self.ended: set[str] = set()
        self.started = 0

    def run(self) -> None:
        import ray

        kinds = ("WorkerCrashedError", "NodeDiedError", "OutOfMemoryError", "LocalRayletDiedError")
        crashed = tuple(getattr(ray.exceptions, kind) for kind in kinds)
        self._refill()
        while self.running:
            ended, _ = ray.wait(list(self.running), timeout=POLL)
            self._read()
            for task in ended:
                worker, alone = self.running.pop(task)
                try:
                    ray.get(task)
                except crashed as error:
                    self._read()
                    self._lost(worker, alone, _first_line(error))
            self._refill()
        self._read()

    def _refill(self) -> None:
        import ray

        while len(self.running) < self.most and (self.again or ray.get(self.desk.left.remote())):
            alone = self.again.pop(0) if self.again else None
            self.started += 1
            of = (self.desk, self.settings, self.prepare, self.by, self.cores, alone)
            self.running[self.task.remote(self.started, *of)] = self.started, alone

    def _read(self) -> None:
        import ray

        for event in ray.get(self.desk.read.remote()):
            self.ended.add(event.get("scene", ""))
            self.record(event)

    def _lost(self, worker: int, alone: Job | None, why: str) -> None:
        import ray

        lost = [alone] if alone is not None else ray.get(self.desk.lost.remote(worker))
        if lost is None:
            text = (
                f"a Ray worker died before it took a scene ({why}): look whether the machine has the memory"
            )
            raise FailedError(f"{text} for the weights, then start the same command again, it goes on")
        for job in lost:
            if job.scene.name in self.ended:
                continue
            clean(job.settings.output)
            if self.finished(job.scene):  # it died before it could say so
                self.record({"event": "done", "scene": job.scene.name, "output": str(job.settings.output)})
            elif alone is None:
                self.again.append(job)
            else:
                text = f"the worker of {job.scene.path} died twice, the second time with nothing else to do"
                self.record(failed(job.scene, f"{text} ({why}): it may take more memory than there is"))


def _work(
    worker: int,
    desk: Any,
    settings: Settings,
    prepare: Callable[[], None],
    by: Mapping[str, str] | None,
    cores: int,
    alone: Job | None,
) -> None:
    """What a worker does, with so many CPU cores: `alone`, or what it gets at the desk."""
    import ray

    prepare()
    report = lambda event: ray.get(desk.report.remote(worker, event))
    take = lambda early: ray.get(desk.take.remote(worker, early))
    model = Model.of(settings, planned(settings), report)
    work(model, take if alone is None else in_turn([alone]), report, by, good_writers(cores))
