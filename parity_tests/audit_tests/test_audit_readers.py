"""The audit's readers where code is no straight line of scalars, and what executes words: on texts made for the purpose."""

import math

import numpy as np
import pytest

from loss_balancers.audit import Dag, NotEstablishedError
from loss_balancers.audit.dumps import cpu, ptx, tpu
from loss_balancers.audit.expressions.dag import float_bits
from loss_balancers.audit.expressions.execute import DEVICES, execute
from loss_balancers.audit.expressions.words import EXACT, NO_INTEGER, folded, words
from loss_balancers.spec.formats import flush

SIGNED = [0, 1, -1, 5, 31, 2**23, 2**31 - 1, -(2**31), -77777]


@pytest.mark.parametrize(
    ("op", "python"),
    [
        ("i.add", lambda a, b: a + b),
        ("i.sub", lambda a, b: a - b),
        ("i.mul", lambda a, b: a * b),
        ("i.xor", lambda a, b: a ^ b),
        ("i.min", min),
        ("i.umax", lambda a, b: max(a % 2**32, b % 2**32)),
        ("i.lt", lambda a, b: a < b),
        ("i.ult", lambda a, b: a % 2**32 < b % 2**32),
        ("i.shl", lambda a, n: a << n if 0 <= n < 32 else NO_INTEGER),
        ("i.shr", lambda a, n: a % 2**32 >> n if 0 <= n < 32 else NO_INTEGER),
        ("i.sar", lambda a, n: a >> n if 0 <= n < 32 else NO_INTEGER),
    ],
)
def test_integers_are_32_bits_wide(op, python):
    for a in SIGNED:
        for b in SIGNED:
            assert folded(op, a % 2**32, b % 2**32) == int(python(a, b)) % 2**32


def test_conversions_and_comparisons_of_words():
    assert [folded("to_int", float_bits(x)) for x in (1.9, -1.9, 3e9, math.nan)] == [1, 2**32 - 1, NO_INTEGER, NO_INTEGER]
    assert folded("to_float", 2**32 - 3) == float_bits(-3.0)
    assert folded("to_float.u", 2**31 + 1) == float_bits(2.0**31)
    nan, one = float_bits(math.nan), float_bits(1.0)
    assert [folded(f"cmp.{name}", nan, one) for name in ("le", "leu", "ne", "neu", "uno", "ord")] == [0, 1, 0, 1, 1, 0]
    assert folded("mul", one, one) is None  # rounds: a compiler may not do it either
    assert {"keep", "select"} <= set(EXACT)
    assert folded("keep", float_bits(2.0**-126)) == float_bits(flush(2.0**-126, "f32")) == 0


def kernel(body):
    return f"define noalias noundef ptr @k(ptr %0) #0 {{\n{body}\n}}\n"


BRANCHES = """\
  %2 = getelementptr inbounds nuw i8, ptr %0, i64 24
  %3 = load ptr, ptr %2, align 8
  %4 = load ptr, ptr %3, align 8
  %5 = load float, ptr %4, align 4
  %6 = getelementptr inbounds nuw i8, ptr %3, i64 16
  %7 = load ptr, ptr %6, align 8
  %8 = fcmp olt float %5, 0.000000e+00
  br i1 %8, label %9, label %11
9:                                                ; preds = %1
  %10 = fneg float %5
  br label %11
11:                                               ; preds = %9, %1
  %12 = phi float [ %10, %9 ], [ %5, %1 ]
  store float %12, ptr %7, align 4
  ret ptr null
"""
ONE_KERNEL = """\
ENTRY %main (x: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  ROOT %k = f32[] fusion(%x), kind=kLoop, calls=%c
}
"""


def test_branches_of_llvm_become_choices():
    module = cpu.read_module(ONE_KERNEL, kernel(BRANCHES), "   0:\tc3\tret", Dag())
    (root,) = module.results
    for x in (3.0, -3.0):
        value = execute([root], [words(np.array([x], np.float32))], DEVICES[0])[id(root)]
        assert value is not None
        assert value[0] == float_bits(3.0)


def test_a_branch_of_llvm_that_goes_back_is_not_established():
    with pytest.raises(NotEstablishedError, match="a loop"):
        cpu.read_module(ONE_KERNEL, kernel(BRANCHES.replace("br label %11", "br label %9")), "   0:\tc3\tret", Dag())


