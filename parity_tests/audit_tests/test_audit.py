"""The audit, without compilers first: parsers on excerpts of real dumps and on planted faults; then with those that are here."""

import math
import random
import re
import shutil
import struct
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from loss_balancers import spec
from loss_balancers.audit import TARGETS, Dag, NotEstablishedError, Target, audit, compare
from loss_balancers.audit.__main__ import every_case
from loss_balancers.audit.dumps import cpu, ptx, tpu
from loss_balancers.audit.expressions import comparison as kinds
from loss_balancers.audit.expressions.dag import float_bits
from loss_balancers.audit.prescribed import reference
from loss_balancers.audit.prescribed.cases import Case
from loss_balancers.audit.prescribed.reference import evaluate
from loss_balancers.audit.run import judge
from loss_balancers.spec.errors import with_extra

NAMES = ("KDLoss_0", spec.STUDENT_LOSS_KEY)
SETTINGS = spec.StaticLossBalancerSettings([0.01])

# StaticLossBalancer([0.01]) of one KD loss and the student's: as compiled for sm_90; for a TPU v6e, without address checks and
# barriers; and for an x86-64 CPU.
EXCERPTS = Path(__file__).parent / "excerpts"
HLO = (EXCERPTS / "kernel.hlo").read_text("utf-8")
PTX = (EXCERPTS / "sm_90.ptx").read_text("utf-8")
BUNDLES = (EXCERPTS / "v6e.bundles").read_text("utf-8")
IR = (EXCERPTS / "x86_64.ll").read_text("utf-8")
OBJECT = (EXCERPTS / "x86_64.objdump").read_text("utf-8")


def read_ptx(text=PTX, hlo=HLO):
    return ptx.read_module(hlo.replace("NAME", "loop_select_fusion"), text, "sm_90", Dag())


def read_bundles(text=BUNDLES):
    return tpu.read_module(HLO, text, {}, 1, Dag())


def read_ir(text=IR, disassembly=OBJECT):
    return cpu.read_module(HLO.replace("NAME", "compare_select_fusion"), text, disassembly, Dag()).results


READERS = {"ptx": (read_ptx, PTX), "tpu": (read_bundles, BUNDLES), "cpu": (read_ir, IR)}


def outcome(reader, text):
    """The kinds of the findings; ["not established"] if there is no telling."""
    try:
        return [finding.kind for finding in compare(reference.balancer(Dag(), SETTINGS, NAMES, gradient=False), reader(text))]
    except NotEstablishedError:
        return ["not established"]


@pytest.mark.parametrize("form", READERS)
def test_an_excerpt_is_as_specified(form):
    reader, text = READERS[form]
    assert outcome(reader, text) == []


