"""The audit of `exp`, `log`, `sqrt` and `softmax`: emitted code of 64 bits is executed, and a fault in it must be noticed."""

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from loss_balancers.audit import Dag, NotEstablishedError, compare
from loss_balancers.audit.dumps import cpu, ptx
from loss_balancers.audit.dumps.bundles import computed
from loss_balancers.audit.expressions import comparison as kinds
from loss_balancers.audit.expressions import doubles
from loss_balancers.audit.expressions.dag import float_bits
from loss_balancers.audit.expressions.execute import DEVICES, execute
from loss_balancers.audit.expressions.steps import STEPS
from loss_balancers.audit.expressions.words import folded, words
from loss_balancers.audit.prescribed import draws, reference
from loss_balancers.audit.prescribed.cases import ELEMENTARY
from loss_balancers.audit.prescribed.nodes import Nodes
from loss_balancers.spec import arithmetic, hard_inputs

# `exp` of a scalar: as XLA compiles it for sm_90 and for x86-64, and as Triton does for sm_90.
EXCERPTS = Path(__file__).parent / "excerpts"
HLO = """\
ENTRY %main.2 (x.1: f32[]) -> f32[] {
  %x.1 = f32[] parameter(0), metadata={op_name="x"}
  ROOT %NAME = f32[] fusion(%x.1), kind=kLoop, calls=%fused_computation
}
"""
PTX, TRITON, IR = ((EXCERPTS / f"exp_{name}").read_text("utf-8") for name in ("sm_90.ptx", "triton.ptx", "x86_64.ll"))
OBJECT_CODE = (EXCERPTS / "exp_x86_64.objdump").read_text("utf-8")
OPERANDS = draws.hard_operands("exp")[:1]


def of_triton(text):
    dag = Dag()
    stored = ptx.run_kernel(text, "exp", [[dag.input(0)], [dag.opaque("before")]], 2, "sm_90", dag)
    return [stored[1, 0]]


READERS = {
    "ptx": (lambda text: ptx.read_module(HLO.replace("NAME", "loop_convert_fusion"), text, "sm_90", Dag()), PTX),
    "triton": (of_triton, TRITON),
    "cpu": (
        lambda text: cpu.read_module(HLO.replace("NAME", "convert_bitcast-convert_fusion"), text, OBJECT_CODE, Dag()).results,
        IR,
    ),
}


def outcome(form, text):
    try:
        return [finding.kind for finding in compare(reference.elementary(Dag(), "exp"), READERS[form][0](text), OPERANDS)]
    except NotEstablishedError:
        return ["not established"]


@pytest.mark.parametrize("form", READERS)
def test_an_excerpt_of_exp_is_as_specified(form):
    assert outcome(form, READERS[form][1]) == []


PLANTED = [
    # A coefficient, 2^-32 off; a product that is lost; ln 2, 2^-40 off; then other wrong constants, and a sum that is lost.
    ("ptx", "768614336404564650", "768614337478306474", kinds.OTHER_BITS),
    ("ptx", "mad.lo.s64 %rd132, %rd128, %rd23, %rd129", "mov.b64 %rd132, %rd129", kinds.OTHER_BITS),
    ("ptx", "5660435428506895957", "5660435428523673173", kinds.OTHER_BITS),
    ("cpu", "mul nsw i64 %22, 1549082005", "mul nsw i64 %22, 1509082005", kinds.OTHER_BITS),
    ("cpu", "shl i64 %21, 14", "shl i64 %21, 13", kinds.OTHER_BITS),
    ("cpu", "add nsw i64 %101, %98", "add nsw i64 %101, 0", kinds.OTHER_BITS),
    # The last digits of ln 2; a coefficient; the path of what overflows.
    ("triton", "0dBC7ABC9E3B39803F", "0d0000000000000000", kinds.OTHER_BITS),
    ("triton", "0d3FC5555555555511", "0d3FC5555555545511", kinds.OTHER_BITS),
    ("triton", "setp.lt.f32 %p2, %r5, 0f4086232B", "setp.lt.f32 %p2, %r5, 0f7F800000", kinds.OTHER_BITS),
    # The device's own power, and what is not known.
    ("ptx", "selp.b32 %r7, 2143289344, %r6, %p5", "ex2.approx.f32 %r7, %r1", kinds.APPROXIMATE_FUNCTION),
    ("triton", "cvt.rn.f32.f64 %r21, %rd38", "ex2.approx.f32 %r21, %r1", kinds.APPROXIMATE_FUNCTION),
    ("triton", "fma.rn.f64 %rd33,", "fma.rz.f64 %rd33,", "not established"),
    ("ptx", "shr.s64 %rd17,", "shr.x64 %rd17,", "not established"),
    ("cpu", "mul nsw i64 %22,", "sdiv nsw i64 %22,", "not established"),
    ("cpu", "= ashr i64 %24, 50", "= ashr i128 %24, 50", "not established"),
]