def test_each_thread_of_a_ptx_kernel_stores_its_element():
    hlo = """\
ENTRY %main (x: f32[2], y: f32[]) -> f32[] {
  %x = f32[2]{0} parameter(0)
  %y = f32[] parameter(1)
  %k = f32[2]{0} fusion(%x, %y), kind=kLoop, calls=%c
  ROOT %last = f32[] fusion(%k), kind=kLoop, calls=%d
}
"""
    text = """\
.target sm_90a
.visible .entry k(
  .param .u64 k_param_0, .param .u64 k_param_1, .param .u64 k_param_2
)
.reqntid 2, 1, 1
{
  ld.param.b64 %rd1, [k_param_0];
  ld.param.b64 %rd2, [k_param_1];
  ld.param.b64 %rd3, [k_param_2];
  mov.u32 %r1, %tid.x;
  mul.wide.u32 %rd4, %r1, 4;
  add.s64 %rd5, %rd1, %rd4;
  ld.global.nc.b32 %r2, [%rd5];
  setp.eq.b32 %p1, %r1, 0;
  @%p1 bra $L1;
  ld.global.nc.b32 %r3, [%rd2];
  mul.rn.f32 %r2, %r2, %r3;
$L1:
  add.s64 %rd6, %rd3, %rd4;
  st.global.b32 [%rd6], %r2;
  ret;
}
.visible .entry last(
  .param .u64 last_param_0, .param .u64 last_param_1
)
.reqntid 1, 1, 1
{
  ld.param.b64 %rd1, [last_param_0];
  ld.param.b64 %rd2, [last_param_1];
  ld.global.nc.v2.b32 {%r1, %r2}, [%rd1];
  add.rn.f32 %r3, %r1, %r2;
  st.global.b32 [%rd2], %r3;
  ret;
}
"""
    (root,) = ptx.read_module(hlo, text, "sm_90", Dag())
    assert str(root) == "add(x0, mul(x1, x2))"
    # A branch by what is computed becomes a choice. It may not go back, nor a store depend on it, nor a load on another thread.
    computed = text.replace("setp.eq.b32 %p1, %r1, 0", "setp.eq.f32 %p1, %r2, 0f3F800000")
    (root,) = ptx.read_module(hlo, computed, "sm_90", Dag())
    inputs = [words(np.array(each, np.float32)) for each in ([1.0, 3.0], [1.0, 5.0], [7.0, 7.0])]
    value = execute([root], inputs, DEVICES[0])[id(root)]
    assert value is not None
    assert value.view(np.float32).tolist() == [2.0, 56.0]
    for old, new, reason in (
        ("bra $L1", "bra $L0", "branches in a way that cannot be read"),
        (
            "$L1:\n  add.s64 %rd6, %rd3, %rd4;",
            "add.s64 %rd6, %rd3, %rd4;\n  st.global.b32 [%rd6], %r3;\n$L1:",
            "depends on the path",
        ),
        ("ld.global.nc.b32 %r3, [%rd2]", "ld.global.nc.b32 %r3, [%rd3]", "loads what another stores"),
    ):
        assert old in computed
        wrong = computed.replace("  mov.u32 %r1", "$L0:\n  mov.u32 %r1").replace(old, new)
        with pytest.raises(NotEstablishedError, match=reason):
            ptx.read_module(hlo, wrong, "sm_90", Dag())


def test_vectors_of_llvm_are_read_element_by_element():
    body = """\
  %2 = getelementptr inbounds nuw i8, ptr %0, i64 24
  %3 = load ptr, ptr %2, align 8
  %4 = load ptr, ptr %3, align 8
  %5 = call <4 x float> @llvm.masked.load.v4f32.p0(ptr align 4 %4, <4 x i1> <i1 true, i1 true, i1 0, i1 0>, <4 x float> poison)
  %6 = fmul <4 x float> %5, <float 3.000000e+00, float 5.000000e+00, float poison, float poison>
  %7 = bitcast <4 x float> %6 to <4 x i32>
  %8 = zext <4 x i32> %7 to <4 x i64>
  %9 = and <4 x i64> %8, splat (i64 4294967295)
  %10 = shufflevector <4 x i64> %9, <4 x i64> poison, <2 x i32> <i32 1, i32 0>
  %11 = call i64 @llvm.vector.reduce.add.v2i64(<2 x i64> %10)
  %12 = trunc i64 %11 to i32
  %13 = extractelement <4 x float> %6, i64 1
  %14 = getelementptr inbounds nuw i8, ptr %3, i64 16
  %15 = load ptr, ptr %14, align 8
  %16 = bitcast i32 %12 to float
  %17 = insertelement <2 x float> poison, float %13, i64 0
  %18 = insertelement <2 x float> %17, float %16, i64 1
  store <2 x float> %18, ptr %15, align 4
  ret ptr null
"""
    hlo = ONE_KERNEL.replace("ROOT %k = f32[]", "ROOT %k = f32[2]").replace("f32[] parameter", "f32[2] parameter")

    def read(text):
        object_code = "0000000000000000 <k>:\n   0:\tmulps  %xmm1,%xmm0\n   4:\tret"
        return cpu.read_module(hlo, kernel(text), object_code, Dag()).results

    second, total = read(body)
    assert str(second) == "mul(x1, 0x1.4000000000000p+2)"
    inputs = [words(np.array([each], np.float32)) for each in (7.0, 11.0)]
    value = execute([total], inputs, DEVICES[0])[id(total)]
    assert value is not None
    assert int(value[0]) == (float_bits(21.0) + float_bits(55.0)) % 2**32
    # What was not loaded is not known.
    assert str(read(body.replace("%6, i64 1", "%6, i64 2"))[0]) == "?" or "?" in str(
        read(body.replace("%6, i64 1", "%6, i64 2"))[0]
    )
    with pytest.raises(NotEstablishedError, match="an instruction on vectors that cannot be read"):
        read(body.replace("@llvm.masked.load", "@llvm.masked.gather"))


