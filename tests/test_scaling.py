"""`benchmarks/scaling.py`: the cost that is fitted to runs on several devices, and the table of these."""

import argparse
import json

import numpy as np
import pytest

from benchmarks import scaling

FACTORS = np.array([7e-3, 5e-5, 3e-3])


def row(frames, devices, seconds=None, **more):
    seconds = float(scaling.terms(frames, devices) @ FACTORS) if seconds is None else seconds
    about = {"model": "vggt", "sparsity": "0.9", "size": [518, 518], "needs_gib": 1.0, "device": "a GPU"}
    return about | {"frames": frames, "devices": devices, "seconds": seconds} | more


def test_the_cost_of_runs_that_cost_so_is_found():
    measured = [row(frames, devices) for frames in (200, 1000) for devices in (1, 2)]
    cost = scaling.fitted(measured)
    np.testing.assert_allclose(cost.factors, FACTORS, rtol=1e-6)
    assert cost.runs == 4 and cost.error < 1e-9
    assert cost(1000, 8) == pytest.approx(row(1000, 8)["seconds"])
    assert scaling.fitted(measured[:2]) is None
    assert scaling.fitted([row(n, 1) for n in (100, 200, 300)]) is None, "nothing is sent there"


def test_the_table_has_what_was_gained_and_what_two_hosts_would_take():
    parts = {scaling.SENT: {"seconds": 0.5}, scaling.IDLE: {"seconds": 0.1}}
    profiled = {"parts": parts, "profiled_seconds": 10.0}
    rows = [row(200, 1, 10.0), row(200, 2, 5.0, **profiled), row(1600, 2, 70.0)]
    text = scaling.table(rows, 50e9)
    assert "| vggt | 200 | 0.9 | 2 | 5.00 | ×2.00 | 1.0 | 5.0% | 1.0% |" in text
    assert "1600 views on 4" in text and "1600 views on 2:" not in text
    # Four arrays of half a device's tokens in bfloat16, in each of 24 layers.
    assert scaling.sent_bytes(rows[2], 16) == 24 * 4 * 100 * 1374 * 1024 * 2 / 2


def test_what_is_there_is_not_measured_again(tmp_path, monkeypatch, capsys):
    path, ran = tmp_path / "rows.jsonl", []
    path.write_text(json.dumps(row(4, 2)) + "\n")

    def run(what, case):
        ran.append((case.frames, case.devices, case.profile))
        return row(case.frames, case.devices)

    monkeypatch.setattr(scaling, "run", run)
    monkeypatch.setattr(scaling, "present", lambda: 2)
    given = argparse.Namespace(
        output=path, devices=[1, 2, 4], models=["vggt"], frames=[8, 4], sparsity=["0.9"], longest=4000
    )
    vars(given).update(config=None, size=None, block="128x64")
    scaling.measure(given)
    assert ran == [(4, 1, False), (8, 2, True), (8, 1, False)]
    assert {scaling.key(one)[1::2] for one in scaling.rows_in(path)} == {(4, 1), (4, 2), (8, 1), (8, 2)}
