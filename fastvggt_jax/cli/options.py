"""Options that several commands have: one spelling and one meaning each."""

from __future__ import annotations

import os
from typing import Annotated, Literal

import typer

from fastvggt_jax.io.cache import cache_folder

WEIGHTS_HELP = (
    "A weight file, official weights (converted once and kept), a name on the hub such as facebook/VGGT-1B, "
    "or mini, the small bundled model."
)
Weights = Annotated[str, typer.Option("-c", "--weights", help=WEIGHTS_HELP)]
SPARSITY_HELP = "Block-sparse global attention: dense, or ρ and τ as 0.5,0.9, or one of them as 0.5 or ,0.9."
SparsityText = Annotated[str, typer.Option("--sparsity", help=SPARSITY_HELP)]
Sparsities = Annotated[
    list[str] | None, typer.Option("--sparsity", help=f"{SPARSITY_HELP} May be given several times.")
]
Block = Annotated[
    str | None,
    typer.Option(
        help="Block-sparse: queries x keys of a block, such as 128x64. Default: what suits the weights."
    ),
]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16"],
    typer.Option(help="Of the backbone's matrix products; auto: bfloat16, but float32 on a CPU."),
]
Size = Annotated[
    int | None,
    typer.Option(
        help="Pixels of what the model sees: its width, a multiple of the model's patches; of mode area: of "
        "a square of as many pixels. Default: what the model was made for."
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace what an earlier run has left in the output folder.")
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing but errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else, to stdout.")]
CacheDir = Annotated[
    str | None,
    typer.Option(
        help="Where compiled programs are kept for the next run, or 'none'. Default: the user's cache."
    ),
]


def use_compilation_cache(cache_dir: str | None) -> None:
    """Switch JAX's persistent cache on, unless the user has set one up through JAX's own variable."""
    import jax

    if cache_dir is None:
        if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
            return
        cache_dir = str(cache_folder("xla"))
    jax.config.update("jax_compilation_cache_dir", None if cache_dir == "none" else cache_dir)
    # Small programs compile faster than they load.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # On several devices cuDNN's attention stands in a program as a Python object's address, which is another
    # one in every process.
    jax.config.update("jax_remove_custom_partitioning_ptr_from_cache_key", True)
