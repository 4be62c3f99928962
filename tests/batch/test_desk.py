"""How scenes are shared out among workers, without Ray: who is handed one early, and who is not."""

import threading
from functools import partial
from pathlib import Path

import jax
import pytest

from fastvggt_jax import pipeline
from fastvggt_jax.batch import work as batch_work
from fastvggt_jax.batch.ray_workers import Desk
from fastvggt_jax.batch.scenes import Scene
from fastvggt_jax.batch.work import Job, Model, in_turn, work


def jobs(count):
    """Called 0, 1, ..."""
    settings = pipeline.Settings(photos=(), weights="", output=Path("out"))
    return [Job(Scene(str(i), str(i)), settings) for i in range(count)]


def done_of(events):
    assert {event["event"] for event in events} == {"done"}, events
    return [event["scene"] for event in events]


def name(job):
    return job and job.scene.name


def test_the_last_scenes_are_for_whoever_can_begin_them():
    desk = Desk(jobs(4), workers=2)
    assert name(desk.take(1)) == "0" and name(desk.take(1, early=True)) == "1", "3 wait, of 2 workers"
    assert name(desk.take(2)) == "2"
    assert desk.take(1, early=True) is None and desk.take(2, early=True) is None
    assert name(desk.take(2)) == "3"
    assert desk.take(1) is None and desk.left() == 0
    assert sorted(map(name, desk.lost(1))) == ["0", "1"]


@pytest.fixture
def computed(monkeypatch):
    """Scenes as `work` computes them: names, and events that those of a name wait for."""
    begun, wait_for = [], {}

    def compute(scene, *_, **__):
        begun.append(scene)
        assert scene not in wait_for or wait_for[scene].wait(30)

    monkeypatch.setattr(pipeline, "load", lambda settings, plan, step: settings.photos[0])
    monkeypatch.setattr(pipeline, "compute", compute)
    monkeypatch.setattr(pipeline, "write", lambda *_: {})
    monkeypatch.setattr(batch_work, "bytes_of", lambda loaded: 1)
    return begun, wait_for


MODEL = Model(None, None, None, {})


def of_photographs(count):
    return [
        job._replace(settings=pipeline.Settings((job.scene.name,), "", Path("out"))) for job in jobs(count)
    ]


def test_a_worker_that_is_handed_nothing_early_asks_again(computed):
    done, _ = computed
    desk, events = Desk(of_photographs(4), workers=2), []

    def take(early):
        job = desk.take(1, early)
        done.append((early, name(job)))
        return job

    work(MODEL, take, events.append)
    assert done_of(events) == ["0", "1", "2", "3"]
    assert done == [
        *[(False, "0"), (True, "1"), "0"],
        *[(True, None), "1"],
        *[(False, "2"), (True, None), "2"],
        *[(False, "3"), (True, None), "3"],
        (False, None),
    ]


def test_of_three_scenes_the_worker_that_is_done_first_takes_the_third(computed):
    begun, wait_for = computed
    wait_for["0"] = threading.Event()  # the large one
    desk, events = Desk(of_photographs(3), workers=2), []
    first = threading.Thread(target=work, args=(MODEL, partial(desk.take, 1), events.append))
    first.start()
    while "0" not in begun:
        first.join(0.01)
    work(MODEL, partial(desk.take, 2), events.append)
    assert done_of(events) == ["1", "2"], "the first worker has none of these in hand"
    wait_for["0"].set()
    first.join(30)
    assert done_of(events) == ["1", "2", "0"]


def test_scenes_that_take_long_to_write_keep_none_waiting_but_are_no_more_than_writers(computed, monkeypatch):
    begun, _ = computed
    written, go, both = [], threading.Event(), threading.Barrier(3)

    def write(loaded, *_):
        written.append(loaded)
        if loaded in ("0", "1"):
            both.wait(30)
            assert go.wait(30)
        return {}

    def compute(scene, *_, **__):
        begun.append(scene)
        if scene == "2":  # its turn has come while both writers are at work
            both.wait(30)
            assert sorted(written) == ["0", "1"] and not events
            go.set()

    monkeypatch.setattr(pipeline, "write", write)
    monkeypatch.setattr(pipeline, "compute", compute)
    events = []
    work(MODEL, in_turn(of_photographs(4)), events.append, writers=2)
    assert sorted(done_of(events)) == begun == ["0", "1", "2", "3"]


def test_as_many_writers_as_the_cores_of_a_process_beside_a_gpu(monkeypatch):
    assert batch_work.good_writers(64) == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert [batch_work.good_writers(cores) for cores in (0, 1, 7, 16, 64)] == [1, 1, 3, 8, 8]
