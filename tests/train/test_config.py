"""A training configuration: what is wrong with one gets a sentence, and which batches a step of it has."""

import re

import pytest
from typer.testing import CliRunner

from fastvggt_jax.cli.app import app
from fastvggt_jax.errors import InputError
from fastvggt_jax.train import Shape, load_config
from tests.train.runs import CAMERAS, GOOD, PI3, config


@pytest.mark.parametrize(
    "text, overrides, sentence",
    [
        (GOOD.format("learning_ratio=1"), [], "learning_ratio"),
        (
            GOOD.format(""),
            ["learning_ratio=1"],
            "learning_ratio cannot be set; what can: steps, learning_rate",
        ),
        (GOOD.format(""), ["steps"], "'steps' must be field=value"),
        (GOOD.format(""), ["steps=many"], "steps='many' must be a valid integer"),
        (GOOD.format(""), ["learning_rate=fast"], "learning_rate='fast' must be a valid number"),
        (GOOD.format(""), ["shard_params=maybe"], "shard_params='maybe' must be a valid boolean"),
        (GOOD.format(""), ["seed=-1"], "seed='-1' must be greater than or equal to 0"),
        (
            GOOD.format(""),
            [f"seed={1 << 63}"],
            "seed='9223372036854775808' must be less than 9223372036854775808",
        ),
        (GOOD.format(""), ["loss_weights=3"], "loss_weights cannot be set; what can: .*, loss_weights.NAME,"),
        (GOOD.format(""), ["loss_weights.pairs=nan"], "loss_weights.pairs='nan' must be a finite number"),
        (
            GOOD.format(""),
            ["loss_weights.pears=3"],
            "loss_weights has 'pears', which .* VGGT does not; it has background, pairs",
        ),
        (GOOD.format(""), ["frozen=decoder/*"], "no parameter is named like 'decoder/.'"),
        (GOOD.format("weights_dtype='int8'"), [], "weights_dtype='int8' must be"),
        (GOOD.format(""), ["steps=0"], "steps='0' must be greater than or equal to 1"),
        (GOOD.format("shapes=()"), [], r"shapes=\(\) .* at least 1 item"),
        (
            GOOD.format("frozen=('decoder/*',)"),
            [],
            "no parameter is named like 'decoder/.'; names are such as aggregator/",
        ),
        (GOOD.format("query_points=3"), [], "query_points=3 does not fit the heads camera:"),
        ("def get_config(: pass", [], "invalid syntax"),
        ("x = 1", [], "has no get_config"),
        ("def get_config(): return {}['x']", [], "wrong.py is no configuration that works: KeyError: 'x'"),
        (GOOD.format(""), ["learning_rate=nan"], "learning_rate='nan' must be a finite number"),
        (
            GOOD.format(""),
            ["first_scene=2147483640"],
            "first_scene=2147483640 and 40 steps lead beyond the last scene",
        ),
        (GOOD.format("steps=10.5"), [], "steps=10.5 must be a valid integer"),
        (GOOD.format("learning_rate='fast'"), [], "learning_rate='fast' must be a valid number"),
        (GOOD.format("shard_params=1"), [], "shard_params=1 must be a valid boolean"),
        (GOOD.format("init=3"), [], "init=3 must be a valid string"),
        (GOOD.format("data=5"), [], "data=5 must be callable"),
        (GOOD.format("shapes=SHAPE"), [], r"shapes=Shape\(.*\) must be a valid tuple"),
        (GOOD.format("shapes=(Shape(2.0, 2, 28, 28),)"), [], "scenes=2.0 must be a valid integer"),
        (GOOD.format("model='vggt'"), [], "model='vggt' must be an instance of Model"),
        (GOOD.format("learning_rate=float('inf')"), [], "learning_rate=inf must be a finite number"),
        (
            GOOD.format("loss_weights={'background': float('inf')}"),
            [],
            "loss_weights.background=inf must be a finite",
        ),
        (GOOD.format("model=CAMERAS.clone(embed_dim='wide')"), [], "embed_dim='wide' is wrong"),
        (
            GOOD.format("model=CAMERAS.clone(embed_dim=33, num_heads=2)"),
            [],
            "the 33 channels of embed_dim=33 must be a multiple of 4 for each of num_heads=2",
        ),
        (GOOD.format("model=CAMERAS.clone(mlp_ratio=0.001)"), [], "the model describes no working VGGT"),
        (
            GOOD.format("shapes=(Shape(2, 2, 28, 30),)"),
            [],
            "width must be a positive multiple of .* 14 pixels, not 30",
        ),
        ("import sys; sys.exit(0)", [], "wrong.py is no configuration that works: SystemExit: 0"),
        ("def get_config(): raise ValueError('one\\nline')", [], "that works: ValueError: one line"),
        (
            GOOD.format("model=MODEL.clone(sparsity=Sparsity(0.5))"),
            [],
            "must be None: block-sparse attention has no gradient",
        ),
    ],
)
def test_a_wrong_configuration_gets_a_sentence(tmp_path, text, overrides, sentence):
    path = tmp_path / "wrong.py"
    path.write_text(text)
    arguments = ["train", str(path), "--workdir", str(tmp_path / "run"), "--quiet"]
    done = CliRunner().invoke(app, [*arguments, *(x for override in overrides for x in ("--set", override))])
    assert done.exit_code == 2 and re.search(sentence, done.stderr) and "Traceback" not in done.stderr, (
        done.stderr
    )
    assert len(done.stderr.strip().splitlines()) == 1 and not (tmp_path / "run").exists()