@pytest.mark.parametrize(("form", "old", "new", "kind"), PLANTED)
def test_a_fault_in_exp_is_found(form, old, new, kind):
    text = READERS[form][1].replace("\t", " ").replace("  ", " ")
    assert old in text
    assert kind in outcome(form, text.replace(old, new, 1))


def test_a_fault_that_shows_at_the_hardest_inputs_alone_is_found():
    """A result that is another at one number, of those that are hardest to round."""
    hardest = hard_inputs.EXP[0]
    fault = (
        f"setp.eq.b32 %p0, %r1, {hardest};\nselp.b32 %r7, 2143289344, %r6, %p5;\nadd.s32 %r8, %r7, 1;\nselp.b32 %r7, %r8, %r7, %p0;"
    )
    assert kinds.OTHER_BITS in outcome("ptx", PTX.replace("selp.b32 \t%r7, 2143289344, %r6, %p5;", fault))


@pytest.mark.parametrize("function", ELEMENTARY)
def test_what_is_executed_beside_the_code_is_the_exact_reference(function):
    x = draws.hard_operands(function)[0]
    hardest = np.array([*hard_inputs.EXP, *hard_inputs.LOG], np.uint32)
    assert set(hardest.tolist()) <= set(x.tolist())
    some = np.concatenate([x[::40], hardest])
    for word, got in zip(some, STEPS[function](some), strict=True):
        value = hard_inputs.number(int(word))
        want = getattr(arithmetic.EXACT, function)(value)
        assert int(got) == float_bits(want) or (math.isnan(want) and math.isnan(hard_inputs.number(int(got)))), (function, value)


def test_many_draws_are_nearly_as_hard_as_can_be():
    """A quarter of them has a result within 2^-9 ulp of the middle between two floats."""
    for function in ("exp", "log"):
        x = draws.hard_operands(function)[0][draws.COUNT // 4 : draws.COUNT // 2].view(np.float32).astype(np.float64)
        y = getattr(np, function)(x)
        nearest = y.astype(np.float32)
        assert np.all(np.abs(np.abs(y - nearest) / np.spacing(np.abs(nearest)) - 0.5) < 2**-7)


WIDE = [0, 1, -1, 5, 63, 2**31, 2**62, 2**63 - 1, -(2**63), -777777777777]


@pytest.mark.parametrize(
    ("op", "python"),
    [
        ("w.add", lambda a, b: a + b),
        ("w.mul", lambda a, b: a * b),
        ("w.max", max),
        ("w.umin", lambda a, b: min(a % 2**64, b % 2**64)),
        ("w.usub.sat", lambda a, b: max(a % 2**64 - b % 2**64, 0)),
        ("wide.lt", lambda a, b: a < b),
        ("wide.ult", lambda a, b: a % 2**64 < b % 2**64),
    ],
)
def test_wide_integers_have_64_bits(op, python):
    for a in WIDE:
        for b in WIDE:
            assert folded(op, a % 2**64, b % 2**64, wide=[True, True]) == int(python(a, b)) % 2**64


def test_what_is_extended_cut_shifted_and_counted():
    assert folded("w.sext", 2**32 - 5) == 2**64 - 5
    assert folded("w.zext", 2**32 - 5) == 2**32 - 5
    assert [folded(half, 0x123456789ABCDEF0, wide=[True]) for half in ("low", "high")] == [0x9ABCDEF0, 0x12345678]
    assert folded("w.pair", 0x9ABCDEF0, 0x12345678) == 0x123456789ABCDEF0
    assert folded("w.sar", 2**64 - 8, 2, wide=[True, False]) == 2**64 - 2
    assert folded("w.shr", 2**64 - 8, 60, wide=[True, False]) == 15
    assert [folded("clz", 2**n, wide=[True]) for n in (0, 31, 32, 63)] == [63, 32, 31, 0]
    assert [folded("clz", 0, wide=[True]), folded("i.clz", 0), folded("i.clz", 1 << 20)] == [64, 32, 11]
    # LLVM's classes, from -infinity to +infinity.
    numbers = (-math.inf, -1.0, -1e-40, -0.0, 0.0, 1e-40, 1.0, math.inf)
    assert [folded("is_of_class", float_bits(x), 1 << i) for i, x in enumerate(numbers, 2)] == [1] * 8
    assert folded("is_of_class", float_bits(math.nan), 0x3FC) == 0


def test_shifts_of_a_tpu_leave_nothing_or_the_sign():
    dag = Dag()
    x, n = dag.const(2**32 - 16), dag.const(40)
    assert [computed(op, [x, n], dag, "").value for op in ("sshll.u32", "sshrl.u32", "sshra.s32")] == [0, 0, 2**32 - 1]
    assert computed("sclz", [dag.const(1)], dag, "").value == 31


def test_a_fused_multiply_add_of_doubles_rounds_once():
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(2000) * 2.0 ** rng.integers(-30, 30, 2000) for _ in range(2))
    c = np.where(rng.random(2000) < 0.5, -a * b, rng.standard_normal(2000)) * (1 + rng.integers(-2, 3, 2000) * 2.0**-52)
    got = doubles.numbers(doubles.fused(doubles.wide(a), doubles.wide(b), doubles.wide(c)))
    for x, y, z, word in zip(a, b, c, got, strict=True):
        exact = Fraction(x) * Fraction(y) + Fraction(z)
        assert word == float(exact), (x, y, z)
    with np.errstate(all="ignore"):
        special = doubles.fused(*(doubles.wide(np.array(each)) for each in ([1.0, math.inf], [2.0, 0.0], [math.inf, 1.0])))
    assert doubles.numbers(special)[0] == math.inf
    assert math.isnan(doubles.numbers(special)[1])


