"""What an evaluation has found so far, in a file that may have been ended or damaged anywhere."""

import json

import numpy as np
import pytest

from fastvggt_jax.errors import TargetError
from fastvggt_jax.evaluate.journal import Journal
from fastvggt_jax.evaluate.runner import LeftOut, Result

OF = {"model": "toy", "batch": 2}


def result(start):
    return Result(
        scenes=[f"scene {start}", f"scene {start + 1}"],
        pairs=[np.array([[1.5, 2.0], [0.1, 1 / 3]])] * 2,
        baselines=[np.array([3.0, 4.0])] * 2,
        metrics=[{"AbsRel": 0.1 * start}, {"AbsRel": 0.2}],
        density=[],
    )


@pytest.fixture
def path(tmp_path):
    with Journal(tmp_path / "so-far.jsonl", OF) as journal:
        for start in (0, 2, 4):
            journal.add(start, {"dense": result(start), "sparse": result(start)})
    return tmp_path / "so-far.jsonl"


def found(path):
    with Journal(path, OF) as journal:
        return journal.batches


def test_it_gives_back_what_was_added(path):
    batches = found(path)
    assert list(batches) == [0, 2, 4] and list(batches[2]) == ["dense", "sparse"]
    given, expected = batches[2]["sparse"], result(2)
    assert given.scenes == expected.scenes and given.metrics == expected.metrics
    np.testing.assert_array_equal(given.pairs, expected.pairs)
    np.testing.assert_array_equal(given.baselines, expected.baselines)


@pytest.mark.parametrize(
    "old, new",
    [
        ('"AbsRel": 0.2}', '"AbsRel": NaN}'),
        ('"AbsRel": 0.2}', '"AbsRel": 0.3}'),
        ('"AbsRel": 0.2}', '"AbsRel": "oops"}'),
        ('"dense"', '"other"'),
        ('"metrics"', '"metric"'),
        ('"start": 2', '"start": 4'),
        ('"start": 2', "[" * 100_000),
        ('{"start": 2', '{"sta'),
    ],
)
def test_a_damaged_line_and_those_after_it_are_left_out(path, old, new):
    lines = path.read_text().splitlines()
    lines[2] = lines[2].replace(old, new)
    path.write_text("\n".join(lines) + "\n")
    assert list(found(path)) == [0]
    assert len(path.read_text().splitlines()) == 2


def test_the_last_of_several_lines_of_a_batch_holds(path):
    damaged = result(6)
    damaged.left_out = [LeftOut(8, "scene 8", "no depth")]
    with Journal(path, OF) as journal:
        journal.add(6, {"dense": damaged, "sparse": damaged})
    assert found(path)[6]["sparse"].left_out == damaged.left_out
    with Journal(path, OF) as journal:
        journal.add(6, {"dense": result(6), "sparse": result(6)})
    assert list(found(path)) == [0, 2, 4, 6] and not found(path)[6]["dense"].left_out


def test_a_batch_with_a_scene_of_other_photographs_is_not_taken(tmp_path):
    path, frames = tmp_path / "so-far.jsonl", {f"scene {i}": [i, 7] for i in range(4)}
    with Journal(path, OF, frames) as journal:
        for start in (0, 2):
            journal.add(start, {"dense": result(start)})
    for changed, kept in ({}, [0, 2]), ({"scene 9": [1]}, [0, 2]), ({"scene 3": [3, 8]}, [0]):
        with Journal(path, OF, frames | changed) as journal:
            assert list(journal.batches) == kept


def test_a_line_without_results_is_left_out(path):
    lines = path.read_text().splitlines()
    lines[2] = json.dumps({"start": 2, "results": {}})
    path.write_text("\n".join(lines) + "\n")
    assert list(found(path)) == [0]


@pytest.mark.parametrize("of", ['["a"]', '"a"', "{}", '{"model": "another"}'])
def test_another_evaluations_file_is_refused(path, of):
    text = '{"format": "fastvggt_jax evaluation so far", "of": ' + of + "}\n"
    path.write_text(text)
    with pytest.raises(TargetError, match="so-far.jsonl is of "):
        Journal(path, OF)
    assert path.read_text() == text
    with Journal(path, OF, overwrite=True) as journal:
        assert not journal.batches
