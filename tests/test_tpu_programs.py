"""One step compiled for eight TPU chips that are not there, counted beside optax's; and what counts."""

import pytest

from benchmarks import contenders, hlo, programs, report, sharing, suites, timing

# ---- what counts: needs no libtpu ----------------------------------------------------------------

TEXT = """HloModule jit_step, is_scheduled=true

%beside (p: bf16[64,8]) -> bf16[512,8] {
  %p = bf16[64,8]{1,0:T(8,128)} parameter(0)
  ROOT %all-gather.7 = bf16[512,8]{1,0:T(8,128)S(1)} all-gather(%p), channel_id=5, dimensions={0}
}

%all-reduce-scatter.1 (i: bf16[512,8]) -> bf16[64,8] {
  %i = bf16[512,8]{1,0:T(8,128)} parameter(0)
  %all-reduce.5 = bf16[512,8]{1,0:T(8,128)} all-reduce(%i), channel_id=6
  ROOT %dynamic-slice.1 = bf16[64,8]{1,0:T(8,128)} dynamic-slice(%all-reduce.5, %k), sizes={64,8}
}

%turn (c: (s32[], f32[64])) -> (s32[], f32[64]) {
  %c = (s32[]{:T(128)}, f32[64]{0:T(128)}) parameter(0)
  %x = f32[64]{0:T(128)} get-tuple-element(%c), index=1
  %reduce-scatter.1 = f32[8]{0:T(128)} reduce-scatter(%x), dimensions={0}
  ROOT %next = (s32[]{:T(128)}, f32[64]{0:T(128)}) tuple(%n, %x)
}

%emits (t: (f32[100])) -> (f32[100]) {
  %t = (f32[100]{0:T(128)}) parameter(0)
  %y = f32[100]{0:T(128)} get-tuple-element(%t), index=0
  %all-to-all.1 = f32[100]{0:T(128)} all-to-all(%y), dimensions={0}
  ROOT %out = (f32[100]{0:T(128)}) tuple(%all-to-all.1)
}

%waits (t: (f32[100])) -> (f32[100]) {
  %t = (f32[100]{0:T(128)}) parameter(0)
  %all-to-all.2 = f32[9]{0:T(128)} all-to-all(%z), dimensions={0}
  ROOT %same = (f32[100]{0:T(128)}) tuple(%y)
}

ENTRY %main (a: f32[512,64], b: f32[10], d: bf16[64,8]) -> f32[512,64] {
  %a = f32[512,64]{1,0:T(8,128)} parameter(0)
  %b = f32[10]{0:T(128)} parameter(1)
  %d = bf16[64,8]{1,0:T(8,128)} parameter(2)
  %all-reduce.1 = (f32[512,64]{1,0:T(8,128)S(1)}, /*index=1*/f32[]{:T(128)}) all-reduce(%a, %s), channel_id=1
  %all-reduce-start = (f32[10]{0:T(128)}, u32[2]{0:T(128)}) all-reduce-start(%b, %u), channel_id=2
  %all-reduce-done = (f32[10]{0:T(128)}, u32[2]{0:T(128)}) all-reduce-done(%all-reduce-start)
  %all-gather-start = ((f32[8]{0}, f32[2]{0}), (f32[64]{0}, f32[16]{0})) all-gather-start(%e, %f)
  %all-gather-done = (f32[64]{0}, f32[16]{0}) all-gather-done(%all-gather-start)
  %collective-permute-start = (f32[5]{0}, f32[5]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%h)
  %collective-permute-done = f32[5]{0} collective-permute-done(%collective-permute-start)
  %async-collective-start.3 = (bf16[512,8]{1,0}, u32[]{:S(2)}) fusion(%d), kind=kCustom, calls=%beside
  %fusion.8 = (bf16[512,8]{1,0}, u32[]{:S(2)}) fusion(%d), kind=kCustom, calls=%beside
  %async-collective-done.3 = bf16[512,8]{1,0} fusion(%g), kind=kCustom, calls=%beside
  %fusion.9 = bf16[64,8]{1,0} fusion(%async-collective-done.3), kind=kCustom, calls=%all-reduce-scatter.1
  %call = bf16[512,8]{1,0} call(%d), to_apply=%beside
  %conditional = (f32[100]{0:T(128)}) conditional(%i, %t0, %t1), branch_computations={%emits, %waits}
  %while = (s32[], f32[64]{0}) while(%c0), body=%turn, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %r = f32[512,64]{1,0:T(8,128)} get-tuple-element(%all-reduce.1), index=0
}
"""


