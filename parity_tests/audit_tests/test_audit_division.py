"""The audit of quotients: emitted integers are executed, so what executes them is held to the spec, and mutants must be noticed."""

import math
import re
from pathlib import Path

import numpy as np
import pytest

from loss_balancers import spec
from loss_balancers.audit import Dag, NotEstablishedError, compare
from loss_balancers.audit.dumps import cpu, ptx, tpu
from loss_balancers.audit.expressions import comparison as kinds
from loss_balancers.audit.expressions.dag import INFINITY, bits_float, float_bits
from loss_balancers.audit.expressions.established import native_quotient
from loss_balancers.audit.expressions.execute import DEVICES, ERROR, execute
from loss_balancers.audit.expressions.steps import STEPS
from loss_balancers.audit.expressions.words import words
from loss_balancers.audit.prescribed import draws, reference
from loss_balancers.audit.prescribed.cases import EMA, RATIO_NAMES, RATIOS, balancers
from loss_balancers.audit.prescribed.nodes import Nodes
from loss_balancers.audit.prescribed.reference import COMMITS, evaluate, own_entries
from loss_balancers.spec import arithmetic
from loss_balancers.spec.call import Call

# `div` of two scalars: as compiled for sm_90; for a TPU v6e, without address checks and barriers; and for an x86-64 CPU.
EXCERPTS = Path(__file__).parent / "excerpts"
HLO = (EXCERPTS / "kernel.hlo").read_text("utf-8")
PTX = (EXCERPTS / "div_sm_90.ptx").read_text("utf-8")
BUNDLES = (EXCERPTS / "div_v6e.bundles").read_text("utf-8")
IR = (EXCERPTS / "div_x86_64.ll").read_text("utf-8")
DIVISIONS = (EXCERPTS / "div_x86_64.objdump").read_text("utf-8")
OPERANDS = [x[::8] for x in draws.operands(2)]

READERS = {
    "ptx": (lambda text: ptx.read_module(HLO.replace("NAME", "loop_select_fusion"), text, "sm_90", Dag()), PTX),
    "tpu": (lambda text: tpu.read_module(HLO, text, {}, 1, Dag()), BUNDLES),
    "cpu": (lambda text: cpu.read_module(HLO.replace("NAME", "compare_select_fusion"), text, DIVISIONS, Dag()).results, IR),
}


def outcome(form, text):
    try:
        return [finding.kind for finding in compare(reference.div(Dag()), READERS[form][0](text), OPERANDS)]
    except NotEstablishedError:
        return ["not established"]


@pytest.mark.parametrize("form", READERS)
def test_an_excerpt_of_div_is_as_specified(form):
    assert outcome(form, READERS[form][1]) == []


@pytest.mark.parametrize("form", READERS)
def test_no_line_of_div_can_be_lost_or_changed_unnoticed(form):
    """Each line that computes or moves a value, once left out and once with its operation renamed."""
    text = READERS[form][1]
    pattern = r"f32|float|i32|\.b32|\.u32|\.s32|sand|smov \(|spop|vst|vld|selp|setp|dma|sld|ld\.|st\.|select|bfe|icmp"
    skipped = r"define|declare|\.visible|\s*\.(param|reg)"
    lines = [line for line in text.splitlines() if re.search(pattern, line) and not re.match(skipped, line)]
    assert len(lines) > 80
    unnoticed = []
    for line in lines:
        renamed = re.sub(r"(= (?:tail )?|^\s+(?=[a-z]))([a-z])", r"\1zz\2", line, count=1)
        unnoticed += [new for new in ("", renamed) if new == line or not outcome(form, text.replace(line, new, 1))]
    assert unnoticed == []


def test_no_constant_of_div_can_be_another_unnoticed():
    """Each integer of the PTX, one more. Three are of no account: two bounds that no quotient reaches, a tie that there is not."""
    unnoticed = []
    for line in PTX[PTX.index("{") :].splitlines():
        for match in re.finditer(r"(?<= )-?\d+(?=[,;])", line):
            mutant = line[: match.start()] + str(int(match[0]) + 1) + line[match.end() :]
            unnoticed += [] if outcome("ptx", PTX.replace(line, mutant, 1)) else [line.strip()]
    assert unnoticed == [
        "selp.b32 %r23, 2147483647, %r22, %p11;",
        "selp.b32 %r39, 2147483647, %r38, %p13;",
        "sub.s32 %r47, -8388608, %r14;",
    ]


