"""How near `fastvggt batch` comes to the model's own time: scenes of photographs through VGGT with random
numbers for weights, timed from the end of the first few scenes, which wait for their program and for the
processes that write, to the last one's; beside `fastvggt bench` of as many views through the same heads.

    python benchmarks/batch_throughput.py --scenes 24 --frames 50 --sparsity 0.9
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from host_memory import photographs

COMMAND = (sys.executable, "-m", "fastvggt_jax")
WEIGHTS = """
import json, sys
import jax, jax.numpy as jnp
from fastvggt_jax import VGGT
from fastvggt_jax.io.weights import save_params
from fastvggt_jax.testing.random_weights import random_params
model = VGGT.from_config(json.loads(sys.argv[2])).clone(heads=("camera", "depth"))
with jax.default_prng_impl("rbg"):
    params = random_params(model, stored=lambda _: jnp.dtype("bfloat16"))
save_params(sys.argv[1], params, model, source="random numbers")
"""


def scenes_of(folder: Path, count: int, frames: int) -> list[Path]:
    """Folders of the same photographs, each with names of its own."""
    first = folder / "scene_00"
    first.mkdir()
    paths = photographs(first, frames)
    found = [first]
    for k in range(1, count):
        found.append(folder / f"scene_{k:02}")
        found[-1].mkdir()
        for path in paths:
            os.link(path, found[-1] / path.name)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--first", type=int, default=8, help="scenes that are not counted")
    parser.add_argument("--frames", type=int, default=50)
    parser.add_argument("--sparsity", default="0.9")
    parser.add_argument("--config", type=json.loads, default={}, help="fields of a smaller model, as JSON")
    parser.add_argument("--size", type=int, default=518, help="pixels of what the model sees: its width")
    given, more = parser.parse_known_args()  # what is left is for `batch`
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = folder / "random.safetensors"
        subprocess.run([sys.executable, "-c", WEIGHTS, weights, json.dumps(given.config)], check=True)
        scenes = scenes_of(folder, given.scenes, given.frames)
        model = ("--sparsity", given.sparsity, "--size", str(given.size), "--json")
        batch = [*COMMAND, "batch", *scenes, "-c", weights, "-o", folder / "out", *model, *more]
        ends: list[float] = []
        steps: list[dict[str, float]] = []
        with subprocess.Popen(list(map(str, batch)), stdout=subprocess.PIPE, text=True) as running:
            for line in running.stdout or ():
                event = json.loads(line)
                if event["event"] == "failed":
                    sys.exit(event["error"])
                if event["event"] == "done":
                    ends.append(time.perf_counter())
                    steps.append(event["seconds"])
        for one in steps:
            print(one)
        (folder / "config.json").write_text(json.dumps(given.config))
        height = round(given.size * 3 / 4 / 14) * 14  # of photographs of 4:3
        bench = [*COMMAND, "bench", "--only", "model", "--heads", "camera,depth", *model]
        bench += ["--frames", str(given.frames), "--height", str(height)]
        bench += ["--config", str(folder / "config.json")] if given.config else []
        alone = json.loads(subprocess.run(bench, check=True, stdout=subprocess.PIPE, text=True).stdout)
    each = 1e3 * (ends[-1] - ends[given.first - 1]) / ((len(ends) - given.first) * given.frames)
    print(f"{given.scenes} scenes of {given.frames} views, sparsity {given.sparsity}, {alone['device']}:")
    reached = alone["ms_per_frame"] / each
    print(f"batch {each:.2f} ms per view, bench {alone['ms_per_frame']:.2f}: {reached:.2f} of its speed")
    if reached > 1:
        print("that is how fast files are written which the model was ahead of: leave more out with --first")


if __name__ == "__main__":
    main()