def test_collectives_are_counted_where_they_run():
    gathered = 2 * (2 * 512 * 8)  # in a call; and in three fusions, which are one
    assert hlo.collectives(TEXT) == {
        "all-reduce": (2, 4 * (512 * 64 + 1) + 4 * (10 + 2)),  # a pair of start and done is one
        "all-gather": (3, 4 * (64 + 16) + gathered),  # not operands
        # As often as the loop turns; and a sum of which each chip keeps a part.
        "reduce-scatter": (3 + 1, 3 * 4 * 8 + 2 * 64 * 8),
        "all-to-all": (1, 4 * 100),  # the dearer of two branches
        "collective-permute": (1, 4 * 5),  # without its semaphores
    }


def test_the_cheaper_of_two_branches_can_be_counted():
    assert hlo.collectives(TEXT, least=True)["all-to-all"] == (1, 4 * 9)


def test_without_collectives_there_are_none():
    text = "ENTRY %main (a: f32[2]) -> f32[2] {\n  ROOT %all-reduced = f32[2]{0} negate(%a)\n}"
    assert hlo.collectives(text) == {}


MOVES = """
ENTRY %main (a: f32[100], b: f32[100], s: f32[]) -> (f32[100], f32[100]) {
  %a = f32[100]{0:T(128)} parameter(0)
  %b = f32[100]{0:T(128)} parameter(1)
  %s = f32[]{:T(128)S(6)} parameter(2)
  %copy-start = (f32[100]{0:T(128)S(1)}, f32[100]{0:T(128)}, u32[]{:S(2)}) copy-start(%b)
  %slice-start = ((f32[100]{0:T(128)}), f32[25]{0:T(128)S(1)}, s32[]{:S(2)}) slice-start(%a), slice={[0:25]}
  %copy-done = f32[100]{0:T(128)S(1)} copy-done(%copy-start)
  %slice-done = f32[25]{0:T(128)S(1)} slice-done(%slice-start)
  %fusion.1 = (f32[100]{0:T(128)}, f32[100]{0:T(128)S(1)}) fusion(%copy-done, %a, %s), kind=kLoop, calls=%f
  %x = f32[100]{0:T(128)} get-tuple-element(%fusion.1), index=0
  %y = f32[100]{0:T(128)S(1)} get-tuple-element(%fusion.1), index=1
  %copy-start.1 = (f32[100]{0:T(128)}, f32[100]{0:T(128)S(1)}, u32[]{:S(2)}) copy-start(%y)
  %copy-done.1 = f32[100]{0:T(128)} copy-done(%copy-start.1)
  ROOT %tuple = (f32[100]{0:T(128)}, f32[100]{0:T(128)}) tuple(%x, %copy-done.1)
}
"""


def test_only_the_large_memory_is_counted():
    read = 4 * (100 + 25 + 100)  # b and a part of a by copies, a by the fusion
    written = 4 * (100 + 100)
    assert hlo.moved(MOVES) == read + written


ASSIGNMENT = """allocation 3: size 512, page 0, constant:
 value: <1 c @0> (size=512,offset=9000): f32[]{:T(128)}
allocation 4: size 65536, page 0, preallocated-temp:
 value: <2 fusion{} @0> (size=512,offset=0): (f32[100]{0:T(128)}, f32[100]{0:T(128)})
 value: <3 fusion{0} @0> (size=1024,offset=16384): f32[256]{0:T(128)}
 value: <4 add @0> (size=1024,offset=16896): f32[256]{0:T(128)}
 value: <5 mul @0> (size=512,offset=32768): pred[3]{0:T(128)}
allocation 5: size 4096, color 1, page 0, preallocated-temp:
 value: <6 copy @0> (size=4096,offset=40000): f32[1024]{0:T(128)S(1)}
"""


def test_temporaries_are_arrays_of_the_large_memory():
    assert hlo.temporaries(ASSIGNMENT) == 1024 + 512 + 512


def test_the_table_has_a_line_per_optimizer():
    def row(name, column, value, peer, met):
        return suites.Row("programs", name, value, bar=peer, met=met, column=column, peer=peer)

    rows = [
        row("adam, FSDP", "collectives", 2, 1, False),
        row("adam, FSDP", "peak", 16.0, 16.5, True),
        row("soap, FSDP", "peak", 20.0, None, None),
    ]
    head, adam, soap = report.columns(rows)
    assert head.split()[-2:] == ["collectives", "peak"]
    assert adam.split("FSDP")[1].split() == ["2", "/", "1!", "16", "/", "16.5"]
    assert soap.split("FSDP")[1].split() == ["20"]
    assert "1 of 2 bars met" in report.table(rows, quick=False)


