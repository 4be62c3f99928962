"""Official PyTorch checkpoint -> native weight file.

    python -m convert.convert_weights IN OUT [--model vggt] [--config FILE.json] [--variant auto] [--dtype float32]

IN is a .safetensors file, a .pt file (needs the extra torch) or a hub repository such as facebook/VGGT-1B (needs the
extra hub). The conversion is strict: a tensor that is missing, unexpected or misshaped ends it before anything is
written. It streams: memory holds one official tensor at a time, whatever the size of the model.
"""

import argparse
import json
import math
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from convert import hub, vggt
from convert.rules import make_plan
from convert.sources import Source, open_source
from fastvggt_jax.checkpoint import abstract_tensors, native_metadata
from fastvggt_jax.models.vggt import HEADS, VGGT
from fastvggt_jax.tensor_file import CheckpointError, listed, write_safetensors

FLOATS = ("float32", "bfloat16", "float16", "float64")
_PI3_KEY = r"(?:point|conf|camera)_decoder\..+"  # recognised, so that the refusal can say what it is
_NO_PI3 = "π³ checkpoints cannot be converted by this version yet"


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status: 0, 2 for bad input, 1 when reading, writing or the network fails."""
    parser = argparse.ArgumentParser(prog="python -m convert.convert_weights", description=__doc__.split("\n")[0])
    parser.add_argument("source", metavar="IN", help="a .safetensors or .pt file, or a hub repository (OWNER/NAME)")
    parser.add_argument("target", metavar="OUT", type=Path, help="the native weight file to write (.safetensors)")
    parser.add_argument("--model", choices=("vggt", "pi3"), help="what IN is; by default recognised from its keys")
    parser.add_argument("--config", type=Path, metavar="FILE.json", help="sizes of the model if it is not VGGT-1B")
    parser.add_argument(
        "--variant",
        choices=("auto", "1b", "tracker-fixed"),
        default="auto",
        help="tracker-fixed: the track features carry a position embedding, which no key tells; auto decides by the name of IN",
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the written weights")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    options = parser.parse_args(arguments)
    try:
        convert(**vars(options))
    except (ValueError, ImportError, FileNotFoundError, FileExistsError, IsADirectoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or error
        print(f"error: {text}", file=sys.stderr)
        return 1
    return 0


def convert(
    source: str,
    target: Path,
    model: str | None = None,
    config: Path | None = None,
    variant: str = "auto",
    dtype: str = "float32",
    overwrite: bool = False,
) -> None:
    """Converts the checkpoint `source` to the native file `target` and prints what was done; see the command line.

    Raises ValueError (CheckpointError), ImportError, OSError and its kinds, each with one sentence; then `target` is
    as it was before.
    """
    if model == "pi3":
        raise ValueError(_NO_PI3)
    _check_target(target, overwrite)
    repository = source if hub.is_repository(source) else None
    path = hub.fetch(repository) if repository else Path(source)
    checkpoint = open_source(path)
    if target.exists() and target.samefile(path):
        raise ValueError(f"{target} is the checkpoint itself: write to another file")
    if model is None:
        _recognise(checkpoint)
    origin = f"{repository}/{path.name}" if repository else path.name

    network = _build(checkpoint, config)
    network, reason = _choose_variant(network, variant, origin, config)
    wanted = _abstract(network, config)
    try:
        plan = make_plan(checkpoint.shapes, wanted, vggt.RULES, vggt.IGNORE)
    except CheckpointError as error:
        sizes = f"the sizes of {config}" if config else "the sizes of VGGT-1B, assumed for want of --config FILE.json"
        raise CheckpointError(f"{path} does not fit {sizes}: {error}") from error

    odd = [f"{key} ({checkpoint.dtypes[key]})" for t in plan.targets for key in t.keys if checkpoint.dtypes[key] not in FLOATS]
    if odd:
        raise CheckpointError(f"{path} holds numbers that are no weights: {listed(odd)}; they must be {', '.join(FLOATS)}")

    targets = {t.name: t for t in plan.targets}
    size = write_safetensors(
        target,
        {name: jax.ShapeDtypeStruct(t.shape, jnp.dtype(dtype)) for name, t in targets.items()},
        lambda name: targets[name].chunks(checkpoint.read, jnp.dtype(dtype)),
        native_metadata(network, origin, hub.licence_of(repository)),
    )
    _report_source(checkpoint, network, config, reason)
    for key, why in plan.ignored:
        print(f"ignored   {key}: {why}")
    print(f"wrote     {target}: {_count(t.shape for t in plan.targets)}, {dtype}, {size / 1e9:.2f} GB")
    print(f"licence   of the weights: {hub.licence_of(repository)}")


def _report_source(checkpoint: Source, network: VGGT, config: Path | None, reason: str) -> None:
    absent = [head for head in HEADS if head not in network.heads]
    heads = (", ".join(network.heads) or "none") + (f" (not in it: {', '.join(absent)})" if absent else "")
    dtypes = ", ".join(sorted(set(checkpoint.dtypes.values())))
    print(f"read      {checkpoint.path}: {_count(checkpoint.shapes.values())}, {dtypes}")
    print(f"model     {type(network).__name__}, sizes of {config or 'VGGT-1B'}; heads: {heads}")
    if "track" in network.heads:
        name, effect = ("tracker-fixed", "with") if network.track_pos_embed else ("1b", "without")
        print(f"variant   {name}, track features {effect} position embedding ({reason})")


def _check_target(target: Path, overwrite: bool) -> None:
    """Finds out before a long download or read what would fail at its end."""
    if target.suffix != ".safetensors":
        raise ValueError(f"{target} must end in .safetensors: that is what is written")
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder: give the name of the file to write")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists already: give another name or --overwrite")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the folder {target.parent} does not exist")


def _recognise(checkpoint: Source) -> None:
    """Raises CheckpointError, saying what it is instead, unless the checkpoint is a VGGT by its keys."""
    path, keys = checkpoint.path, list(checkpoint.shapes)
    if any(re.fullmatch(vggt.KEY, key) for key in keys):
        return
    if any(re.fullmatch(_PI3_KEY, key) for key in keys):
        raise CheckpointError(f"{path} is a π³ checkpoint; {_NO_PI3}")
    if any("/" in key for key in keys):
        raise CheckpointError(f"{path} is a native weight file already, not an official checkpoint")
    found = f"{', '.join(keys[:3])}, ..." if keys else "nothing"
    raise CheckpointError(f"{path} is not a VGGT checkpoint: it holds {found} and no aggregator.*")


def _build(checkpoint: Source, config: Path | None) -> VGGT:
    """The model of the given sizes, with those of its heads that the checkpoint has keys of."""
    network = VGGT()
    if config is not None:
        try:
            data = json.loads(config.read_text())
            network = VGGT.from_config(data.get("config", data))
        except OSError as error:
            raise FileNotFoundError(f"{config}: cannot be read ({error.strerror})") from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{config} is not the configuration of a VGGT as JSON: {error}") from error
    present = tuple(h for h in network.heads if any(key.startswith(f"{h}_head.") for key in checkpoint.shapes))
    return network.clone(heads=present)


def _abstract(network: VGGT, config: Path | None) -> dict[str, jax.ShapeDtypeStruct]:
    try:
        return abstract_tensors(network)
    except (TypeError, ValueError, ArithmeticError) as error:  # numbers that make no network, such as a width of 0
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{config} does not describe a working VGGT: {reason}") from error


def _choose_variant(network: VGGT, variant: str, origin: str, config: Path | None) -> tuple[VGGT, str]:
    """Sets whether track features carry a position embedding; returns the model and the ground for the choice."""
    fixed = "tracker_fixed" in origin.lower()
    reason = f"assumed: the keys do not tell, and the name {origin} has {'' if fixed else 'no '}tracker_fixed in it"
    if variant != "auto":
        fixed, reason = variant == "tracker-fixed", "as asked"
    elif network.track_pos_embed:
        fixed, reason = True, f"{config} says so"
    return network.clone(track_pos_embed=fixed), reason


def _count(shapes) -> str:
    shapes = list(shapes)
    return f"{len(shapes)} tensors, {sum(map(math.prod, shapes)):,} numbers"


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # only shapes are asked of JAX: leave the GPU's memory to others
    sys.exit(main())
