"""`fastvggt view`: a result in the browser."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from fastvggt_jax.cli.errors import one_sentence, say
from fastvggt_jax.cli.options import Overwrite, Quiet
from fastvggt_jax.cli.report import check_page
from fastvggt_jax.errors import InputError, printable


@one_sentence()
def view(
    folder: Annotated[Path, typer.Argument(help="What reconstruct has written, with its scene.npz.")],
    other: Annotated[
        Path | None, typer.Argument(help="Another result of the same photographs, shown beside it.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="The address to serve on; 0.0.0.0 lets the whole network look.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(help="The port. Default: 8080, or the next one that is free.")
    ] = None,
    share_static: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a page that opens without a server, and end."),
    ] = None,
    max_points: Annotated[
        int | None, typer.Option(help="Points of a result at most. Default: 2,000,000; 300,000 in a page.")
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """A result in the browser: its points, its cameras with their photographs, depth, one frame or all."""
    from fastvggt_jax.errors import whole_number
    from fastvggt_jax.seeing import share
    from fastvggt_jax.seeing.clouds import MOST, clouds
    from fastvggt_jax.seeing.result import read_result
    from fastvggt_jax.seeing.viewer import PORT, Viewer, require

    if max_points is not None:
        whole_number("max_points", max_points, least=1)
    if share_static is not None:
        if port is not None:
            raise InputError("port is of a server, and share_static needs none", argument="port")
        check_page(share_static, overwrite, "share_static")
    else:
        require()
    results = [read_result(folder)] + ([] if other is None else [read_result(other, "other")])
    default = MOST if share_static is None else share.MOST
    shown = clouds(results, default if max_points is None else max_points)
    if not all(map(len, shown)):
        say("warning", "there is no point to show, only cameras")
    if share_static is not None:
        share.write_page(shown, share_static, folder.resolve().name)
        if not quiet:
            typer.echo(printable(str(share_static)))
        return
    viewer = Viewer(shown, host=host, port=port)
    if port is None and viewer.port != PORT:
        say("warning", f"port {PORT} is in use: it is {viewer.port}")
    if not quiet:
        typer.echo(viewer.url)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:  # how one leaves it
        pass
    finally:
        viewer.stop()