# ---- what is counted -----------------------------------------------------------------------------

compiles = pytest.mark.skipif(
    programs.library() is None, reason="needs libtpu, 484 MB: `make tpu` puts it into .tpu"
)
NAMES = ("adamw", "lamb", contenders.CLIPPED, programs.BETWEEN, "accumulate, finite", "skip")


@pytest.fixture(scope="module")
def worker():
    """A process that sees libtpu."""
    with timing.Worker(environment=programs.environment()) as worker:
        yield worker


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_no_more_collectives_and_memory_than_optax(worker, name):
    ours, optax = (worker.ask(programs.program, n, name) for n in ("adamfx", "optax"))
    assert ours.number <= optax.number, f"{ours.collectives} beside {optax.collectives}"
    assert ours.peak <= 1.01 * optax.peak


LARGEST = 8192 * 4096  # numbers of the embedding that a chip has


@compiles
@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "rests", "memories"),
    [
        ("offload(adamw(1e-3))", 8, 2),
        ("offload(chain(clip_by_global_norm(1.0), named('a', adamw(1e-3))))", 8, 2),
        ("offload(momentum(1e-3))", 4, 1),
        ("skip_nonfinite(offload(adamw(1e-3)))", 8, 2),
        ("accumulate(offload(adamw(1e-3)), 8)", 8, 2),
    ],
)
def test_a_state_on_the_host_is_fetched_leaf_by_leaf(worker, text, rests, memories):
    here = worker.ask(programs.of_text, text.replace("offload", "chain"))
    ours = worker.ask(programs.of_text, text)
    assert here.arguments - ours.arguments == pytest.approx(rests, abs=0.01)
    share = LARGEST / worker.ask(own_parameters)
    # Of the largest leaf the device holds the old and the new memory.
    assert ours.temporaries <= 4 * 2 * memories * share + 0.05
    assert here.peak - ours.peak >= rests - 4 * 2 * memories * share - 0.05


def own_parameters(held):
    """How many a chip has."""
    import jax

    return sum(x.size for x in jax.tree.leaves(programs.parameters("FSDP"))) / 8


@compiles
@pytest.mark.slow
def test_adamw_crosses_memory_once(worker):
    ours = worker.ask(programs.program, "adamfx", "adamw")
    assert ours.loops == 0
    assert ours.number == 0
    assert ours.temporaries < 0.01
    assert 28 <= ours.moved < 28.1  # p, g, m, v are read, p, m, v written


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("explicit", sharing.KINDS, ids=["auto", "explicit"])
def test_a_state_in_shares_costs_one_sum_and_one_gather(worker, explicit):
    whole = worker.ask(sharing.in_shares, "adamw", explicit)
    ours = worker.ask(sharing.in_shares, "shard_state(adamw)", explicit)
    assert whole["arguments"] == pytest.approx(4 + 8, abs=0.01)
    assert ours["arguments"] == pytest.approx(4 + 8 / 8, abs=0.01)
    assert whole["summed"] == pytest.approx(4, abs=0.02)
    assert ours["summed"] == pytest.approx(4 / 8, abs=0.02)  # into shards
    assert ours["gathered"] == pytest.approx(4, abs=0.02)
    assert ours["peak"] < whole["peak"] - 3


@compiles
@pytest.mark.slow
@pytest.mark.xdist_group("matrices")  # a decomposition takes a minute, once in a process
@pytest.mark.parametrize(
    ("text", "layout", "explicit"),
    [
        ("muon(1e-3)", "FSDP", False),
        ("muon(1e-3, matrices=ndim_at_least(3))", "FSDP, stacked", False),
        ("muon(1e-3)", "FSDP x tensors", True),
        ("soap(1e-3)", "FSDP", False),
        ("soap(1e-3)", "FSDP x tensors", True),
    ],
)
def test_matrices_move_once_over_the_chips(worker, text, layout, explicit):
    """There and back, those of SOAP with all that they remember."""
    width = 512 if "muon" in text else 128
    found = worker.ask(sharing.matrices, text, layout, explicit, False, 8, width)
    assert found["sent"] <= 2.01 * (1 + found["remembered"] * ("soap" in text))
    assert found["operations"] <= 1.25
