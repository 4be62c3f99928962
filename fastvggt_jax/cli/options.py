"""Options that several commands have, and what --cache-dir does."""

import os
import sys
from typing import Annotated

import typer

Overwrite = Annotated[bool, typer.Option(help="Replace what an earlier run has left in the output folder.")]
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
        if sys.platform == "win32":
            base = os.environ.get("LOCALAPPDATA", "~/AppData/Local")
        else:
            base = (
                "~/Library/Caches"
                if sys.platform == "darwin"
                else os.environ.get("XDG_CACHE_HOME") or "~/.cache"
            )
        cache_dir = os.path.join(os.path.expanduser(base), "fastvggt_jax", "xla")
    jax.config.update("jax_compilation_cache_dir", None if cache_dir == "none" else cache_dir)
    jax.config.update(
        "jax_persistent_cache_min_compile_time_secs", 1.0
    )  # small programs compile faster than they load
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # On several devices cuDNN's attention stands in a program as a Python object's address, which is another
    # one in every process.
    jax.config.update("jax_remove_custom_partitioning_ptr_from_cache_key", True)
