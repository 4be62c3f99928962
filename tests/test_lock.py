"""requirements-dev.txt, with which CI runs what pip-audit has looked at, is that of pyproject.toml."""

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
packaging = pytest.importorskip("packaging.requirements")
from packaging.utils import canonicalize_name  # noqa: E402

UPDATE = "uv pip compile --universal --no-annotate --python-version 3.11 --extra dev pyproject.toml"


def wanted(texts, extras):
    """The requirements of these texts, those of our own extras in their place."""
    for text in texts:
        requirement = packaging.Requirement(text)
        if requirement.name == "fastvggt_jax":
            for extra in requirement.extras:
                yield from wanted(extras[extra], extras)
        else:
            yield requirement


def test_every_dependency_is_locked_to_a_version_that_it_allows():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    locked: dict[str, list[str]] = {}
    for line in (ROOT / "requirements-dev.txt").read_text().splitlines():
        if not line.startswith("#"):
            one = packaging.Requirement(line)
            (specifier,) = one.specifier
            locked.setdefault(canonicalize_name(one.name), []).append(specifier.version)
    for requirement in wanted([*project["dependencies"], *extras["dev"]], extras):
        versions = locked.get(canonicalize_name(requirement.name), [])
        allowed = [
            version for version in versions if requirement.specifier.contains(version, prereleases=True)
        ]
        assert versions and allowed == versions, (
            f"{requirement}: {versions}; {UPDATE} -o requirements-dev.txt"
        )
