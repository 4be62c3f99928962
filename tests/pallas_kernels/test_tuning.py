"""How the kernel's config is chosen, and the file that autotune writes."""

import json

import pytest

from pallas_kernels import TuningConfig, autotune, tuning

H100 = "NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize(
    "name", [path.name for path in (tuning.resources.files("pallas_kernels") / "tuned").iterdir()]
)
def test_tuned_configs_can_run(name):
    content = json.loads((tuning.resources.files("pallas_kernels") / "tuned" / name).read_text())
    assert name == tuning.tuned_file(content["setting"]["device"])
    known = {
        tuning.key(h, (q, k)): (h, (q, k))
        for h in (64, 128)
        for q in range(64, 513, 64)
        for k in range(8, 257, 8)
    }
    for key, config in content["configs"].items():
        head_dim, block = known[key]
        assert TuningConfig(*config) in tuning.search_space(head_dim, block)


def test_lookup_prefers_what_was_measured():
    found = tuning._tuned(H100)[tuning.key(64, (128, 64))]
    assert tuning.lookup(H100, 64, (128, 64)) == TuningConfig(*found)
    assert tuning.lookup("another GPU", 64, (128, 64)) == tuning.heuristic(64, (128, 64))
    assert tuning.lookup(H100, 128, (128, 256)) is None


def test_a_config_that_does_not_fit_says_why():
    assert "1, 2 or 3" in TuningConfig(4, 128, 2).why_not(64, (256, 64))
    assert "query rows" in TuningConfig(3, 128, 2).why_not(64, (128, 64))
    assert "multiple" in TuningConfig(2, 128, 2).why_not(64, (128, 96))
    assert "at least 2" in TuningConfig(2, 128, 1).why_not(64, (128, 64))
    assert "shared memory" in TuningConfig(2, 256, 4).why_not(64, (128, 64))
    assert "registers" in TuningConfig(3, 256, 2).why_not(64, (192, 64))
    assert TuningConfig(2, 192, 3).why_not(64, (128, 64)) is None


@pytest.mark.parametrize(
    "block", [(128, 64), (192, 64), (64, 64), (256, 64), (128, 128), (128, 32), (128, 192), (384, 128)]
)
def test_the_heuristic_is_in_the_search_space(block):
    assert tuning.heuristic(64, block) in tuning.search_space(64, block)


def test_autotune_adds_to_its_file(tmp_path):
    path = tmp_path / "tuned" / "gpu.json"
    autotune.write(path, {"device": "a"}, {"x": [2, 128, 2]})
    autotune.write(path, {"device": "b"}, {"y": [2, 192, 2], "x": [3, 128, 2]})
    assert json.loads(path.read_text()) == {
        "setting": {"device": "b"},
        "configs": {"x": [3, 128, 2], "y": [2, 192, 2]},
    }
    assert [p.name for p in path.parent.iterdir()] == ["gpu.json"]


@pytest.mark.parametrize(
    "arguments, message", [(["--block", "128x300"], "no config fits"), ([], "needs a Hopper GPU")]
)
def test_autotune_refuses_in_one_sentence(arguments, message, capsys, monkeypatch):
    class Other:
        platform, device_kind = "cpu", "cpu"

    monkeypatch.setattr(autotune.jax, "devices", lambda: [Other])
    assert autotune.main(arguments) == 2
    assert message in capsys.readouterr().err
