"""`fastvggt info`: what a weight file holds."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from fastvggt_jax.cli.errors import one_sentence
from fastvggt_jax.cli.options import WEIGHTS_HELP, Json
from fastvggt_jax.errors import printable


@one_sentence()
def info(weights: Annotated[str, typer.Argument(help=WEIGHTS_HELP)], as_json: Json = False) -> None:
    """What a weight file holds: model, heads, numbers of parameters, source, licence."""
    import math

    from fastvggt_jax.errors import WeightsError
    from fastvggt_jax.io.json_files import parse_json
    from fastvggt_jax.io.tensors import open_safetensors
    from fastvggt_jax.pretrained import weight_file

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
    if as_json:
        typer.echo(json.dumps(report))
        return
    for key, value in report.items():
        if isinstance(value, dict):
            typer.echo(f"{key}:")
            for inner, number in value.items():
                typer.echo(f"  {printable(inner):22} {_plain(number)}")
        else:
            typer.echo(f"{printable(key) + ':':24} {_plain(value)}")


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return printable(", ".join(map(str, value)))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else printable(str(value))
