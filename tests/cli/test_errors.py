"""One sentence for what a person can cause, a traceback for a bug."""

import json
from typing import Annotated

import jax
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from fastvggt_jax import errors
from fastvggt_jax.cli.errors import one_sentence

EXHAUSTED = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes.")


def run(error: Exception, *arguments: str):
    """A command of one option that raises `error`."""
    app = typer.Typer(pretty_exceptions_enable=False)

    @one_sentence(smaller="take fewer --views")
    def command(
        points: Annotated[int, typer.Option("--max-points", help="")] = 1,
        as_json: Annotated[bool, typer.Option("--json")] = False,
    ) -> None:
        raise error

    app.command()(command)
    return CliRunner().invoke(app, list(arguments))


def test_an_option_is_named_where_the_error_names_an_argument():
    result = run(errors.InputError("points must be at least 1, not 0 points", argument="points"))
    assert (result.exit_code, result.stderr) == (2, "error --max-points must be at least 1, not 0 points\n")
    result = run(errors.InputError("view_points and points are wrong", argument="points"))
    assert result.stderr == "error view_points and --max-points are wrong\n"
    result = run(errors.InputError("the limit is wrong", argument="limit"))
    assert result.stderr == "error the limit is wrong\n"


@pytest.mark.parametrize(
    "error, code",
    [
        (errors.InputError("a"), 2),
        (errors.MissingError("a"), 2),
        (errors.FailedError("a"), 1),
        (errors.FileError("a"), 1),
    ],
)
def test_exit_codes(error, code):
    result = run(error)
    assert result.exit_code == code and result.stdout == "" and result.stderr == "error a\n"


def test_json_is_an_object_on_stdout():
    result = run(errors.InputError("points are wrong", argument="points"), "--json")
    assert json.loads(result.stdout) == {"error": "--max-points are wrong"} and result.exit_code == 2


@pytest.mark.parametrize("error", [EXHAUSTED, MemoryError()])
def test_out_of_memory_in_any_command_says_what_to_lower(error):
    result = run(error)
    assert result.exit_code == 1 and result.stderr == "error out of memory: take fewer --views\n"


@pytest.mark.parametrize(
    "error", [ValueError("zip"), np.linalg.LinAlgError("singular"), FileNotFoundError("x"), KeyError("x")]
)
def test_a_bug_keeps_its_traceback_whatever_built_in_class_it_has(error):
    result = run(error)
    assert result.exception is error and result.output == ""


def test_debug_shows_the_traceback_of_a_sentence():
    error = errors.InputError("a")
    result = run(error, "--debug")
    assert result.exception is error


@pytest.mark.parametrize("raised", [EXHAUSTED, MemoryError("host")])
def test_memory_errors_are_one_kind(raised):
    with (
        pytest.raises(errors.OutOfMemoryError, match="out of memory: less, please"),
        errors.memory_errors("less, please"),
    ):
        raise raised
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), errors.memory_errors("less"):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_errors_are_also_what_python_calls_them():
    assert issubclass(errors.InputError, ValueError) and issubclass(errors.MissingError, FileNotFoundError)
    assert issubclass(errors.FileError, OSError) and issubclass(errors.ExtraError, ModuleNotFoundError)
    full = errors.FileError("the disk is full", cause=OSError(28, "No space left on device", "x"))
    assert full.errno == 28 and errors.is_full(full) and str(full) == "the disk is full"
