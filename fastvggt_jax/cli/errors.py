"""How a command says that something went wrong: one sentence on stderr and an exit code. A bug keeps its
traceback.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Callable
from typing import Annotated, Any

import typer

from fastvggt_jax.errors import Error, out_of_memory

FAILED, INTERRUPTED = 1, 130  # exit codes; the second as a shell gives a command that Ctrl-C has ended
Function = Callable[..., None]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error instead of a sentence.")]


def one_sentence(*, smaller: str = "take less at a time") -> Callable[[Function], Function]:
    """A command that ends, where its function raises an `errors.Error` or runs out of memory, in one
    sentence.

    The sentence names the command's option where the error names the library's argument, and is a JSON object
    {"error": sentence} on stdout too where the command has been asked for --json. The command also gets
    --debug.

    smaller: what to do when memory runs out.
    """

    def wrap(function: Function) -> Function:
        signature = inspect.signature(function, eval_str=True)
        options = dict(_options(signature))

        @functools.wraps(function)
        def run(*arguments: Any, debug: bool, **named: Any) -> None:
            try:
                function(*arguments, **named)
            except (typer.Exit, typer.Abort):
                raise
            except Exception as error:
                sentence = _sentence(error, options, smaller)
                if debug or sentence is None:
                    raise
                if named.get("as_json"):
                    typer.echo(json.dumps({"error": sentence}))
                typer.echo(f"{typer.style('error', fg='red', bold=True)} {sentence}", err=True)
                raise typer.Exit(getattr(error, "exit_code", FAILED)) from error

        debug = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Debug)
        parameters = [*signature.parameters.values(), debug]
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return wrap


def _options(signature: inspect.Signature) -> Any:
    """(argument, its option as a user writes it) of each parameter that is one."""
    for name, parameter in signature.parameters.items():
        for info in getattr(parameter.annotation, "__metadata__", ()):
            if type(info).__name__ == "OptionInfo":
                # typer.Option's first argument is its default, or within Annotated its first spelling.
                spellings = (info.default, *(info.param_decls or ()))
                long = [text for text in spellings if isinstance(text, str) and text.startswith("--")]
                yield name, long[0].split("/")[0] if long else "--" + name.replace("_", "-")


def _sentence(error: Exception, options: dict[str, str], smaller: str) -> str | None:
    """None if the error is our fault."""
    if isinstance(error, Error):
        argument = error.argument or ""
        if argument not in options:
            return str(error)
        # As a word of its own, not within a path or an option.
        word = rf"(?<![\w./-]){re.escape(argument)}\b(?![./-])"
        return re.sub(word, options[argument], str(error), count=1)
    return f"out of memory: {smaller}" if out_of_memory(error) else None