PLANTED = [
    ("ptx", "add.rn.f32 %r13, %r11, %r12", "fma.rn.f32 %r13, %r1, 0f3C23D70A, %r12", kinds.FUSED_MULTIPLY_ADD),
    ("ptx", "add.rn.f32 %r13, %r11, %r12", "add.rn.f32 %r13, %r5, %r12", kinds.MISSING_BARRIER),
    ("ptx", "mul.rn.f32 %r5", "mul.f32 %r5", kinds.OTHER_OPERATION),  # PTX may contract what has no rounding
    ("ptx", "mul.rn.f32 %r5", "mul.rn.ftz.f32 %r5", kinds.OTHER_OPERATION),
    ("ptx", "0f3C23D70A", "0f3C23D70B", kinds.OTHER_OPERATION),
    ("ptx", "setp.le.f32 %p3", "setp.lt.f32 %p3", kinds.MISSING_FLUSH),
    ("ptx", "selp.f32 %r11, 0f00000000, %r6, %p3", "selp.f32 %r11, 0f80000000, %r6, %p3", kinds.MISSING_FLUSH),
    ("ptx", "selp.f32 %r11, 0f00000000, %r6, %p3", "selp.f32 %r11, %r6, 0f00000000, %p3", kinds.MISSING_FLUSH),
    ("ptx", "add.rn.f32 %r13, %r11, %r12", "prmt.b32 %r13, %r11, %r12, 5", "not established"),
    ("ptx", "add.rn.f32 %r13", "add.rn.f32x2 %r13", "not established"),
    ("ptx", "st.global.b32 [%rd6], %r17;", "", "not established"),
    ("ptx", "ret;", "@%p1 bra $L1;\n ret;", "not established"),
    ("ptx", ".target sm_90a", ".target sm_70", "not established"),
    ("ptx", ".reqntid 1, 1, 1", ".reqntid 128, 1, 1", "not established"),
    ("ptx", ".entry loop_select_fusion", ".entry other", "not established"),
    ("tpu", "sadd.f32 %s401_s12, %s397_s0", "sadd.f32 %s401_s12, %s395_s27", kinds.OTHER_OPERATION),
    ("tpu", "smul.f32 0.01", "smul.f32 0.010000001", kinds.OTHER_OPERATION),
    ("tpu", "= sadd.f32", "= sma.f32", kinds.OTHER_OPERATION),
    ("tpu", "%s405_s16 = smov (%p134_p9", "%s405_s16 = smov (!%p134_p9", kinds.MISSING_FLUSH),
    ("tpu", "scmp.le.f32.partialorder %s56_s1", "scmp.lt.f32.partialorder %s56_s1", kinds.MISSING_FLUSH),
    ("tpu", "%s397_s0 = smov", "%s397_s7 = smov", "not established"),  # the move and what it moves over are two registers
    ("tpu", "%s96_s13 = sand", "%s96_s0 = sand", "not established"),  # overwrites a product before it is added
    ("tpu", "sand.u32 2147483647, %s53", "sand.u32 2147483646, %s53", kinds.MISSING_FLUSH),
    ("tpu", "= spop %317", "= spop %315", "not established"),
    ("tpu", "= vld [vmem:[#allocation12]", "= vzz [vmem:[#allocation12]", "not established"),
    ("tpu", "%154 = vst [vmem:[#allocation13] sm:$0x1]", "%154 = vst.msk [vmem:[#allocation13] sm:$0x1]", "not established"),
    ("tpu", " 0x20   :", " 0x20 LB:", "not established"),
    ("tpu", " 0x20   :", " 0x20 :: ", "not established"),
    ("tpu", "= dma.vmem_to_hbm", "= dma.hbm_to_hbm", "not established"),
    ("tpu", "scalar_parameter_address 0", "scalar_parameter_address 1", kinds.OTHER_OPERATION),
    ("cpu", "fadd float %20, %28", "fadd contract float %20, %28", kinds.OTHER_OPERATION),
    ("cpu", "%29 = fadd float %20, %28", "%29 = fadd float %16, %28", kinds.MISSING_BARRIER),
    ("cpu", "fmul float %21, 9.900000e-01", "fmul float %21, 9.910000e-01", kinds.OTHER_OPERATION),
    ("cpu", "fmul float %21, 9.900000e-01", "fmul float %21, 9.900001e-01", kinds.OTHER_OPERATION),
    ("cpu", "fcmp ole float %33", "fcmp olt float %33", kinds.MISSING_FLUSH),
    ("cpu", "%29 = fadd float %20, %28", "%29 = phi float [ %20, %1 ], [ %28, %1 ]", "not established"),
    ("cpu", "br label %36", "br label %.lr.ph", "not established"),
    ("cpu", "store float %35", "store half %35", "not established"),
]


@pytest.mark.parametrize(("form", "old", "new", "kind"), PLANTED, ids=[f"{form}-{new or old}" for form, old, new, _ in PLANTED])
def test_a_planted_fault_is_found(form, old, new, kind):
    reader, text = READERS[form]
    assert old in text
    assert kind in outcome(reader, text.replace(old, new, 1))


@pytest.mark.parametrize("form", READERS)
def test_no_line_can_be_lost_or_changed_unnoticed(form):
    """Each line that computes or moves a value, once left out and once with its operation renamed."""
    reader, text = READERS[form]
    pattern = r"f32|float|sand|smov \(|spop|vst|vld|selp|setp|dma|sld|ld\.|st\."
    lines = [line for line in text.splitlines() if re.search(pattern, line) and not re.match(r"define|\.visible|\s*\.param", line)]
    assert len(lines) > 20
    unnoticed = []
    for line in lines:
        renamed = re.sub(r"(= (?:tail )?|^\s+(?=[a-z]))([a-z])", r"\1zz\2", line, count=1)
        unnoticed += [new for new in ("", renamed) if new == line or not outcome(reader, text.replace(line, new, 1))]
    assert unnoticed == []


