"""One scene on several devices: the same numbers as on one, from a program that sends what it should."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


def begun(*arguments: object, devices: int = 8) -> subprocess.Popen:
    """A function of `eight_devices.py`, in a process of so many devices."""
    flags = os.environ.get("XLA_FLAGS", "") + f" --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, "-m", "tests.eight_devices", *map(str, arguments)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)


def found_by(process: subprocess.Popen):
    out, error = process.communicate(timeout=600)
    assert not process.returncode, error
    return json.loads(out.splitlines()[-1])


def run(*arguments: object):
    return found_by(begun(*arguments))


TOGETHER = ("heads_that_do_not_divide", "program", "gradient", "refusals")
TOGETHER += ("compiled_training", "training_starts")


@pytest.fixture(scope="module")
def found_together():
    """What a case of TOGETHER found, in one process, which imports JAX once; the first that fails ends it."""
    process = begun(",".join(TOGETHER))
    out, error = process.communicate(timeout=600)
    found = dict(zip(TOGETHER, map(json.loads, out.splitlines()), strict=False))

    def of(case: str):
        assert case in found, error
        return found[case]

    return of


@pytest.mark.slow  # the other cases share its parts
def test_scenes_and_frames_on_two_axes_and_a_layer_of_each_kind():
    found = run("plan")
    assert found["error"] < 1e-5
    frame, *sparse, dense = found["density"]
    assert frame == pytest.approx(1 / 5) and max(sparse) < 1 == dense
    assert found["spec"][0] == "scenes"


@pytest.mark.slow
def test_fewer_frames_and_fewer_heads_than_devices():
    found = run("fewer_frames_than_devices")
    assert found["error"] < 1e-5 and max(found["density"]) < 1


def test_pi3_with_heads_that_do_not_divide_on_explicit_axes(found_together):
    found = found_together("heads_that_do_not_divide")
    assert found["error"] < 1e-5 and max(found["density"]) < 1


def test_tokens_go_to_heads_and_only_camera_tokens_to_all(found_together):
    found = found_together("program")
    assert found["error"] < 1e-5 and found["spec"] == [None, "frames"]
    sent = found["sent"]
    # q, k, v and the result of the one layer that is scanned, each a device's share of the tokens.
    assert sent["all-to-all"] == [found["keys"] // 4] * 4
    assert sent["all-gather"] == [found["camera tokens"]] and found["camera tokens"] < found["keys"]
    assert not sent["all-reduce"] and not sent["collective-permute"]


def test_the_gradient_of_the_training_loss(found_together):
    found = found_together("gradient")
    assert found["error"] < 1e-5 and found["length"] > 0.1


def test_training_compiles_its_programs_for_all_devices(found_together):
    """Else a kernel that XLA cannot partition would compute the whole batch on each."""
    assert found_together("compiled_training")["seen"] == [True, True]


def test_training_starts_with_a_share_of_its_state_on_each_device(found_together):
    made, first_step = found_together("training_starts")["share"]
    assert made < first_step < 1.1 / 8


@pytest.mark.slow
def test_the_gradient_of_the_training_loss_of_pi3():
    found = run("gradient_of_pi3")
    assert found["error"] < 1e-5 and found["length"] > 0.1


@pytest.mark.slow
def test_pi3x_whose_metric_token_attends_to_the_frames_of_all_devices():
    found = run("pi3x")
    assert found["error"] < 1e-5
    assert found["refused"].startswith(
        "conditions were given for images that are spread over several devices"
    )


@pytest.mark.slow
def test_tracks_and_less_memory():
    assert run("tracks")["error"] < 1e-5


def test_what_cannot_be_is_one_sentence(found_together):
    said = found_together("refusals")
    assert said["too many"] == "devices=9 is more than there are: 8 × cpu"
    assert said["none"] == "devices must be a number from 1 on, or all, not 0"
    assert said["other axes"].startswith("images lie on a mesh of explicit axes ('data',), none of which is")
    assert said["other axes, not explicit"] is None  # XLA partitions the program
    assert said["scenes"].startswith("images hold 3 scenes, which must be a multiple of the 2 devices")
    assert said["intermediates"].startswith("intermediates cannot be captured")
    assert said["parameters"].startswith("mesh has the axes ('data',), none of which is 'frames' or 'scenes'")


def same_depth(folder: Path, other: Path) -> None:
    files = sorted((folder / "depth").glob("*.npz"))
    assert len(files) == 3
    for file in files:
        one, expected = np.load(file), np.load(other / "depth" / file.name)
        for name in ("depth", "conf", "cam_from_world"):
            largest = np.abs(expected[name]).max()
            np.testing.assert_allclose(one[name], expected[name], rtol=0, atol=2e-5 * largest)


@pytest.mark.slow
def test_a_reconstruction_on_several_devices_and_on_two_hosts(tmp_path):
    expected = run("reconstructed", tmp_path / "one")
    shared = run("reconstructed", tmp_path / "shared", 2)
    assert shared["device"] == "2 × cpu" and shared["files"] == expected["files"]
    same_depth(tmp_path / "shared", tmp_path / "one")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    hosts = [begun("host", number, address, tmp_path / "hosts", devices=2) for number in (0, 1)]
    first, second = map(found_by, hosts)
    assert first["device"] == "4 × cpu" and not second  # which writes nothing
    same_depth(tmp_path / "hosts", tmp_path / "one")


@pytest.mark.slow
def test_an_evaluation_spreads_its_scenes_over_the_devices():
    found = run("evaluated")
    assert found["devices"] == [1, 8] and found["error"] < 1e-4 and found["sparsity"] > 0.1
