"""What `fastvggt info --views N` says that VGGT-1B needs of the device, beside what the program needs that
`fastvggt reconstruct` compiles for as many photographs; no weights are needed.

    python benchmarks/forecast.py 100
"""

import sys

import jax
import numpy as np

from fastvggt_jax import VGGT
from fastvggt_jax.models.memory import needed_bytes
from fastvggt_jax.pipeline import compute_dtype
from fastvggt_jax.profile import WIDTH, forecast, stored_params
from fastvggt_jax.programs import program_for

GIB = 2**30


def main(views: int) -> None:
    model = VGGT()
    model = model.clone(heads=model.heads_for(None), dtype=compute_dtype("auto"))
    said = forecast(model, views)
    pixels = np.zeros((1, views, WIDTH, WIDTH, 3), np.uint8)
    given = stored_params(model), (), None
    program = program_for(model, given, pixels)
    needs = (needed_bytes(program.compiled) or 0) / GIB
    kept = ", with low_memory" if program.model.low_memory else ""
    whole, less = (said[key] / GIB for key in ("needs_bytes", "low_memory_bytes"))
    print(f"{views} views of {WIDTH}×{WIDTH}, {said['device']}, jax {jax.__version__}:")
    print(f"info says {whole:.2f} GiB, {less:.2f} with low_memory; the program needs {needs:.2f}{kept}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
