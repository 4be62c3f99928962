"""How a command says that something went wrong: one sentence on stderr and an exit code. A bug keeps its
traceback.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import json
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer

from fastvggt_jax.errors import Error, out_of_memory, printable

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
                with _ended_by_signals(), warnings.catch_warnings():
                    warnings.showwarning = _show_warning
                    function(*arguments, **named)
            except (typer.Exit, typer.Abort):
                raise
            except KeyboardInterrupt:
                if debug:
                    raise
                typer.echo("interrupted", err=True)
                raise typer.Exit(INTERRUPTED) from None
            except Exception as error:
                sentence = _sentence(error, options, smaller)
                if isinstance(error, BrokenPipeError):  # of another pipe; typer would end without a word
                    raise RuntimeError("a pipe of the program's own is broken") from error
                if debug or sentence is None:
                    raise
                if named.get("as_json"):
                    typer.echo(json.dumps({"error": sentence}))
                say("error", sentence)
                raise typer.Exit(getattr(error, "exit_code", FAILED)) from error

        debug = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Debug)
        parameters = [*signature.parameters.values(), debug]
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return wrap


class StandardOutputError(OSError):
    """Only what is written to it raises this; another OSError that no command expects is a bug."""


class StandardOutput(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise StandardOutputError(error.errno, error.strerror) from error


def _show_warning(message: Warning | str, category: type[Warning], *where: Any, **how: Any) -> None:
    """Ours as a sentence; those for developers as Python shows them."""
    if issubclass(category, UserWarning):
        say("warning", str(message))
    else:
        sys.stderr.write(warnings.formatwarning(message, category, *where[:2]))


def say(kind: str, text: str) -> None:
    """A line on stderr, in which control characters, as of a file's name, are shown and not sent."""
    typer.echo(f"{typer.style(kind, fg='red' if kind == 'error' else 'yellow')} {printable(text)}", err=True)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as an exception does, so that what it has begun is cleaned up."""

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)  # as a shell gives it

    changed = []
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, end)
                changed.append(number)
    with _lost_ones_come_again():
        try:
            yield
        finally:
            for number in changed:
                signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def _lost_ones_come_again() -> Iterator[None]:
    """What a signal raises while Python collects garbage, as in a callback of JAX, is ignored: it is sent
    once more.
    """
    before = sys.unraisablehook

    def again(unraisable: Any) -> None:
        raised = unraisable.exc_value
        if isinstance(raised, KeyboardInterrupt):
            number = int(signal.SIGINT)
        elif isinstance(raised, SystemExit) and isinstance(raised.code, int) and raised.code > 128:
            number = raised.code - 128
        else:
            before(unraisable)
            return
        later = threading.Timer(0.01, signal.raise_signal, (number,))  # when the collection is over
        later.daemon = True
        later.start()

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = before


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
    if isinstance(error, RuntimeError) and str(error).startswith("Unable to initialize backend"):
        first = str(error).split("\n")[0].split(" (set ")[0]
        return f"JAX cannot use the device that it is told to, see JAX_PLATFORMS: {first}"
    return f"out of memory: {smaller}" if out_of_memory(error) else None
