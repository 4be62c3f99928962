"""The conversion engine on a hand-made tree: strict both ways, every misfit named, one tensor in memory."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert.rules import Rule, conv, conv_transpose, linear, make_plan, norm
from fastvggt_jax.errors import WeightsError
from fastvggt_jax.io.tensors import write_safetensors


def specs(**shapes):
    return {
        name.replace("__", "/"): jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()
    }


RULES = (
    *linear(r"blocks\.(?P<layer>\d+)\.(?P<name>fc|mlp\.out)", "blocks/{name}"),
    *norm(r"norm", "norm"),
    *conv(r"stem\.(?P<index>\d+)", "stem_{index}"),
    *conv_transpose(r"up", "up"),
    Rule(r"token", "token"),
)
IGNORE = {r"unused\..*": "nobody reads it"}
WANTED = specs(
    blocks__fc__kernel=(3, 2, 4),
    blocks__fc__bias=(3, 4),
    blocks__mlp__out__kernel=(3, 5, 5),
    norm__scale=(4,),
    stem_0__kernel=(3, 3, 1, 2),
    up__kernel=(2, 2, 6, 5),
    token=(1, 4),
)
SOURCE = {
    **{f"blocks.{i}.fc.weight": (4, 2) for i in (2, 0, 1)},
    **{f"blocks.{i}.fc.bias": (4,) for i in range(3)},
    **{f"blocks.{i}.mlp.out.weight": (5, 5) for i in range(3)},
    "norm.weight": (4,),
    "stem.0.weight": (2, 1, 3, 3),
    "up.weight": (6, 5, 2, 2),
    "token": (1, 4),
    "unused.buffer": (7,),
}


def failure(source, wanted=WANTED, rules=RULES, error=WeightsError):
    with pytest.raises(error) as caught:
        make_plan(source, wanted, rules, IGNORE)
    return str(caught.value)


def test_plan_covers_source_and_model():
    plan = make_plan(SOURCE, WANTED, RULES, IGNORE)
    targets = {t.name: t for t in plan.targets}
    assert {name: t.shape for name, t in targets.items()} == {name: s.shape for name, s in WANTED.items()}
    assert targets["blocks/fc/kernel"].keys == tuple(f"blocks.{i}.fc.weight" for i in range(3))
    assert plan.ignored == (("unused.buffer", "nobody reads it"),)


def test_layouts_against_what_the_layers_compute():
    rng = np.random.default_rng(0)
    source = {key: rng.standard_normal(shape).astype(np.float32) for key, shape in SOURCE.items()}
    plan = make_plan(SOURCE, WANTED, RULES, IGNORE)
    made = {t.name: np.stack(list(t.chunks(source.get, jnp.float32))) for t in plan.targets}

    x = rng.standard_normal((7, 5)).astype(np.float32)
    for i in range(3):  # torch's Linear is x Wᵀ, ours x W; square, so no shape would tell
        np.testing.assert_array_equal(
            x @ made["blocks/mlp/out/kernel"][i], x @ source[f"blocks.{i}.mlp.out.weight"].T
        )

    # Convolutions at one position: [out, in, kh, kw] against a patch [in, kh, kw], ours against [kh, kw, in].
    patch = rng.standard_normal((1, 3, 3)).astype(np.float32)
    theirs = np.einsum("oihw,ihw->o", source["stem.0.weight"], patch)
    ours = np.einsum("hwio,hwi->o", made["stem_0/kernel"][0], patch.transpose(1, 2, 0))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    # Transposed: an input pixel spreads [in] into [out, kh, kw].
    pixel = rng.standard_normal(6).astype(np.float32)
    theirs = np.einsum("iohw,i->hwo", source["up.weight"], pixel)
    np.testing.assert_allclose(np.einsum("hwio,i->hwo", made["up/kernel"][0], pixel), theirs, rtol=1e-6)


def test_missing_unexpected_and_misshaped_keys_are_all_named():
    source = dict(SOURCE)
    del source["blocks.1.fc.bias"], source["norm.weight"]
    source |= {"blocks.3.fc.weight": (4, 2), "norm.bias": (4,), "head.weight": (1, 1)}
    source |= {"blocks.0.fc.weight": (2, 4), "up.weight": (5, 6, 2, 2), "token": (4,)}
    assert failure(source) == (
        "2 missing: blocks.1.fc.bias, norm/scale; "
        "3 unexpected: head.weight, blocks.3.fc.weight, norm.bias; "
        "3 of the wrong shape: blocks.0.fc.weight is [2, 4] instead of [4, 2], "
        "up.weight is [5, 6, 2, 2] instead of [6, 5, 2, 2], token is [4] instead of [1, 4]"
    )


def test_many_keys_are_counted():
    source = SOURCE | {f"other.{i}": (1,) for i in range(25)}
    assert failure(source).endswith("other.9 and 15 more")
    assert failure(source).startswith("25 unexpected: other.0, ")


def test_contradicting_rules_are_refused():
    assert "token matches more than one rule: token and tok.*" in failure(
        SOURCE, rules=(*RULES, Rule("tok.*", "other")), error=ValueError
    )
    assert "unused.buffer matches more than one rule" in failure(
        SOURCE, rules=(*RULES, Rule(r"unused\.buffer", "other")), error=ValueError
    )
    assert "token and tokens would both become token" in failure(
        SOURCE | {"tokens": (1, 4)}, rules=(*RULES, Rule("tokens", "token")), error=ValueError
    )


@pytest.mark.parametrize("layer", ["01", "١", "1" * 5000])
def test_a_layer_has_one_number(layer):
    text = failure(SOURCE | {f"blocks.{layer}.fc.weight": (4, 2)})
    assert text == f"1 unexpected: blocks.{layer}.fc.weight"
    with pytest.raises(ValueError, match="must be one of keep, linear"):
        Rule("a", "a", "transpose")


def test_integers_are_no_weights():
    plan = make_plan(SOURCE, WANTED, RULES, IGNORE)
    token = next(t for t in plan.targets if t.name == "token")
    with pytest.raises(WeightsError, match="token holds int64 numbers"):
        list(token.chunks(lambda key: np.zeros((1, 4), np.int64), jnp.float32))


def test_memory_holds_one_tensor_of_a_stack(tmp_path):
    layers, width = 24, 512  # 1 MiB a layer
    wanted = specs(blocks__fc__kernel=(layers, width, width))
    source = {f"blocks.{i}.fc.weight": (width, width) for i in range(layers)}
    (target,) = make_plan(source, wanted, RULES, {}).targets
    tracemalloc.start()
    read = lambda key: np.ones((width, width), np.float32)
    write_safetensors(tmp_path / "a", wanted, lambda name: target.chunks(read, jnp.float32), {})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20  # the tensor, its transposed copy, and small change
    assert (tmp_path / "a").stat().st_size > layers << 20
