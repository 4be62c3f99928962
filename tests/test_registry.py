"""Named things that can be added to."""

import sys

import pytest

from fastvggt_jax.errors import InputError
from fastvggt_jax.registry import Registry


def ours(**order):
    return Registry("shape of hat", {"top": "math:pi", "flat": "os:path.sep"}, **order)


def test_a_thing_is_imported_when_it_is_asked_for():
    hats = ours()
    assert hats.find("top") == 3.141592653589793 and hats.find("flat") == "/"
    assert hats.where("top") == "math:pi"
    with pytest.raises(InputError, match="no shape of hat 'bowler'; there are top, flat") as raised:
        hats.find("bowler", argument="hat")
    assert raised.value.argument == "hat"


@pytest.mark.parametrize("newest_first", [False, True])
def test_things_are_added_at_one_end_and_gone_after_the_block(newest_first):
    hats = ours(newest_first=newest_first)
    with hats.registered("bowler", 1), hats.registered("cap", 2):
        added = ("cap", "bowler", "top", "flat") if newest_first else ("top", "flat", "bowler", "cap")
        assert hats.names() == added
        assert hats.find("bowler") == 1 and hats.where("bowler") is None
    assert hats.names() == ("top", "flat")


def test_a_name_that_is_taken_is_refused():
    hats = ours()
    with pytest.raises(InputError, match="a shape of hat 'top' already"):
        hats.register("top", 1)
    assert hats.find("top") == 3.141592653589793


def test_other_packages_add_things_by_entry_points(tmp_path, monkeypatch):
    info = tmp_path / "hats-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hats\nVersion: 1.0\n")
    points = "[fastvggt_jax.shape_of_hat]\nbowler = hats_of_another:BOWLER\ntop = hats_of_another:TOP\n"
    (info / "entry_points.txt").write_text(points)
    (tmp_path / "hats_of_another.py").write_text("BOWLER, TOP = 7, 8\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    hats = ours()
    assert hats.find("bowler") == 7
    assert hats.find("top") == 3.141592653589793  # ours stays what it is
    assert hats.names() == ("top", "flat", "bowler")
    assert ours(newest_first=True).names() == ("bowler", "top", "flat")
