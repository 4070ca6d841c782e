"""The audit of PyTorch on CUDA: its machine code must hold what its PTX says, and what cannot be read is never taken as read."""

import json
from pathlib import Path

import pytest

from loss_balancers.audit import TARGETS, Dag, NotEstablishedError, compare
from loss_balancers.audit.dumps.ptx import Bytes, run_kernel
from loss_balancers.audit.dumps.torch_cuda import _machine_code, read_case
from loss_balancers.audit.expressions import comparison as kinds
from loss_balancers.audit.expressions.dag import float_bits
from loss_balancers.audit.prescribed.cases import EMA, RATIOS
from loss_balancers.audit.prescribed.torch_cases import torch_cases

PTX = """
	mul.f32 	%r4, %r1, 0f3E800000;
	selp.f32 	%r6, 0f00000000, %r4, %p2;
	add.f32 	%r3, %r6, %r2;
"""
SASS = """
        /*00a0*/                   FMUL R7, R2, 0.25 ;
        /*00b0*/               @P0 FADD R9, R7, R4 ;
        /*00c0*/                   STG.E desc[UR4][R6.64], R9 ;
"""


def machine_code(folder: Path, sass: str, ptx: str = PTX):
    (folder / "0_kernel.ptx").write_text(ptx, "utf-8")
    (folder / "0_kernel.sass").write_text(sass, "utf-8")
    return _machine_code(folder / "0_kernel.ptx")


def test_machine_code_that_rounds_as_often_as_the_ptx_is_as_specified(tmp_path):
    assert machine_code(tmp_path, SASS) == []


@pytest.mark.parametrize("fused", ["FFMA R9, R2, 0.25, R4", "FFMA2 R8, R2.F32x2.HI_LO, R4.F32x2.HI_LO, R6.F32x2.HI_LO"])
def test_a_fused_multiply_add_is_a_finding_with_its_line(tmp_path, fused):
    (finding,) = machine_code(tmp_path, f"        /*00a0*/                   {fused} ;\n")
    assert finding.kind == kinds.FUSED_MULTIPLY_ADD
    assert finding.line == fused


@pytest.mark.parametrize(
    ("sass", "words"),
    [
        ("", "no instructions"),
        (SASS.replace("FADD", "FMNMX"), r"\(1, 1\) products and sums"),
        (SASS + SASS.replace("00a0", "00d0"), r"\(1, 1\) products and sums"),
        (SASS.replace("FMUL", "FMUL.RZ"), "does not round to nearest: FMUL.RZ"),
        (SASS.replace("FADD", "FADD.SAT"), "does not round to nearest: FADD.SAT"),
    ],
    ids=["empty", "a-sum-less", "twice-as-many", "toward-zero", "saturated"],
)
def test_machine_code_of_another_kind_is_not_established(tmp_path, sass, words):
    with pytest.raises(NotEstablishedError, match=words):
        machine_code(tmp_path, sass)


CALL = """    def call(self, args):
        arg0_1, arg1_1 = args
        args.clear()
        with torch.cuda._DeviceGuard(0):
            torch.cuda.set_device(0)
            buf0 = empty_strided_cuda((), (), torch.float32)
            {line}
        return (buf0, )
"""


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("extern_kernels.mm(arg0_1, arg1_1, out=buf0)", "a call of Inductor's that cannot be read"),
        ("triton_poi_fused_0.run(arg0_1, arg1_1, buf0, 1, stream=raw_stream0)", "there is no kernel triton_poi_fused_0"),
        ("buf0 = aten.mul(arg0_1, arg1_1)", "a value of Inductor's that cannot be read"),
        ("while True: pass", "a line of Inductor's that cannot be read"),
    ],
    ids=["extern", "kernel", "value", "line"],
)
def test_a_call_that_cannot_be_read_is_not_established(tmp_path, line, words):
    plan = {"code": CALL.format(line=line), "inputs": ["a", "b"], "results": ["sum"]}
    (tmp_path / "plan.json").write_text(json.dumps([plan]), "utf-8")
    with pytest.raises(NotEstablishedError, match=words):
        read_case(tmp_path, 2, {}, "sm_90", Dag())


def test_what_nothing_has_stored_is_not_established(tmp_path):
    plan = {"code": CALL.format(line="args.clear()"), "inputs": ["a", "b"], "results": ["sum"]}
    (tmp_path / "plan.json").write_text(json.dumps([plan]), "utf-8")
    dag = Dag()
    results, findings = read_case(tmp_path, 2, {}, "sm_90", dag)
    assert not findings
    expected = Dag()
    with pytest.raises(NotEstablishedError, match="nothing has stored"):
        compare([expected.op("add", expected.input(0), expected.input(1))], results)


