"""`fastvggt bench`: time and memory of whole models, and of one layer's attention beside PyTorch's."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fastvggt_jax.cli.errors import FAILED, one_sentence
from fastvggt_jax.cli.options import Block, Float8Scores, Json, Size, Sparsities, check_sparse

if TYPE_CHECKING:
    from fastvggt_jax.bench import Case

HEADS = ("frames", "attention", "seconds", "ms/frame", "compile s", "needs GiB", "peak GiB")


@one_sentence()
def bench(
    model: Annotated[str, typer.Option(help="Name of a model, whose released size is measured.")] = "vggt",
    frames: Annotated[
        list[int] | None, typer.Option(help="Views; may be given several times. Default: 1, 10, 50, 100.")
    ] = None,
    sparsity: Sparsities = None,
    block: Block = None,
    size: Size = None,
    height: Annotated[int | None, typer.Option(help="Pixels too. Default: a square.")] = None,
    heads: Annotated[
        str | None, typer.Option(help="Such as camera,depth. Default: all but the tracker.")
    ] = None,
    conditions: Annotated[
        bool, typer.Option("--conditions", help="Known K, depth and pose of every view, of pi3x.")
    ] = False,
    float8_scores: Float8Scores = False,
    dtype: Annotated[
        str | None, typer.Option(help="Of the backbone's matrix products. Default: the model's.")
    ] = None,
    param_dtype: Annotated[
        str,
        typer.Option(help="Of the parameters; compute: of those that products of matrices read, their own."),
    ] = "compute",
    config: Annotated[
        str | None, typer.Option(help="A JSON file of other sizes than the released model's.")
    ] = None,
    memory_limit: Annotated[float | None, typer.Option(help="GiB that JAX may allocate.")] = None,
    kernels: Annotated[
        str | None,
        typer.Option(help="Of the attention's kernels these alone, such as triton, as on a card without."),
    ] = None,
    low_memory: Annotated[
        bool,
        typer.Option(
            "--low-memory",
            help="What waits does so in the host's memory. Default: where it would not fit otherwise.",
        ),
    ] = False,
    devices: Annotated[int, typer.Option(help="Share the views among so many devices.")] = 1,
    repeats: Annotated[
        int, typer.Option(help="Of which the median counts, after a first run; 0: that one counts.")
    ] = 3,
    only: Annotated[
        Literal["model", "attention"] | None,
        typer.Option(
            help="The whole model, or one global layer's dense attention beside PyTorch's. Default: both."
        ),
    ] = None,
    profile: Annotated[
        bool,
        typer.Option("--profile", help="Also where the time goes: each part's time, arithmetic, traffic."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Whole-model time and peak memory over frames and sparsity, with random weights."""
    from fastvggt_jax.bench import Case, run
    from fastvggt_jax.errors import FailedError
    from fastvggt_jax.profile import table

    sparsity = sparsity or ["dense", "0.75"]
    check_sparse(sparsity, block=block)
    cases = [
        Case(
            model=model,
            frames=count,
            size=size,
            height=height,
            sparsity=text,
            block=block or "128x64",
            heads=tuple(heads.split(",")) if heads else None,
            conditions=conditions,
            float8_scores=float8_scores,
            dtype=dtype,
            param_dtype=param_dtype,
            config=config,
            repeats=repeats,
            memory_limit=memory_limit,
            kernels=tuple(kernels.split(",")) if kernels else None,
            low_memory=low_memory,
            devices=devices,
            profile=profile,
        )
        for count in frames or (1, 10, 50, 100)
        for text in sparsity
    ]
    rows = [("model", case) for case in cases] if only != "attention" else []
    if only != "model":
        dense = {case.frames: case for case in cases}
        rows += [("attention", case) for case in dense.values()]
    failed, shown = False, None
    for what, case in rows:
        if what != shown and not as_json:
            typer.echo(_heading(what, case))
        shown = what
        try:
            row = run(what, case)
        except FailedError as error:  # the other rows are still wanted
            failed, row = True, {"frames": case.frames, "sparsity": case.sparsity, "error": str(error)}
        typer.echo(json.dumps(row) if as_json or "error" in row else _line(what, row))
        if "parts" in row and not as_json:
            typer.echo(f"\n{table(row)}\n")
    if failed:
        raise typer.Exit(FAILED)


def _heading(what: str, case: Case) -> str:
    if what == "attention":
        return "dense attention of one global layer, bfloat16, ms: ours, then PyTorch's and its ratio to ours"
    where = f", {case.devices} devices" if case.devices > 1 else ""
    width, height = case.pixels
    return f"{case.model}, {width}×{height}{where}\n" + " ".join(f"{head:>9}" for head in HEADS)


def _line(what: str, row: dict[str, Any]) -> str:
    if what == "attention":
        peers = [
            f"torch {name} {row[name]:.2f} (×{row[name] / row['ours']:.2f})"
            for name in ("flash", "cudnn")
            if name in row
        ]
        return f"{row['frames']:>9} ours {row['ours']:.2f}  {'  '.join(peers)}".rstrip()
    numbers = f"{row['seconds']:9.3f} {row['ms_per_frame']:9.2f} {row['compile_seconds']:9.1f}"
    return f"{row['frames']:>9} {row['sparsity']:>9} {numbers} {row['needs_gib']:9.2f} {row['peak_gib']:9.2f}"