def softmax_of(dag, x, y, greatest):
    """Which of two numbers is the greatest, told to a result that the spec defines wherever it is not."""
    valid = dag.op("i.and", dag.op("cmp.lt", x, dag.number(math.inf)), dag.op("cmp.lt", y, dag.number(math.inf)))
    return dag.op("select", valid, greatest, dag.number(math.nan))


def test_what_the_greatest_is_of_nan_is_not_compared_but_the_results_are():
    want, have = Dag(), Dag()
    ops = Nodes(want)
    x, y = ops.flush(want.input(0), "f32"), ops.flush(want.input(1), "f32")
    valid = ops.every([ops.above(math.inf, x), ops.above(math.inf, y)])
    expected = [ops.choose(valid, ops.greatest([x, y]), math.nan)]
    a, b = have.op("keep", have.input(0)), have.op("keep", have.input(1))
    inputs = [words(np.array(each, np.float32)) for each in ([1.0, math.nan, 3.0, 2.0], [2.0, 1.0, math.nan, -1.0])]
    loses_nan = have.op("select", have.op("cmp.gt", a, b), a, b)
    for greatest in (have.op("maximum", a, b), loses_nan):
        assert compare(expected, [softmax_of(have, a, b, greatest)], inputs) == []
    # The same for what is no NaN; but here it is no NaN that comes of it.
    found = compare(expected, [loses_nan], inputs)
    assert [each.kind for each in found] == [kinds.OTHER_OPERATION]


def test_what_is_rewritten_is_the_same_on_every_input():
    """The forms that `Dag` takes for one, executed: special numbers, and any."""
    x = draws.operands(2)[0]
    dag = Dag()
    n, zero, tiny = dag.input(0), dag.const(0), dag.const(float_bits(2.0**-126))
    kept, raw = dag.op("keep", n), {"add": np.add, "mul": np.multiply}

    def run(node):
        value = execute([node], [x], DEVICES[0])[id(node)]
        assert value is not None
        return value.view(np.float32)

    with np.errstate(all="ignore"):
        k, f = run(kept), x.view(np.float32)
        pairs = [
            (dag.op("add", kept, zero), raw["add"](k, np.float32(0))),
            (dag.op("add", n, dag.number(-0.0)), raw["add"](f, np.float32(-0.0))),
            (dag.op("mul", n, dag.number(-1.0)), -f),
            (dag.op("add", n, n), f + f),
            (dag.op("keep", dag.op("mul", kept, dag.number(4.0))), np.where(np.abs(4 * k) <= 2.0**-126, np.float32(0), 4 * k)),
            (dag.op("keep", dag.op("neg", kept)), np.where(np.abs(k) <= 2.0**-126, np.float32(0), -k)),
            (
                dag.op("select", dag.op("cmp.le", dag.op("abs", n), tiny), dag.number(-0.0), dag.op("neg", n)),
                np.where(np.abs(f) <= 2.0**-126, np.float32(-0.0), -f),
            ),
        ]
    for node, want in pairs:
        got = run(node)
        same = (got.view(np.uint32) == want.astype(np.float32).view(np.uint32)) | (np.isnan(got) & np.isnan(want))
        assert same.all(), str(node)
