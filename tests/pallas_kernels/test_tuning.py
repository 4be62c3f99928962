"""How an implementation's config is chosen, the file that autotune writes, and what the Hopper kernel's
configs take of the chip.
"""

import dataclasses
import json
import math
from importlib import resources

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import BlockMask, Implementation, TuningConfig, autotune, registered, triton, tuning, xla
from pallas_kernels.implementation import ATTENTION, Device, find, names
from pallas_kernels.mosaic_sm90 import config as configs

pytestmark = pytest.mark.every_jax
H100 = Device("gpu", "NVIDIA H100 80GB HBM3", "9.0")
ANOTHER = Device("gpu", "another GPU", "9.0")
MOSAIC, TRITON = find("mosaic_sm90"), find("triton")
TUNED = resources.files("pallas_kernels") / "tuned"


@dataclasses.dataclass(frozen=True)
class Rows:
    """Query blocks at a time."""

    rows: int


class Tunable(Implementation):
    """Of another package, with a config of its own; runs anywhere."""

    name = "tunable"
    operations = (ATTENTION,)
    config_type = Rows

    def __init__(self):
        self.seen = []

    def attend(self, q, k, v, block_mask, config=None):
        self.seen.append(config)
        return xla.block_sparse_attention(q, k, v, block_mask)

    def tuning_key(self, head_dim, block):
        return -(-head_dim // 16) * 16, block

    def search_space(self, head_dim, block, device=None):
        return [Rows(1), Rows(2)] if block[1] < 256 else []

    def heuristic(self, head_dim, block, device=None):
        return Rows(head_dim)


@pytest.fixture
def tunable():
    implementation = Tunable()
    with registered(implementation):
        yield implementation


def write_tuned(monkeypatch, tmp_path, entries, implementation="tunable", device="a GPU/2"):
    """A package whose file for the device has these entries."""
    autotune.write(tmp_path / "tuned" / tuning.tuned_file(device), device, implementation, entries)
    monkeypatch.setattr(tuning.resources, "files", lambda _: tmp_path)
    tuning._tuned.cache_clear()


@pytest.fixture(autouse=True)
def forget_tuned_files():
    yield
    tuning._tuned.cache_clear()
    tuning._warn_once.cache_clear()


@pytest.mark.parametrize("name", [path.name for path in TUNED.iterdir()])
def test_tuned_configs_can_run(name):
    content = json.loads((TUNED / name).read_text())
    assert name == tuning.tuned_file(content.pop("device"))
    assert set(content) == {ATTENTION}
    for implementation, entries in content[ATTENTION].items():
        one = find(implementation)
        keys = [tuning.key_of(entry) for entry in entries]
        assert keys == sorted(set(keys)) and keys
        for key, entry in zip(keys, entries, strict=True):
            assert key == one.tuning_key(*key)
            assert one.config_type(**entry["config"]) in one.search_space(*key)


def test_lookup_prefers_what_was_measured():
    assert tuning.lookup(MOSAIC, H100, 64, (128, 64)) == TuningConfig(warpgroups=2, step_keys=192, stages=3)
    assert tuning.lookup(MOSAIC, H100, 64, (192, 64)) == TuningConfig(warpgroups=3, step_keys=128, stages=3)
    assert tuning.lookup(MOSAIC, ANOTHER, 64, (192, 64)) == MOSAIC.heuristic(64, (192, 64))
    assert tuning.lookup(MOSAIC, H100, 128, (128, 264)) is None


def test_lookup_is_by_device_implementation_and_key(monkeypatch, tmp_path, tunable):
    """A file's fields are named: their order means nothing."""
    entry = lambda head_dim, block, rows: {"config": {"rows": rows}, "block": block, "head_dim": head_dim}
    write_tuned(monkeypatch, tmp_path, [entry(16, [32, 16], 1), entry(32, [32, 16], 2)])
    look = lambda device, *key: tuning.lookup(tunable, Device("gpu", device), *key)
    assert look("a GPU/2", 16, (32, 16)) == Rows(1)
    assert look("a GPU/2", 20, (32, 16)) == Rows(2)  # run as 32
    assert look("a GPU/2", 16, (16, 32)) == Rows(16)
    assert look("another", 16, (32, 16)) == Rows(16)
    other = type("Other", (Tunable,), {"name": "other"})()
    assert tuning.lookup(other, Device("gpu", "a GPU/2"), 16, (32, 16)) == Rows(16)
    assert tuning.lookup(find("xla"), Device("gpu", "a GPU/2"), 16, (32, 16)) is None


ENTRY = {"head_dim": 16, "block": [32, 16], "config": {"rows": 1}}


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"device": "a GPU/2", "block_sparse',
        "[]",
        json.dumps({ATTENTION: []}),
        json.dumps({ATTENTION: {"tunable": [ENTRY | {"config": 2}]}}),
        json.dumps({ATTENTION: {"tunable": [{"head_dim": 16, "block": [32, 16]}]}}),
        json.dumps({ATTENTION: {"tunable": [ENTRY | {"block": 32}]}}),
    ],
)
def test_a_damaged_file_is_said_once_and_not_replaced(text, tunable, tmp_path, monkeypatch, caplog, capsys):
    write_tuned(monkeypatch, tmp_path, [ENTRY])
    (path,) = (tmp_path / "tuned").iterdir()
    path.write_text(text)
    for _ in range(2):
        assert tuning.lookup(tunable, Device("gpu", "a GPU/2"), 16, (32, 16)) == Rows(16)
    (record,) = caplog.records
    assert f"{path} is no file of tuned configs" in record.getMessage()
    assert autotune.main(["--output", str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {path} is no file of tuned configs (")
    assert path.read_text() == text


@pytest.mark.parametrize("config", [{"rows": 3}, {"rows": 1, "columns": 2}, {}])
def test_a_config_of_another_version_is_not_run(config, tunable, tmp_path, monkeypatch, caplog):
    write_tuned(monkeypatch, tmp_path, [ENTRY | {"config": config}])
    for _ in range(2):
        assert tuning.lookup(tunable, Device("gpu", "a GPU/2"), 16, (32, 16)) == Rows(16)
    (record,) = caplog.records
    assert "a_GPU_2.json has a config that 'tunable' cannot run" in record.getMessage()


def test_a_config_that_does_not_fit_says_why():
    assert "1, 2 or 3" in TuningConfig(4, 128, 2).why_not(64, (256, 64))
    assert "query rows" in TuningConfig(3, 128, 2).why_not(64, (128, 64))
    assert "multiple" in TuningConfig(2, 128, 2).why_not(64, (128, 96))
    assert "factor of 64" in TuningConfig(2, 256, 2).why_not(64, (128, 96))
    assert "streams=2 must be 1, or 2 with" in TuningConfig(2, 64, 2, streams=2).why_not(64, (128, 64))
    assert "shared memory" in TuningConfig(1, 192, 3, streams=2).why_not(64, (64, 64))
    assert "at least 2" in TuningConfig(2, 128, 1).why_not(64, (128, 64))
    assert "shared memory" in TuningConfig(2, 256, 4).why_not(64, (128, 64))
    assert "registers" in TuningConfig(3, 256, 2).why_not(64, (192, 64))
    assert TuningConfig(2, 192, 3).why_not(64, (128, 64)) is None


def test_a_step_holds_parts_of_wide_blocks():
    """So masks of 128 keys run in the steps that masks of 64 do."""
    gathered = lambda keys, block_k: TuningConfig(2, keys, 2).gathered_keys((128, block_k))
    assert [gathered(192, size) for size in (32, 64, 96, 128, 192, 512)] == [32, 64, 96, 64, 192, 64]
    assert [gathered(128, size) for size in (128, 256, 96)] == [128, 128, None]
    assert MOSAIC.heuristic(64, (128, 128)) == TuningConfig(2, 192, 3)


def test_one_warpgroup_of_rows_runs_in_two_streams():
    assert MOSAIC.heuristic(64, (64, 64)) == TuningConfig(1, 192, 2, streams=2)
    assert MOSAIC.heuristic(64, (128, 64)).streams == MOSAIC.heuristic(128, (64, 64)).streams == 1


def test_a_step_takes_the_registers_of_its_accumulators(monkeypatch):
    """Per thread of 128: 64 × keys scores in 32 bits, their weights in 16, 64 × head_dim outputs in 32."""
    for keys, head_dim in ((64, 64), (192, 64), (256, 128)):
        bits = 64 * keys * (32 + 16) + 64 * head_dim * 32
        assert TuningConfig(1, keys, 2).accumulator_registers(head_dim) == bits / 32 / 128
    assert "fill 176 of 160 registers" in TuningConfig(3, 192, 2).why_not(64, (192, 64))
    # Eight of a consumer's registers are left to everything else.
    assert TuningConfig(2, 256, 2).accumulator_registers(64) == 224 == configs.REGISTERS[1, 2][0] - 8
    assert TuningConfig(2, 256, 2).why_not(64, (128, 64)) is None
    monkeypatch.setitem(configs.REGISTERS, (1, 2), (231, 40))
    assert "fill 224 of 231 registers" in TuningConfig(2, 256, 2).why_not(64, (128, 64))


@pytest.mark.parametrize(
    "config, head_dim, size",
    [
        ((2, 192, 3), 64, 201_472),
        ((1, 128, 4), 128, 315_136),
        ((3, 64, 2), 64, 110_592),
        ((1, 192, 2, 2), 64, 217_856),
    ],
)
def test_a_config_takes_the_shared_memory_of_its_tiles(config, head_dim, size):
    """As summed by hand: q twice, the output, K and V of every stage; column numbers; 3,328 bytes besides.
    Two streams: twice q, by which the output leaves, K, V and column numbers.
    """
    assert TuningConfig(*config).shared_memory_bytes(head_dim) == size


@pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="Pallas Mosaic GPU needs jax >= 0.11")
@pytest.mark.parametrize("config, H", [((2, 192, 3, 1), 64), ((1, 128, 2, 1), 128), ((1, 128, 3, 2), 64)])
def test_the_kernel_allocates_what_its_config_counts(monkeypatch, config, H):
    from pallas_kernels.mosaic_sm90 import attention

    sizes = []
    allocate = attention.plgpu.SMEM

    def counted(shape, dtype, **options):
        sizes.append(math.prod(shape) * np.dtype(dtype).itemsize)
        return allocate(shape, dtype, **options)

    monkeypatch.setattr(attention.plgpu, "SMEM", counted)
    q = jnp.zeros((1, 256, 1, H), jnp.bfloat16)
    mask = BlockMask.full(1, 1, 256, (256,))
    run = lambda q: attention.block_sparse_attention(q, q, q, mask, TuningConfig(*config), num_blocks=1)
    jax.make_jaxpr(run)(q)
    bounds = 4 * 64 * config[0] * config[3]  # of the rows, among OTHER_BYTES
    counts = TuningConfig(*config).shared_memory_bytes(H) - configs.OTHER_BYTES
    assert sum(sizes) == counts + bounds


def test_the_search_space_is_what_fits():
    fields = [dataclasses.astuple(config) for config in MOSAIC.search_space(64, (128, 64))]
    steps = {(keys, stages) for keys in (64, 128, 192) for stages in (2, 3, 4)} - {(192, 4)}
    assert {(keys, stages) for warpgroups, keys, stages, _ in fields if warpgroups == 2} == steps | {(256, 2)}
    assert {(warpgroups, streams) for warpgroups, _, _, streams in fields} == {(1, 1), (2, 1)}
    streams = {config.streams for config in MOSAIC.search_space(64, (64, 64))}
    assert streams == {1, 2}  # where warpgroups cannot share what is gathered


@pytest.mark.parametrize("implementation", [MOSAIC, TRITON], ids=lambda one: one.name)
@pytest.mark.parametrize(
    "block", [(128, 64), (192, 64), (64, 64), (256, 64), (128, 128), (128, 32), (128, 192), (384, 128)]
)
def test_the_heuristic_is_in_the_search_space(block, implementation):
    assert implementation.heuristic(64, block) in implementation.search_space(64, block)


def test_a_triton_config_that_does_not_fit_says_why():
    why_not = lambda *config, head_dim=64, block=(128, 64): triton.TuningConfig(*config).why_not(
        head_dim, block
    )
    assert why_not(128, 64, 4, 3) is None
    assert "rows=96 must be a power of two" in why_not(96, 64, 4, 3)
    assert "must divide block=(128, 96)'s keys" in why_not(128, 64, 4, 3, block=(128, 96))
    assert "at most 2 times block=(128, 16)'s keys" in why_not(128, 64, 4, 3, block=(128, 16))
    assert "more than a quarter of block=(32, 64)'s queries" in why_not(128, 64, 4, 3, block=(32, 64))
    assert "have 16 of rows=64 each" in why_not(64, 64, 8, 3)
    assert "stages=1" in why_not(128, 64, 4, 1)
    assert "it needs 114688 bytes of shared memory" in why_not(128, 128, 4, 4)  # Q, and K and V three times
    assert "fill 256 registers" in why_not(128, 64, 4, 2, head_dim=128)


@pytest.mark.parametrize("head_dim, warps", [(64, 4), (128, 8)])
def test_the_triton_heuristic_is_what_autotune_found(head_dim, warps):
    """... on an H100, for the paper's blocks; and it fills the query blocks of others."""
    assert TRITON.heuristic(head_dim, (128, 64)) == triton.TuningConfig(128, 64, warps, 3)
    for entry in json.loads((TUNED / tuning.tuned_file(H100.kind)).read_text())[ATTENTION]["triton"]:
        key = tuning.key_of(entry)
        assert TRITON.heuristic(*key, H100) == triton.TuningConfig(**entry["config"])
    assert TRITON.heuristic(head_dim, (192, 64)).rows == 64
    small = TRITON.heuristic(head_dim, (16, 8))
    assert small.rows == small.step_keys == 16 and small.warps == 1


# KiB of shared memory that a thread block may use (CUDA C++ Programming Guide)
SHARED_KIB = {"8.0": 163, "8.6": 99, "8.7": 163, "8.9": 99, "9.0": 227, "10.0": 227, "12.0": 99, "13.0": 99}


@pytest.mark.parametrize("capability", SHARED_KIB)
@pytest.mark.parametrize("head_dim", [16, 64, 128])
@pytest.mark.parametrize("block", [(128, 64), (128, 128), (64, 64), (64, 32), (192, 64), (256, 256), (16, 8)])
def test_every_card_has_a_triton_config_that_fits(capability, head_dim, block):
    device = Device("gpu", "a card", capability)
    config = tuning.lookup(TRITON, device, head_dim, block)
    assert config == TRITON.heuristic(head_dim, block, device)
    assert config in TRITON.search_space(head_dim, block, device)
    # Where products are asynchronous, all stages are in shared memory. A card that came later is taken for
    # the least one.
    stages = config.stages if float(capability) in (9, 10, 13) else config.stages - 1
    assert 2 * head_dim * (config.rows + 2 * stages * config.step_keys) <= SHARED_KIB[capability] * 1024
    assert config.tile_registers(head_dim) <= (224 if stages == config.stages else 160)
    assert config.rows == min(128 if block[0] % 128 == 0 else 64, block[0])


def test_a_triton_config_is_of_the_card():
    """Steps of whole blocks where products are asynchronous; fewer stages rather than half of the warps."""
    heuristic = lambda capability, *key: TRITON.heuristic(*key, Device("gpu", "a card", capability))
    assert heuristic("9.0", 128, (128, 128)) == triton.TuningConfig(128, 128, 8, 3)
    assert heuristic("8.6", 128, (128, 128)) == triton.TuningConfig(128, 64, 8, 3)
    assert heuristic("8.0", 128, (64, 64)) == triton.TuningConfig(64, 64, 4, 3)
    assert heuristic("8.6", 128, (64, 64)) == triton.TuningConfig(64, 64, 4, 2)
    wide = triton.TuningConfig(128, 128, 4, 4)
    assert "114688 bytes" in wide.why_not(64, (128, 128))
    assert wide.why_not(64, (128, 128), triton.configs.card_of("8.0")) is None


def test_autotune_adds_to_its_file(tmp_path):
    path = tmp_path / "tuned" / "gpu.json"
    entry = lambda head_dim, queries, rows: {
        "head_dim": head_dim,
        "block": (queries, 64),
        "config": {"rows": rows},
    }
    autotune.write(path, "gpu", "a", [entry(64, 128, 1)])
    autotune.write(path, "gpu", "b", [entry(64, 128, 2)])
    autotune.write(path, "gpu", "a", [entry(64, 64, 3), entry(64, 128, 4)])
    as_read = lambda entries: json.loads(json.dumps(entries))
    assert json.loads(path.read_text()) == {
        "device": "gpu",
        ATTENTION: {
            "a": as_read([entry(64, 64, 3), entry(64, 128, 4)]),
            "b": as_read([entry(64, 128, 2)]),
        },
    }
    before = path.read_text()
    with pytest.raises(TypeError):
        autotune.write(path, "gpu", "a", [entry(64, 128, object())])  # no JSON
    assert path.read_text() == before
    assert [p.name for p in path.parent.iterdir()] == ["gpu.json"]


def test_autotune_measures_what_has_something_to_tune(tunable, tmp_path, monkeypatch, capsys):
    times = {Rows(1): 2.0, Rows(2): 1.0}

    def measured(attend, *arguments, repeats):
        attend(*arguments)
        return times[attend.keywords["config"]]

    monkeypatch.setattr(autotune, "jax_ms", measured)
    path = tmp_path / "found.json"
    small = ["--tokens", "64", "--heads", "1", "--block", "32x16", "--head-dim", "9", "16"]
    assert autotune.main([*small, "--output", str(path)]) == 0
    assert tunable.seen == [Rows(1), Rows(2)]  # both head dims run as 16
    ((key, config),) = [
        (tuning.key_of(entry), entry["config"])
        for entry in json.loads(path.read_text())[ATTENTION]["tunable"]
    ]
    assert (key, config) == ((16, (32, 16)), {"rows": 2})
    assert "best: Rows(rows=2)" in capsys.readouterr().out


@pytest.mark.parametrize("failing", [{Rows(2)}, {Rows(1), Rows(2)}])
def test_autotune_passes_over_a_config_that_does_not_run(failing, tunable, tmp_path, monkeypatch, capsys):
    def measured(attend, *arguments, repeats):
        if attend.keywords["config"] in failing:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: shared memory")
        return 1.0

    monkeypatch.setattr(autotune, "jax_ms", measured)
    path = tmp_path / "found.json"
    status = autotune.main(["--tokens", "64", "--heads", "1", "--block", "32x16", "--output", str(path)])
    out, err = capsys.readouterr()
    assert "Rows(rows=2): does not run: RESOURCE_EXHAUSTED" in out
    if len(failing) == 1:
        (entry,) = json.loads(path.read_text())[ATTENTION]["tunable"]
        assert (status, entry["config"]) == (0, {"rows": 1})
    else:
        assert status == 1 and "nothing was written" in err and not path.exists()


def test_autotune_measures_nothing_that_it_could_not_write(tunable, tmp_path, capsys):
    (tmp_path / "file").touch()
    for path, why in ((tmp_path, "is a folder"), (tmp_path / "file" / "x.json", "cannot be written")):
        assert autotune.main(["--output", str(path)]) == 2
        out, err = capsys.readouterr()
        assert not out and err.startswith(f"error: {path} {why}") and err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--tokens", "0"], "--tokens, --heads and --repeats must be at least 1"),
        (["--density", "nan"], "--density must be above 0 and at most 1"),
        (["--block", "128x300"], "no config of 'tunable' fits head_dim 64 with a block of 128x300"),
        (["--implementation", "xla"], "'xla': it has nothing to tune"),
        (["--implementation", "mosaic_sm90"], "'mosaic_sm90': it needs jax >= 0.11 and a Hopper GPU"),
        (["--implementation", "cuda"], "must be None or one of"),
    ],
)
def test_autotune_refuses_in_one_sentence(arguments, message, capsys, tunable, monkeypatch):
    monkeypatch.setattr(
        autotune.implementations, "device_of", lambda: autotune.implementations.Device("cpu", "cpu")
    )
    assert autotune.main(arguments) == 2
    out, err = capsys.readouterr()
    assert not out and message in err and err.count("\n") == 1


@pytest.mark.parametrize("block", ["128", "128x", "0x64", "128,64"])
def test_autotune_says_how_a_block_is_written(block, capsys):
    with pytest.raises(SystemExit, match="2"):
        autotune.main(["--block", block])
    assert f"it must be queries x keys such as 128x64, not {block!r}" in capsys.readouterr().err


def test_autotune_says_why_nothing_can_be_tuned(capsys, monkeypatch):
    monkeypatch.setattr(
        autotune.implementations, "device_of", lambda: autotune.implementations.Device("cpu", "cpu")
    )
    assert autotune.main([]) == 2
    message = capsys.readouterr().err
    assert all(f"'{name}': it " in message for name in names())