def test_a_result_may_replace_an_operand_where_there_is_no_doubt_which():
    """XLA may give both one buffer. With another result, or another thread, it is not known what is read and when."""
    replaced = PTX.replace("st.global.b32 [%rd6]", "st.global.b32 [%rd4]")
    assert replaced != PTX
    assert outcome(read_ptx, replaced) == []
    assert outcome(read_ptx, replaced.replace(".reqntid 1, 1, 1", ".reqntid 2, 1, 1")) == ["not established"]
    more = replaced.replace("st.global.b32 [%rd4]", "st.global.b32 [%rd2], %r17;\n\tst.global.b32 [%rd4]")
    assert outcome(read_ptx, more) == ["not established"]


def test_what_a_load_says_of_caches_changes_no_value():
    hinted = PTX.replace("ld.global.nc.b32", "ld.global.nc.L1::evict_last.L2::cache_hint.b32").replace(
        "ld.global.b32", "ld.global.L1::evict_last.L2::cache_hint.b32"
    )
    assert hinted != PTX
    assert outcome(read_ptx, hinted) == []
    assert outcome(read_ptx, hinted.replace("L1::evict_last", "relaxed")) == ["not established"]


def test_a_kernel_that_is_not_in_the_dump_is_not_established():
    with pytest.raises(NotEstablishedError, match="no PTX kernel"):
        read_ptx(hlo=HLO.replace("%NAME", "%other"))


@pytest.mark.parametrize(
    "entry",
    ["", HLO.replace("parameter(1)", "while(%xs_0_.1)"), HLO.replace("ROOT ", ""), HLO.replace("f32[] fusion", "f32[4] fusion")],
)
def test_an_entry_computation_that_cannot_be_read_is_not_established(entry):
    with pytest.raises(NotEstablishedError):
        read_ptx(hlo=entry)


def random_f32(rng):
    return struct.unpack("<f", struct.pack("<f", rng.uniform(-4, 4) * 2.0 ** rng.choice([0, 0, 0, -20, 20, -125])))[0]


def chain(dag, terms):
    total = terms[0]
    for term in terms[1:]:
        total = dag.op("add", total, term)
    return total


def test_a_sum_in_another_order_is_reassociated_and_a_commuted_one_is_not():
    want, have = Dag(), Dag()
    x, y = ([dag.input(i) for i in range(4)] for dag in (want, have))
    expected = [chain(want, x)]
    assert compare(expected, [chain(have, [y[1], y[0], y[2], y[3]])]) == []
    assert compare(expected, [have.op("add", y[3], have.op("add", chain(have, y[:2]), y[2]))]) == []
    for actual in (chain(have, y[::-1]), have.op("add", chain(have, y[:2]), chain(have, y[2:]))):
        assert [finding.kind for finding in compare(expected, [actual])] == [kinds.REASSOCIATED_SUM]


def test_the_number_of_results_counts():
    dag = Dag()
    with pytest.raises(NotEstablishedError, match="expected 2 results, found 1"):
        compare([dag.input(0), dag.input(0)], [dag.input(0)])


def test_what_cannot_be_read_is_never_the_same():
    want, have = Dag(), Dag()
    with pytest.raises(NotEstablishedError, match="zz"):
        compare([want.op("add", want.input(0), want.input(1))], [have.op("add", have.input(0), have.opaque("zz"))])