def test_other_inputs_than_the_case_has_are_not_established(tmp_path):
    (tmp_path / "plan.json").write_text(json.dumps([{"code": "", "inputs": ["a"], "results": []}]), "utf-8")
    with pytest.raises(NotEstablishedError, match="takes 1 inputs, not 2"):
        read_case(tmp_path, 2, {}, "sm_90", Dag())


def test_a_buffer_is_an_input_where_it_is_state_and_else_what_it_held(tmp_path):
    """And a backward gives None in place of its gradient."""
    call = CALL.format(line="args.clear()")
    forward = {
        "code": call.replace("arg0_1, arg1_1", "arg0_1, arg1_1, arg2_1").replace("buf0, )", "arg0_1, arg1_1, arg2_1)"),
        "inputs": ["x", "t", "w"],
        "results": ["x", "t", "w"],
        "buffers": {"t": ["total", [0, 0]], "w": ["_table", [float_bits(0.5)]]},
    }
    backward = {
        "code": call.replace("arg0_1, arg1_1", "arg0_1, arg1_1, arg2_1, arg3_1").replace("buf0, )", "arg1_1, arg2_1, None)"),
        "inputs": ["x", "t", "w", "tangent"],
        "results": ["t", "w", None],
    }
    (tmp_path / "plan.json").write_text(json.dumps([forward, backward]), "utf-8")
    dag = Dag()
    results, findings = read_case(tmp_path, 1, {"total": [2, 3]}, "sm_90", dag)
    assert not findings
    assert results == [dag.input(2), dag.input(3), dag.number(0.5)]


TRUTH = """
.version 8.7
.target sm_90a
.visible .entry kernel(
	.param .u64 .ptr .global .align 1 kernel_param_0,
	.param .u64 .ptr .global .align 1 kernel_param_1
)
.reqntid 1
{
	ld.param.b64 	%rd1, [kernel_param_0];
	ld.param.b64 	%rd2, [kernel_param_1];
	ld.global.b8 { %rs1 }, [ %rd1 + 1 ];
	st.global.b8 [ %rd2 + 2 ], { %rs1 };
	ret;
}
"""


def test_a_truth_is_a_byte_and_nothing_else_is():
    dag = Dag()
    truths, other = Bytes(dag.op("cmp.gt", dag.input(i), dag.input(0)) for i in (1, 2)), Bytes([dag.const(0)] * 3)
    assert run_kernel(TRUTH, "kernel", [truths, other], 0, "sm_90", dag) == {(1, 2): truths[1]}
    with pytest.raises(NotEstablishedError, match="another width"):
        run_kernel(TRUTH, "kernel", [truths, list(other)], 0, "sm_90", dag)
    (stored,) = run_kernel(TRUTH, "kernel", [list(truths), other], 0, "sm_90", dag).values()
    assert stored.op == "opaque"


def products(factor: float):
    """keep(factor * keep(x)) of the spec, and keep(factor * x) of the code."""
    dag = Dag()
    x, weight = dag.input(0), dag.const(float_bits(factor))
    return dag.op("keep", dag.op("mul", dag.op("keep", x), weight)), dag.op("keep", dag.op("mul", x, weight))


@pytest.mark.parametrize("factor", [1 / 3, -0.7, 1.0])
def test_an_operand_need_not_be_flushed_before_a_product_that_flushes_it(factor):
    expected, actual = products(factor)
    assert compare([expected], [actual]) == []


@pytest.mark.parametrize("factor", [1.0000001192092896, 4.0, -2.0])
def test_a_factor_above_1_may_lift_an_operand_that_should_have_been_flushed(factor):
    expected, actual = products(factor)
    assert compare([expected], [actual])


def test_every_kind_of_fault_that_this_target_can_have_is_planted():
    planted = {case.case.name for case in torch_cases() if case.case.planted}
    assert {"planted: no barrier", "planted: tree sum", "planted: native division"} <= planted
    assert {f"planted: native division, {each.balancer}" for each in (EMA, RATIOS)} <= planted


def test_what_overwrites_state_is_compiled_for_one_architecture():
    writing = {case.case.name for case in torch_cases() if case.writes}
    targets = {name: set(target.only()) for name, target in TARGETS.items() if target.only is not None}
    assert [name for name, only in targets.items() if writing <= only] == ["cuda-torch:sm_90"]
    assert all(only == targets["cuda-torch:sm_90"] - writing for name, only in targets.items() if name != "cuda-torch:sm_90")
