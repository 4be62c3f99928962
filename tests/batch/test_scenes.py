"""Which scenes arguments stand for, what they are called, and what is wrong with an index, in a sentence."""

import json

import numpy as np
import pytest
from PIL import Image

from fastvggt_jax.batch.scenes import find_scenes, sized
from fastvggt_jax.errors import Error


@pytest.fixture
def here(tmp_path, monkeypatch):
    """north/room, south/room and hall with 1, 2 and 3 photographs."""
    monkeypatch.chdir(tmp_path)
    for folder, count in (("north/room", 1), ("south/room", 2), ("hall", 3)):
        (tmp_path / folder).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / folder / f"{i}.png")
    return tmp_path


def named(*given):
    return {scene.name: scene for scene in find_scenes(given, "out")}


def test_scenes_are_named_after_their_folders_and_those_around_where_these_are_alike(here):
    found = {name: scene.path for name, scene in named("*/room", "hall").items()}
    assert found == {
        "north-room": str(here / "north" / "room"),
        "south-room": str(here / "south" / "room"),
        "hall": str(here / "hall"),
    }
    assert list(named("north/room/*.png")) == ["room"]
    with pytest.raises(Error, match="would both be called .*hall: give them other names, in an index"):
        named("hall", "hall/*.png")


def test_sizes_are_counted(here):
    found = named("*/room", "hall")
    assert {name: sized(scene, None, None).size for name, scene in found.items()} == {
        "north-room": 1,
        "south-room": 2,
        "hall": 3,
    }
    (pattern,) = named("hall/[01].png").values()
    assert pattern.name == "hall" and sized(pattern, None, None).size == 2
    (gone,) = named("gone").values()
    assert "gone does not exist" in (sized(gone, None, None).wrong or "")


def test_a_video_is_counted_by_its_length(here):
    pytest.importorskip("av")
    from tests.sources.test_video import write

    write(here / "clip.mp4", np.arange(0, 4, 0.1))
    (clip,) = named("*.mp4").values()
    assert clip.name == "clip" and sized(clip, None, None).size == 8
    assert sized(clip, 1.0, None).size == 4 and sized(clip, None, 3).size == 3


def test_the_output_folder_is_no_scene(here):
    (here / "out").mkdir()
    assert list(named("*")) == ["hall", "north", "south"]


def test_indices(here):
    (here / "index").mkdir()
    lines = [
        {"scene": "../hall", "name": "the hall", "fps": 3},
        {"path": "../*/room", "masks": "masks", "intrinsics": "90,90,2,2"},
    ]
    (here / "index" / "a.jsonl").write_text("\n\n".join(map(json.dumps, lines)))
    found = list(named("index/a.jsonl").values())
    assert [one.name for one in found] == ["the hall", here.name]
    assert found[0].path == str(here / "hall") and found[0].options == {"fps": 3}
    masks = str(here / "index" / "masks")
    assert found[1].options == {"masks": masks, "intrinsics": "90,90,2,2"}
    (here / "index" / "b.txt").write_text("# two\n../hall\n\n../north/room\n")
    assert list(named("index/b.txt")) == ["hall", "room"]


def test_a_parquet_index(here):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    most = pyarrow.array([3.0, float("nan")])  # as a table with an empty place holds them
    table = pyarrow.table({"scene": ["hall", "north/room"], "name": ["a", None], "max_frames": most})
    parquet.write_table(table, here / "index.parquet")
    assert [(name, one.options) for name, one in named("index.parquet").items()] == [
        ("a", {"max_frames": 3}),
        ("room", {}),
    ]
    (here / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(Error, match="bad.parquet is damaged, or no parquet file"):
        named("bad.parquet")


@pytest.mark.parametrize(
    "line, words",
    [
        ("{", "line 2 of the index bad.jsonl is no JSON"),
        ('"hall"', "row 2 of the index bad.jsonl must be an object such as"),
        ('{"name": "a"}', "row 2 of the index bad.jsonl must have a scene or a path"),
        ('{"scene": "b", "path": "b"}', "must have a scene or a path, one of the two"),
        ('{"scene": "b", "fsp": 2}', "has 'fsp'; what it may have is scene or path, name, fps"),
        ('{"scene": "b", "fps": "2"}', "fps in row 2 of the index bad.jsonl must be a number, not '2'"),
        ('{"scene": "b", "fps": true}', "must be a number, not True"),
        ('{"scene": ["b"]}', "must be a text"),
        ('{"scene": "b/1.png"}', "b/1.png in row 2 of the index bad.jsonl is a photograph, not a scene"),
        ('{"scene": "b", "name": "../b"}', "the name '../b' of the scene"),
        ('{"scene": "b", "name": ".b"}', "cannot be a folder's: leave out"),
        ('{"scene": "b", "name": "' + "x" * 201 + '"}', "is longer than 200 bytes"),
        (
            '{"scene": "b", "name": "one"}\n{"scene": "c", "name": "ONE"}',
            "would both be called ONE: give them",
        ),
        ('{"scene": "hall"}', "hall is given twice"),
    ],
)
def test_what_is_wrong_with_an_index_is_said(here, line, words):
    (here / "bad.jsonl").write_text('{"scene": "hall"}\n' + line)
    with pytest.raises(Error) as raised:
        named("bad.jsonl")
    assert words in str(raised.value)


@pytest.mark.parametrize(
    "given, words",
    [
        ([], "scenes were not given"),
        ([""], "holds an empty text"),
        (["gone.jsonl"], "gone.jsonl: no such file"),
        (["hall/0.png"], "hall/0.png is a photograph, not a scene: give its folder"),
        (["gone/*"], "the pattern gone/* stands for no folder, video or photograph"),
        (["hall", "./hall"], "is given twice"),
        (["empty.txt"], "the index empty.txt names no scenes"),
        (["latin.txt"], "latin.txt is no text in UTF-8"),
        (["mixed/*"], "stands for photographs (0.png) as well as for scenes (room)"),
    ],
)
def test_what_is_wrong_with_arguments_is_said(here, given, words):
    (here / "empty.txt").write_text("# nothing\n")
    (here / "latin.txt").write_bytes(b"\xe9")
    (here / "mixed" / "room").mkdir(parents=True)
    (here / "mixed" / "0.png").write_bytes((here / "hall" / "0.png").read_bytes())
    with pytest.raises(Error) as raised:
        named(*given)
    assert words in str(raised.value)