def test_keep_is_recognised_only_where_it_keeps_nan_and_drops_the_smallest_normal():
    dag = Dag()
    x, zero, tiny = dag.input(0), dag.number(0.0), dag.const(0x00800000)
    magnitude = dag.op("abs", x)
    keep = dag.op("keep", x)
    assert dag.op("select", dag.op("cmp.le", magnitude, tiny), zero, x) is keep
    assert dag.op("select", dag.op("cmp.gtu", magnitude, tiny), x, zero) is keep
    assert dag.op("keep", keep) is keep
    for comparison, yes, no in (("leu", zero, x), ("lt", zero, x), ("gt", x, zero), ("le", x, zero), ("le", dag.number(-0.0), x)):
        assert dag.op("select", dag.op(f"cmp.{comparison}", magnitude, tiny), yes, no).op == "select"
    minus = dag.op("mul", x, dag.number(-0.5))  # +0 * -0.5 is -0
    assert dag.op("select", dag.op("cmp.le", magnitude, tiny), zero, minus).op == "select"


@pytest.mark.parametrize("weight", [0.7, [0.01], [0.1, 0.2, 0.3], [round(0.01 + 0.011 * i, 3) for i in range(12)]], ids=str)
@pytest.mark.parametrize("student", [True, False], ids=["student", "no student"])
def test_the_prescribed_dag_computes_what_the_reference_does(weight, student):
    """The DAGs are held to the spec: the same bits, subnormals, NaN and infinity included."""
    settings = spec.StaticLossBalancerSettings(weight)
    count = len(weight) if isinstance(weight, list) else 3
    names = (*(f"KDLoss_{i}" for i in range(count)), *([spec.STUDENT_LOSS_KEY] if student else []))
    rng = random.Random(0)
    special = [0.0, -0.0, math.inf, -math.inf, math.nan, 2.0**-126, -(2.0**-126), 2.0**-140, 3e38]
    for trial in range(60):
        values = [rng.choice(special) if rng.random() < trial / 200 else random_f32(rng) for _ in (*names, "cotangent")]
        aggregate, gradients = spec.static_reference(
            settings, dict(zip(names, (("f32", v) for v in values), strict=False)), values[-1]
        )
        forward = evaluate(reference.balancer(Dag(), settings, names, gradient=False), values)
        gradient = evaluate(reference.balancer(Dag(), settings, names, gradient=True), values)
        for got, want in zip([*forward, *gradient], [aggregate, *gradients.values()], strict=True):
            assert (math.isnan(got) and math.isnan(want)) or float_bits(got) == float_bits(want)


def reads(results):
    """A target that reads what a test gives it."""
    return Target("fake", {}, (), "none", lambda case, dump, dag: (results(dag), []))


def planted(*found):
    return Case("planted", 1, 1, lambda dag: [dag.op("keep", dag.input(0))], lambda: abs, planted=found)


def test_a_planted_fault_that_is_not_found_is_missed(tmp_path):
    same = reads(lambda dag: [dag.op("keep", dag.input(0))])
    other = reads(lambda dag: [dag.op("neg", dag.input(0))])
    assert judge(same, planted(), tmp_path).status == "as specified"
    assert judge(same, planted(kinds.MISSING_FLUSH), tmp_path).status == "missed"
    assert judge(other, planted(kinds.MISSING_FLUSH), tmp_path).status == "found"
    assert judge(other, planted(kinds.REASSOCIATED_SUM), tmp_path).status == "missed"
    assert judge(other, planted(), tmp_path).status == "findings"


def test_a_parser_that_fails_establishes_nothing(tmp_path):
    verdict = judge(reads(lambda dag: {}["moved"]), planted(), tmp_path)
    assert (verdict.status, verdict.passed) == ("not established", False)
    assert "KeyError while reading the dump" in verdict.reason


def absent(target):
    for package in target.packages:
        try:
            version(package)
        except PackageNotFoundError:
            return f"{package} is not installed. {with_extra(target.extra)}"
    if target.name == "cpu" and shutil.which("objdump") is None:
        return "objdump is not installed: install binutils"
    return None


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_is_as_specified_and_its_planted_faults_are_found(name):
    reason = absent(TARGETS[name])
    if reason:
        pytest.skip(reason)
    verdicts, versions = audit(TARGETS[name], TARGETS[name].cases(every_case()))
    assert {name: verdict for name, verdict in verdicts.items() if not verdict.passed} == {}
    assert versions["device"]


def test_the_audit_imports_neither_framework():
    code = "import sys, loss_balancers.audit.__main__; sys.exit(bool({'jax', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
