"""`fastvggt batch`: many scenes, each of which succeeds or fails by itself."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from fastvggt_jax.batch.journal import Journal, journal, settings_of
from fastvggt_jax.batch.scenes import Scene, find_scenes, holds_video, sized
from fastvggt_jax.batch.work import Event, Model, failed, in_turn, job_of, work
from fastvggt_jax.errors import InputError
from fastvggt_jax.pipeline import Settings, planned
from fastvggt_jax.refine.intrinsics import read_intrinsics
from fastvggt_jax.sources.images import check_options


def run(
    scenes: Sequence[str],
    settings: Settings,
    emit: Callable[[Event], None],
    *,
    workers: int | None = None,
    ray: str | None = None,
    prepare: Callable[[], None] = lambda: None,
    by: Mapping[str, str] | None = None,
) -> Event:
    """Reconstructs the scenes that `batch.scenes.find_scenes` finds into folders of `settings.output`, those
    with most views first, and goes on where an earlier run of the same settings was ended.

    settings: of all scenes; `photos` is not looked at.
    emit: gets an event as it happens, JSON values: "start", "warning", and of each scene "finished" (by an
      earlier run), "done" or "failed", see `batch.work.work`. They are in batch.jsonl too.
    workers, ray: so many processes by Ray, and the address of its cluster; without either this process does
      it all. prepare: called in every process before JAX is used; it can be pickled.
    by: what each scene.json says of the command, see `batch.work.work`.
    Beside a GPU it starts processes that write, as multiprocessing does: a script that calls this does so
    below `if __name__ == "__main__":`, since they read it too.

    Returns the last event, "end", with how many scenes were done, had failed and were finished before. Raises
    what is wrong whatever the scene: InputError, MissingError, WeightsError, TargetError, ExtraError,
    FileError; FailedError where Ray has failed.
    """
    start = time.perf_counter()
    found = find_scenes(scenes, settings.output)
    if ray is not None or workers is not None:
        from fastvggt_jax.batch import ray_workers

        ray_workers.check(workers, ray)
    prepare()
    of_model = _with_what_is_known(settings, found)
    plan = planned(of_model)
    check_options(plan.model.image_policy, settings.mode, settings.size, settings.white)
    if settings.intrinsics is not None:
        read_intrinsics(settings.intrinsics)
    own = _of_each(found, settings)
    found = [sized(scene, of.fps, of.max_frames) for scene, of in zip(found, own, strict=True)]
    settings_by_name = {scene.name: of for scene, of in zip(found, own, strict=True)}
    with journal(settings.output, settings_of(settings), found, overwrite=settings.overwrite) as log:
        finished = [scene for scene in found if log.finished(scene)]
        wrong = [scene for scene in found if scene.wrong and scene not in finished]
        left = [scene for scene in found if scene not in finished and scene not in wrong]
        left.sort(key=lambda scene: -scene.size)
        record = _Record(log, emit)
        counts = {"scenes": len(found), "finished": len(finished), "views": sum(one.size for one in left)}
        emit({"event": "start", "output": str(log.folder)} | counts)
        for scene in finished:
            emit({"event": "finished", "scene": scene.name, "output": str(log.folder / scene.name)})
        for scene in wrong:
            record(failed(scene, scene.wrong or ""))
        log.add(left)
        jobs = [job_of(scene, settings_by_name[scene.name], replaces=log.replaces(scene)) for scene in left]
        if jobs and (ray is not None or workers is not None):
            ray_workers.run(jobs, of_model, record, log.finished, workers, ray, prepare, by)
        elif jobs:
            work(Model.of(of_model, plan, record), in_turn(jobs), record, by)
    seconds = round(time.perf_counter() - start, 3)
    done = {"done": record.done, "failed": record.failed, "finished": len(finished)}
    return {"event": "end"} | done | {"views": record.views, "seconds": seconds}


class _Record:
    """Writes events down, then passes them on; in any thread."""

    def __init__(self, log: Journal, emit: Callable[[Event], None]) -> None:
        self.done = self.failed = self.views = 0
        self._log, self._emit, self._lock = log, emit, threading.Lock()
        self._said: set[str] = set()

    def __call__(self, event: Event) -> None:
        with self._lock:
            if event["event"] == "warning":  # each worker has the same to say
                if event["text"] in self._said:
                    return
                self._said.add(event["text"])
            self.done += event["event"] == "done"
            self.failed += event["event"] == "failed"
            self.views += len(event.get("photographs", ()))
            self._log.write(event)
            self._emit(event)


def _with_what_is_known(settings: Settings, scenes: Sequence[Scene]) -> Settings:
    """For the model, which has to take what any of the scenes knows beforehand."""
    names = ("cameras", "intrinsics", "depth")
    known = {name: value for scene in scenes for name, value in scene.options.items() if name in names}
    return dataclasses.replace(settings, **known)


def _of_each(scenes: Sequence[Scene], settings: Settings) -> list[Settings]:
    """Each scene's settings: those of videos are for videos alone. Raises InputError if there are none."""
    given = [name for name in ("fps", "max_frames") if getattr(settings, name) is not None]
    if not given:
        return [settings] * len(scenes)
    videos = [holds_video(scene) for scene in scenes]
    if not any(videos):
        raise InputError(f"{given[0]} is for a video, and none was given", argument=given[0])
    without = dataclasses.replace(settings, fps=None, max_frames=None)
    return [settings if video else without for video in videos]