def test_texts_are_read_as_what_their_fields_are(tmp_path):
    (tmp_path / "right.py").write_text(GOOD.format("loss_weights={'background': 0.5}"))
    texts = [
        "steps=1e5",
        "warmup_steps=200",
        "learning_rate=1",
        "ema_decay=None",
        "init=123",
        "shard_params=true",
    ]
    texts += ["frozen=aggregator/*,camera_head/*", "loss_weights.pairs=3", f"seed={(1 << 63) - 1}"]
    found = load_config(tmp_path / "right.py", texts)
    assert (found.steps, found.warmup_steps, found.seed) == (100_000, 200, (1 << 63) - 1)
    assert isinstance(found.steps, int) and isinstance(found.learning_rate, float)
    assert (found.learning_rate, found.ema_decay, found.init, found.shard_params) == (1, None, "123", True)
    assert found.frozen == ("aggregator/*", "camera_head/*")
    assert found.loss_weights == {"background": 0.5, "pairs": 3}
    assert load_config(tmp_path / "right.py", ["frozen=", "init=None"]).frozen == ()


def test_what_does_not_fit_the_model_is_refused():
    with pytest.raises(
        InputError, match="query_points=2 does not fit the heads .*: it must be 0: no head tracks"
    ):
        config(model=PI3, query_points=2)
    with pytest.raises(InputError, match="heads camera, track: it must be greater than 0"):
        config(model=CAMERAS.clone(heads=("camera", "track")))
    with pytest.raises(
        InputError, match="loss_weights has 'pairs', which .* Pi3 does not; it has background"
    ):
        config(model=PI3, loss_weights={"pairs": 1.0})


def test_every_step_has_its_own_scenes_and_its_kind_of_batch():
    kinds = (Shape(4, 2, 28, 28, weight=3), Shape(2, 4, 28, 42, weight=1))
    mixed = config(shapes=kinds, first_scene=1000)
    drawn = [mixed.shape_of(step) for step in range(2000)]
    assert abs(drawn.count(kinds[0]) / 2000 - 0.75) < 0.03
    assert drawn == [config(shapes=kinds).shape_of(step) for step in range(2000)]
    used = [
        scene
        for step in range(50)
        for scene in range(mixed.first_scene_of(step), mixed.first_scene_of(step) + drawn[step].scenes)
    ]
    assert len(set(used)) == len(used) and min(used) == 1000
