"""`fastvggt info`: what a weight file holds."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from fastvggt_jax.cli.errors import one_sentence
from fastvggt_jax.cli.options import WEIGHTS_HELP, Json, take_gpu_memory
from fastvggt_jax.errors import InputError, printable, whole_number


@one_sentence()
def info(
    weights: Annotated[str, typer.Argument(help=WEIGHTS_HELP)],
    views: Annotated[
        int | None,
        typer.Option(help="Also what a reconstruction of so many photographs needs on this machine."),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="WxH", help="Their pixels as the model sees them. Default: a square of its own."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """What a weight file holds: model, heads, numbers of parameters, source, licence."""
    import math

    from fastvggt_jax.errors import WeightsError
    from fastvggt_jax.io.json_files import parse_json
    from fastvggt_jax.io.tensors import open_safetensors
    from fastvggt_jax.pretrained import weight_file

    take_gpu_memory()  # before weights are converted, which asks for the device
    path = Path(weights) if os.path.isfile(weights) else weight_file(weights)
    file = open_safetensors(path)
    metadata = dict(file.metadata() or {})
    try:
        config = parse_json(metadata.pop("config", "{}"))
    except ValueError as error:
        raise WeightsError(f"{path} has a config that is no JSON: {error}") from error
    parameters: dict[str, int] = {}
    dtypes = set()
    for name in file.keys():
        part = name.replace(".", "/").split("/")[0]
        tensor = file.get_slice(name)
        parameters[part] = parameters.get(part, 0) + math.prod(tensor.get_shape())
        dtypes.add(tensor.get_dtype())
    ours = {"file": str(path), "bytes": path.stat().st_size}
    report = {
        **(ours | metadata | ours),  # a stranger's metadata may say anything, but not in the place of these
        "parameters": sum(parameters.values()),
        "parameters_by_part": parameters,
        "dtypes": sorted(dtypes),
        "config": config,
    }
    if size is not None and views is None:
        raise InputError("--size is about --views: say how many photographs", argument="size")
    if views is not None:
        report["forecast"] = _forecast(weights, views, size)
    if as_json:
        typer.echo(json.dumps(report))
        return
    forecast = report.pop("forecast", None)
    for key, value in report.items():
        if isinstance(value, dict):
            typer.echo(f"{key}:")
            for inner, number in value.items():
                typer.echo(f"  {printable(inner):22} {_plain(number)}")
        else:
            typer.echo(f"{printable(key) + ':':24} {_plain(value)}")
    if forecast is not None:
        typer.echo(in_words(forecast))


def _forecast(weights: str, views: int, size: str | None) -> dict[str, Any]:
    """What a reconstruction from these weights needs, see `fastvggt_jax.profile.forecast`."""
    from fastvggt_jax.pipeline import compute_dtype
    from fastvggt_jax.pretrained import read_model
    from fastvggt_jax.profile import forecast

    whole_number("views", views, least=1)
    model = read_model(weights)
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", size) if size is not None else None
    if size is not None and match is None:
        raise InputError(f"size must be pixels such as 518x392, not {size!r}", argument="size")
    width, height = (int(match[1]), int(match[2])) if match else (None, None)
    model = model.clone(heads=model.heads_for(None), dtype=compute_dtype("auto"))
    return forecast(model, views, height, width)


def in_words(forecast: dict[str, Any]) -> str:
    gib = lambda count: "?" if count is None else f"{count / 2**30:.1f} GiB"
    width, height = forecast["size"]["width"], forecast["size"]["height"]
    text = f"{forecast['photographs']} photographs of {width}x{height} pixels need "
    text += gib(forecast["needs_bytes"])
    if forecast["limit_bytes"]:
        text += f" of the {gib(forecast['limit_bytes'])} that there are on this {forecast['device']}"
        text += f", or {gib(forecast['low_memory_bytes'])} where the host's memory helps"
    else:
        text += f" ({forecast['device']})"
    return f"{text}, and about {forecast['seconds']:.3g} s, less with block-sparse attention"


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return printable(", ".join(map(str, value)))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else printable(str(value))
