"""What `pip install` brings: the wheel's contents, its size, and its version, which stands in one place."""

import subprocess
import sys
import zipfile
from email import message_from_bytes
from importlib.metadata import version
from pathlib import Path

import pytest

import fastvggt_jax

ROOT = Path(__file__).parents[1]
PACKAGES = ("convert", "fastvggt_jax", "pallas_kernels")
DATA = (  # besides the .py files, by pattern, and how many there are at least
    ("fastvggt_jax/py.typed", 1),
    ("fastvggt_jax/bundled/MODEL_CARD.md", 1),
    ("fastvggt_jax/bundled/mini.safetensors", 1),
    ("fastvggt_jax/bundled/views/*.jpg", 8),
    ("fastvggt_jax/seeing/*.html", 1),
    ("pallas_kernels/tuned/*.json", 1),
)
INFO = ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt", "licenses/LICENSE")
MOST_BYTES = 45_000_000


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built by the installed setuptools, with nothing written into the checkout and nothing compressed, so
    that it takes a second: an upper bound of the wheel that is released.
    """
    if int(version("setuptools").split(".")[0]) < 77:
        pytest.skip("pyproject.toml needs setuptools >= 77")
    out = tmp_path_factory.mktemp("wheel")
    build = ["egg_info", "--egg-base", out, "build", "--build-base", out / "build"]
    build += ["bdist_wheel", "--dist-dir", out, "--bdist-dir", out / "tree", "--compression", "stored"]
    command = [sys.executable, "-c", "import setuptools; setuptools.setup()", "--quiet", *map(str, build)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (found,) = out.glob("*.whl")
    return found


def test_the_wheel_holds_the_packages_and_their_data_and_nothing_else(wheel):
    expected = {f"fastvggt_jax-{fastvggt_jax.__version__}.dist-info/{name}" for name in INFO}
    for package in PACKAGES:
        expected |= {str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("*.py")}
    for pattern, least in DATA:
        files = {str(path.relative_to(ROOT)) for path in ROOT.glob(pattern)}
        assert len(files) >= least, pattern
        expected |= files
    with zipfile.ZipFile(wheel) as file:
        found = set(file.namelist())
    assert sorted(found - expected) == [], "more than there should be"
    assert sorted(expected - found) == [], "less than there should be"


def test_the_wheel_is_small_enough_to_be_downloaded_without_a_thought(wheel):
    assert wheel.stat().st_size <= MOST_BYTES


def test_the_version_is_that_of_the_package(wheel):
    with zipfile.ZipFile(wheel) as file:
        name = f"fastvggt_jax-{fastvggt_jax.__version__}.dist-info/METADATA"
        metadata = message_from_bytes(file.read(name))
    assert metadata["Version"] == fastvggt_jax.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert f"\n## {fastvggt_jax.__version__}" in (ROOT / "CHANGELOG.md").read_text()
