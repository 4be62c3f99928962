"""What the pages name is there: links, pages of the site, commands with their options; and (slow) their
Python runs.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from fastvggt_jax.cli.app import app

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [*DOCS, *sorted(ROOT.glob("*.md")), ROOT / "fastvggt_jax" / "bundled" / "MODEL_CARD.md"]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)


def of(page):
    return str(page.relative_to(ROOT))


def anchors(page):
    """Of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=of)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", page.read_text())):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{link} is not there"
        assert not anchor or anchor in anchors(target), f"{link}: {target.name} has no such heading"


def test_the_map_of_the_sources_names_files_that_are_there():
    folders = ("benchmarks", "docs", "fastvggt_jax", "pallas_kernels", "tests")
    there = {path.name for folder in folders for path in (ROOT / folder).rglob("*.py")}
    text = BLOCK.sub("", (ROOT / "CONTRIBUTING.md").read_text())
    named = {name for name in re.findall(r"`(?:[\w/]+/)?(\w+\.py)`", text) if name != "NAME.py"}
    assert "pipeline.py" in named and named <= there


def test_the_site_has_every_page_once():
    """A notebook's page is made of it."""
    listed = re.findall(r"\S+\.md", (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2])
    pages = [*DOCS, *(one.with_suffix(".md") for one in (ROOT / "docs").rglob("*.ipynb"))]
    assert sorted(listed) == sorted(page.relative_to(ROOT / "docs").as_posix() for page in pages)


def options_of_commands():
    commands = typer.main.get_command(app).commands
    return {
        name: {"--help"} | {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
        for name, command in commands.items()
    }


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=of)
def test_commands_have_the_options_that_are_said_of_them(page):
    known = options_of_commands()
    text = page.read_text()
    lines = [line for _, block in BLOCK.findall(text) for line in block.splitlines()]
    lines += re.findall(r"`([^`]+)`", BLOCK.sub("", text))  # a span may go on in the next line
    for call in (call for line in lines for call in re.split(r"(?=\bfastvggt )|&&", line)):
        if match := re.match(r"fastvggt ([a-z]+)\s(.*)", call + " ", re.S):
            name, rest = match.groups()
            assert name in known, call
            for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", rest):
                assert option in known[name], f"{call.strip()}: {name} has no {option}"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A folder in which the pages' Python finds its photographs, and the demo's result."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(ROOT / "fastvggt_jax" / "bundled" / "views", folder / "photos")
    command = (
        "-m",
        "fastvggt_jax",
        "reconstruct",
        "--demo",
        "-o",
        folder / "demo",
        "--format",
        "cameras,scene",
    )
    subprocess.run([sys.executable, *command], check=True, cwd=ROOT)
    return folder


PROGRAMS = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in [*DOCS, ROOT / "README.md"]
    for number, (language, block) in enumerate(BLOCK.findall(page.read_text()))
    if language == "python" and re.search(r"^import ", block, re.M)  # others are parts of programs
]


@pytest.mark.slow
@pytest.mark.parametrize("code", PROGRAMS)
def test_python_runs(code, demo):
    if "jax.export" in code:
        pytest.importorskip("flatbuffers")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=demo, env=environment)