TOP_LEVEL = """\
 0x0 :  { %s1_s1 = scalar_parameter_address 0 ;;  %s2_s2 = smov [#allocation8] ;;  %s3_s3 = smov [#allocation9] }
 0x1 :  { %s4_s4 = smov [#allocation10] }
 0x2 :  { %5 = inlined_call %s2_s2, %s3_s3 /* %pair = fusion(%x) */ }
 0x3 :  { %6 = dma.hbm_to_vmem [thread:$0] %s3_s3, 1, %s4_s4, [#allocation11] }
 0x4 :  { %v7_v1 = vld [vmem:[#allocation10] sm:$0xff] ;;  %s8_s5 = sld [smem:[#allocation4]] }
 0x5 :  { %9 = vst [vmem:[#allocation12] sm:$0xff] %v7_v1 ;;  %s10_s6 = smov [#allocation12] }
 0x6 :  { %11 = dma.vmem_to_hbm [thread:$0] %s10_s6, 16, %s8_s5, [#allocation13] }
"""
CALLED = """\
 0 :  { %s1_s0 = inlined_call_operand.vmem [shape: f32[2], index: 0, kind: input, shape index: {}] }
 0x1 :  { %s2_s1 = inlined_call_operand.hbm [shape: f32[1], index: 1, kind: output, shape index: {}] }
 0x2 :  { %v3_v0 = vld [vmem:[%s1_s0] sm:$0x1] }
 0x3 :  { %v4_v1 = vrot.lane.b32.xlu0 %v3_v0, %s9_s9 }
 0x4 :  { %v5_v2 = vadd.f32 %v3_v0, %v4_v1 }
 0x5 :  { %6 = vst [vmem:[%s2_s1] sm:$0x1] %v5_v2 }
"""
PAIR = """\
%c (p: f32[2]) -> f32[1] {
  %p = f32[2]{0} parameter(0)
  %a = f32[1]{0} slice(%p), slice={[0:1]}
  %b = f32[1]{0} slice(%p), slice={[1:2]}
  ROOT %s = f32[1]{0} add(%b, %a)
}
ENTRY %main (x: f32[2]) -> f32[] {
  %x = f32[2]{0} parameter(0)
  %pair = f32[1]{0} fusion(%x), kind=kLoop, calls=%c
  ROOT %r = f32[] bitcast(%pair)
}
"""


def test_a_program_that_moves_elements_across_lanes_is_read_from_hlo_if_it_rounds_as_often():
    (root,) = tpu.read_module(PAIR, TOP_LEVEL, {"pair": CALLED}, 1, Dag())
    assert str(root) == "add(x1, x0)"
    for program in (
        CALLED.replace("vadd", "vmul"),
        CALLED.replace("vadd.f32 %v3_v0", "vrcp.f32 %v3_v0"),
        CALLED.replace("vadd", "vma"),
    ):
        with pytest.raises(NotEstablishedError, match="moves elements across lanes"):
            tpu.read_module(PAIR, TOP_LEVEL, {"pair": program}, 1, Dag())
    with pytest.raises(NotEstablishedError, match="there are no bundles for %pair"):
        tpu.read_module(PAIR, TOP_LEVEL, {}, 1, Dag())
