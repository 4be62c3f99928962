"""Official PyTorch checkpoint -> native weight file: `fastvggt convert` by another name.

python -m convert.convert_weights IN OUT [--model vggt|pi3] [--config FILE.json] [--variant auto]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from fastvggt_jax.cli.convert import convert


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 0, 2 for bad input, 1 when reading, writing or the network
    fails.
    """
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(convert)
    try:
        app(
            None if arguments is None else list(arguments),
            prog_name="python -m convert.convert_weights",
            standalone_mode=True,
        )
    except SystemExit as end:
        return int(end.code or 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