PLANTED = [
    # The device's quotient itself, and with it where the integers overflow; then the integers without their repair.
    ("ptx", "selp.f32 %r67, 0f00000000, %r65, %p16", "div.full.f32 %r67, %r7, %r3", kinds.APPROXIMATE_DIVISION),
    ("ptx", "selp.f32 %r67, 0f00000000, %r65, %p16", "div.rn.f32 %r67, %r7, %r3", kinds.UNREPAIRED_DIVISION),
    ("ptx", "mul.rn.f32 %r61, %r3, %r59", "div.full.f32 %r61, %r7, %r3", kinds.APPROXIMATE_DIVISION),
    ("ptx", "add.s32 %r55, %r54, %r50", "mov.b32 %r55, %r54", kinds.UNREPAIRED_DIVISION),
    ("ptx", "cvt.rzi.s32.f32 %r38, %r37", "mov.b32 %r38, 0", kinds.UNREPAIRED_DIVISION),
    ("ptx", "mul.rn.f32 %r61, %r3, %r59", "fma.rn.f32 %r61, %r3, %r59, %r3", kinds.FUSED_MULTIPLY_ADD),
    ("ptx", "sub.s32 %r41, %r6, %r9", "vsub.s32 %r41, %r6, %r9", "not established"),
    ("cpu", "%93 = select i1 %92, float 0.000000e+00", "%93 = select i1 %92, float %28", kinds.UNREPAIRED_DIVISION),
    ("cpu", "%73 = add i32 %72, %.neg1", "%73 = add i32 %72, 0", kinds.UNREPAIRED_DIVISION),
]


@pytest.mark.parametrize(("form", "old", "new", "kind"), PLANTED)
def test_a_quotient_that_is_not_repaired_is_found(form, old, new, kind):
    text = READERS[form][1]
    assert old in text
    assert kind in outcome(form, text.replace(old, new, 1))


def test_an_estimate_that_is_far_off_is_not_taken_for_granted():
    """The repair is made for estimates near the quotient. Half of it is not near."""
    assert outcome("ptx", PTX.replace("mul.rn.f32 %r21, %r20, 0f4B000000", "mul.rn.f32 %r21, %r20, 0f4A800000")) != []


def test_only_integers_and_comparisons_may_come_of_a_native_quotient():
    dag = Dag()
    x, y = dag.input(0), dag.input(1)
    native = dag.op("div", x, y)
    assert native_quotient(dag.op("keep", native)) is native
    assert native_quotient(dag.op("mul", dag.op("vrcp.f32", y), x)) is not None
    assert native_quotient(dag.op("i.add", dag.op("to_int", native), x)) is None
    assert native_quotient(dag.op("select", dag.op("cmp.lt", native, x), x, y)) is None


def test_what_depends_on_more_than_the_operands_is_not_the_step():
    """A third input that changes no bit here might elsewhere."""
    want, have = Dag(), Dag()
    quotient = READERS["ptx"][0](PTX)[0]
    more = have.op("select", have.op("cmp.eq", have.input(2), have.number(1.5)), quotient, quotient)
    assert more is quotient
    more = have.op("select", have.op("cmp.eq", have.input(2), have.number(1e-30)), have.input(2), quotient)
    inputs = [*OPERANDS, words(np.full(len(OPERANDS[0]), 2.0, np.float32))]
    with pytest.raises(NotEstablishedError, match="the bits are its, but it depends on what is no operand of it"):
        compare(reference.div(want), [more], inputs)


def test_code_may_ask_of_a_term_whether_it_is_finite_where_the_step_asks_that_of_the_sum():
    """And nothing else of it: neither its value nor where it lies."""
    want, have = Dag(), Dag()
    ops = Nodes(want)
    total = ops.add(ops.multiply(want.input(0), 0.9, "f32"), ops.magnitude(want.input(1)), "f32")
    expected = ops.choose(ops.finite(total), 2.0, 1.0)
    magnitude, infinity, one, two = have.op("abs", have.input(1)), have.const(INFINITY), have.number(1.0), have.number(2.0)
    total = have.op("add", have.op("mul", have.input(0), have.number(0.9)), magnitude)
    taken = have.op("cmp.lt", have.op("abs", total), infinity)

    def told_by(term, bound):
        """As the step, but what is chosen if it holds is 2 by another question."""
        return have.op("select", taken, have.op("select", have.op("cmp.lt", term, bound), two, one), one)

    inputs = [words(np.array([1.0, 2.0, 0.0, 3.0], np.float32)), words(np.array([1.0, math.inf, math.nan, -5.0], np.float32))]
    for term in (magnitude, have.op("keep", magnitude), have.op("i.and", have.input(1), have.const(0x7FFFFFFF))):
        assert compare([expected], [told_by(term, infinity)], inputs) == []
    for term, bound in ((magnitude, have.number(3e38)), (have.op("neg", have.input(1)), infinity)):
        with pytest.raises(NotEstablishedError, match="it depends on what is no operand of it"):
            compare([expected], [told_by(term, bound)], inputs)


