"""Names that are too long, pipes and folders in the place of files, links in a circle: a sentence at once."""

import os

import pytest
from typer.testing import CliRunner

from fastvggt_jax.cli.app import app
from fastvggt_jax.errors import InputError, MissingError, TargetError
from fastvggt_jax.io.files import check_output_folder, regular_file
from fastvggt_jax.io.json_files import parse_json, read_json

LONG = "a" * 300


def refused(*arguments):
    """The one sentence."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code in (1, 2) and isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error ")]
    return line


COMMANDS = {  # of a weight file, a folder or a file that is NAME
    "info": ("info", "NAME"),
    "weights": ("reconstruct", "in.safetensors", "-o", "out", "-c", "NAME"),
    "evaluate": ("evaluate", "synthetic", "-c", "NAME"),
    "export": ("export", "NAME", "--format", "ply"),
    "convert": ("convert", "NAME", "out.safetensors"),
    "convert --config": ("convert", "in.safetensors", "out.safetensors", "--config", "NAME"),
    "train": ("train", "NAME", "--workdir", "out"),
    "bench --config": ("bench", "--config", "NAME"),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from safetensors.numpy import save_file

    from tests.convert.test_pretrained import OFFICIAL

    save_file({"aggregator.x": OFFICIAL["net.out.bias"]}, tmp_path / "in.safetensors")
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_a_name_that_is_too_long(folder, command):
    assert "error " in refused(*(LONG if word == "NAME" else word for word in COMMANDS[command]))
    assert os.listdir(folder) == ["in.safetensors"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(folder, command):
    os.mkfifo(folder / "pipe")
    line = refused(*("pipe" if word == "NAME" else word for word in COMMANDS[command]))
    assert "pipe" in line
    assert sorted(os.listdir(folder)) == ["in.safetensors", "pipe"]


@pytest.mark.parametrize(
    "command",
    [
        ("convert", "in.safetensors", LONG + ".safetensors"),
        ("train", "config.py", "--workdir", LONG),
        ("train", "config.py", "--workdir", "in.safetensors"),
    ],
)
def test_what_cannot_be_written_is_said(folder, command):
    (folder / "config.py").write_text(
        "from fastvggt_jax.train import Shape, TrainConfig\n"
        "from fastvggt_jax import VGGT\n"
        "def get_config():\n"
        "    shapes = (Shape(1, 2, 28, 28),)\n"
        "    return TrainConfig(model=VGGT(**VGGT.tiny), shapes=shapes, steps=1, warmup_steps=0)\n"
    )
    line = refused(*command)
    assert "is longer than 255 bytes" in line or "is a file" in line


def test_a_folder_that_has_no_room_for_the_paths_in_it(folder):
    deep = folder
    while len(str(deep)) < 3_700:
        deep = deep / ("d" * 200)
    with pytest.raises(TargetError, match="a path may have 4096 bytes"):
        check_output_folder(deep)


def test_a_link_to_itself_is_no_output(folder):
    (folder / "out").symlink_to("out")
    line = refused("reconstruct", "--demo", "-o", "out")
    assert "the --output folder out cannot be used: Too many levels of symbolic links" in line


def test_regular_files_alone_are_read(folder):
    os.mkfifo(folder / "pipe")
    assert regular_file("in.safetensors").name == "in.safetensors"
    with pytest.raises(InputError, match="is a folder; give a file") as raised:
        regular_file(folder, "config")
    assert raised.value.argument == "config"
    with pytest.raises(InputError, match="pipe is no regular file"):
        regular_file("pipe")
    for name in (LONG, "nowhere", "in.safetensors/x", "a\0b"):
        with pytest.raises(MissingError, match="no such file"):
            regular_file(name)


@pytest.mark.parametrize("text", [b"[" * 100_000, b"{", b"\xff\xfe", b"", b"9" * 5_000])
def test_what_is_no_json_is_a_sentence(folder, text):
    (folder / "a.json").write_bytes(text)
    with pytest.raises(InputError, match="a.json is no JSON file: ") as raised:
        read_json("a.json", "config")
    assert raised.value.argument == "config" and len(str(raised.value)) < 300
    with pytest.raises(ValueError):
        parse_json(text)


def test_json_may_begin_with_a_byte_order_mark(folder):
    (folder / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json("a.json") == {"a": 1}