def same(got, want):
    return (math.isnan(got) and math.isnan(want)) or float_bits(got) == float_bits(want)


def drawn(inputs, step):
    return zip(*([bits_float(int(word)) for word in x[::step]] for x in inputs), strict=True)


def executed(root, inputs, device):
    """What the root is on each of the inputs."""
    values = execute([root], inputs, device)[id(root)]
    assert values is not None
    return values


def test_the_quotient_of_words_is_that_of_the_exact_reference():
    with np.errstate(all="ignore"):
        got = STEPS["div"](*OPERANDS)
    for (a, b), word in zip(drawn(OPERANDS, 1), got, strict=True):
        assert same(bits_float(int(word)), arithmetic.div(a, b, "f32"))


def test_the_prescribed_quotient_and_its_gradient_are_those_of_the_reference():
    for a, b, g in drawn(draws.operands(3), 40):
        assert same(evaluate(reference.div(Dag()), [a, b])[0], arithmetic.div(a, b, "f32"))
        for got, want in zip(
            evaluate(reference.div(Dag(), gradient=True), [a, b, g]), arithmetic.div_gradient(g, a, b, "f32"), strict=True
        ):
            assert same(got, want)


def called(names, losses):
    return Call(tuple(names), ("f32",) * len(names), tuple(losses))


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("name", balancers())
def test_what_is_prescribed_computes_what_the_reference_does(name):
    """The reference computed with nodes, then executed, against the reference computed with numbers."""
    settings, names = balancers()[name]
    own, count = own_entries(settings), len(names)
    for values in drawn([*draws.losses(count + 1), *draws.state(own)], 80):
        losses, g, rest = values[:count], values[count], iter(values[count + 1 :])
        state = {"steps": COMMITS} | {entry.name: tuple(next(rest) for _ in range(entry.shape[0])) for entry in own}
        want, gradients = settings.exact_aggregate(called(names, losses), g, state)
        got = evaluate(reference.balancer(Dag(), settings, names, gradient=False), [*losses, *values[count + 1 :]])
        got += evaluate(reference.balancer(Dag(), settings, names, gradient=True), values)
        assert all(map(same, got, [want, *gradients]))


@pytest.mark.parametrize("device", DEVICES, ids=["exact", "above", "below", "at random, flushing", "at random"])
def test_the_executed_dag_has_the_bits_of_the_exact_reference(device):
    """NumPy's float32 against fractions, on a DAG with every operation that the spec prescribes."""
    inputs = draws.losses(len(RATIO_NAMES) + 1)
    roots = reference.balancer(Dag(), RATIOS, RATIO_NAMES, gradient=True)
    values = [executed(root, [x[::40] for x in inputs], device) for root in roots]
    for i, given in enumerate(drawn(inputs, 40)):
        assert all(map(same, [bits_float(int(value[i])) for value in values], evaluate(roots, given)))


def test_estimates_are_moved_and_nothing_else():
    dag = Dag()
    quotient, product = dag.op("div.full.f32", dag.input(0), dag.input(1)), dag.op("mul", dag.input(0), dag.input(1))
    inputs = [words(np.array([6.0, 0.0, math.inf], np.float32)), words(np.array([2.0, 1.0, 1.0], np.float32))]
    three = float_bits(3.0)
    moved = [executed(quotient, inputs, device).tolist() for device in DEVICES]
    assert moved[:3] == [[three + by, 0, float_bits(math.inf)] for by in (0, ERROR, -ERROR)]
    assert all(executed(product, inputs, device)[0] == float_bits(12.0) for device in DEVICES)


def test_the_settings_that_are_audited_divide_where_compilers_would_not():
    assert RATIOS.roles(RATIO_NAMES).intermediates == (1, 2, 3)  # the mean of three: x / 3
    assert EMA.reference == EMA.names.index(spec.STUDENT_LOSS_KEY)
