"""The audit's reading of object code: what a code generator may move, on either processor, and what it may not.

The excerpts for AArch64 are of a cross compiler (LLVM 22); no such machine ran them.
"""

import re
from pathlib import Path

import pytest

from loss_balancers import spec
from loss_balancers.audit import Dag, NotEstablishedError, compare
from loss_balancers.audit.dumps import cpu, disassembly
from loss_balancers.audit.dumps.llvm_blocks import blocks
from loss_balancers.audit.dumps.roundings import round_alike
from loss_balancers.audit.prescribed import reference

EXCERPTS = Path(__file__).parent / "excerpts"
HLO = (EXCERPTS / "kernel.hlo").read_text("utf-8").replace("NAME", "compare_select_fusion")
IR = (EXCERPTS / "x86_64.ll").read_text("utf-8")
# One kernel for each, with the bytes of the instructions as each disassembler shows them.
OBJECTS = {
    "x86-64": (EXCERPTS / "x86_64.objdump").read_text("utf-8"),
    "AArch64": (EXCERPTS / "aarch64.objdump").read_text("utf-8"),
    "AArch64, LLVM's": (EXCERPTS / "aarch64.llvm-objdump").read_text("utf-8"),
}
FUSED = {
    "x86-64": "  45:\tc4 e2 79 b9 12       \tvfmadd231ss (%rdx),%xmm0,%xmm2",
    "AArch64": "  8c:\t1f010041 \tfmadd\ts1, s2, s1, s0",
    "AArch64, LLVM's": "      8c: 41 00 01 1f  \tfmadd\ts1, s2, s1, s0",
}
ROUNDS = re.compile(r"\t(v?(?:mul|add|div)ss|fn?mul|fadd|fdiv)\b")


def read(object_code):
    return cpu.read_module(HLO, IR, object_code, Dag())


@pytest.mark.parametrize("form", OBJECTS)
def test_the_object_code_of_either_processor_is_read(form):
    settings = spec.StaticLossBalancerSettings([0.01])
    expected = reference.balancer(Dag(), settings, ("KDLoss_0", spec.STUDENT_LOSS_KEY), gradient=False)
    module = read(OBJECTS[form])
    assert module.forbidden == compare(expected, module.results) == []
    assert len(ROUNDS.findall(OBJECTS[form])) == 3


@pytest.mark.parametrize("form", OBJECTS)
def test_an_operation_that_is_left_out_is_not_established_and_a_fused_one_is_found(form):
    for line in [line for line in OBJECTS[form].splitlines() if ROUNDS.search(line)]:
        with pytest.raises(NotEstablishedError, match=r"the IR has 2 mul, 1 add, the object code \d"):
            read(OBJECTS[form].replace(line, ""))
        assert [kind for kind, _ in read(OBJECTS[form].replace(line, FUSED[form])).forbidden] == ["fma"]


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("  45:\tc4 e2 79 b9 12       \tvfmadd231ss (%rdx),%xmm0,%xmm2", "fma"),
        ("  10:\t1f010041 \tfmadd\ts1, s2, s1, s0", "fma"),
        ("  45:\tc5 fa 53 c1          \tvrcpss %xmm1,%xmm0,%xmm0", "rcp"),
    ],
)
def test_an_instruction_that_fuses_or_approximates_is_reported(line, kind):
    module = read(OBJECTS["x86-64"] + line)
    assert [found for found, _ in module.forbidden] == [kind]
    assert module.forbidden[0][1].split()[0] in line


@pytest.mark.parametrize(("old", "new"), [("(?s).+", ""), ("vaddss", "vmulss"), ("vaddss", "nop"), ("vmulss", "vmulsd")])
def test_object_code_that_does_not_round_as_the_ir_does_is_not_established(old, new):
    with pytest.raises(NotEstablishedError):
        read(re.sub(old, new, OBJECTS["x86-64"], count=1))


@pytest.mark.parametrize(
    "line", ["   5:\tvfixupimmss $0x1,%xmm1,%xmm2,%xmm3", "   5:\tcvtss2sd %xmm1,%xmm1", "   5:\tfmuls  0x4(%rax)"]
)
def test_an_instruction_on_floats_that_is_not_known_is_not_established(line):
    with pytest.raises(NotEstablishedError, match=f"an instruction that cannot be read: {re.escape(line.split()[0])}"):
        read(f"{OBJECTS['x86-64']}{line}\n")


# What code generators have been seen to do, each as the body in LLVM IR and the object code.
MOVED = {
    # The product is behind the branch once in the IR, and twice here: so it is without AVX-512.
    "a block copied behind each that jumps to it": (
        """\
  br i1 %c, label %plus, label %times
plus:
  %s = fadd float %x, %y
  br label %times
times:
  %t = phi float [ %s, %plus ], [ %x, %0 ]
  %p = fmul float %t, %y
  store float %p, ptr %a
  ret void
""",
        """\
   0:	test   %edi,%edi
   2:	je     10 <k+0x10>
   4:	vaddss %xmm1,%xmm0,%xmm0
   8:	vmulss %xmm1,%xmm0,%xmm0
   c:	ret
  10:	vmulss %xmm1,%xmm0,%xmm0
  14:	ret
""",
    ),
    # As SSE 4.2 makes of the planted native division.
    "equal ends of blocks laid together": (
        """\
  br i1 %c, label %one, label %other
one:
  %p = fmul float %x, %y
  %q = fdiv float %p, %y
  store float %q, ptr %a
  br label %end
other:
  %r = fdiv float %x, %y
  store float %r, ptr %a
  br label %end
end:
  ret void
""",
        """\
   0:	test   %edi,%edi
   2:	je     10 <k+0x10>
   4:	mulss  %xmm1,%xmm0
   8:	jmp    10 <k+0x10>
  10:	divss  %xmm1,%xmm0
  14:	movss  %xmm0,(%rsi)
  18:	ret
""",
    ),
    # The product and the quotient are only needed where %c holds. The sum is needed in any case.
    "a choice made a branch": (
        """\
  %s = fadd float %x, %y
  %p = fmul float %s, %y
  %q = fdiv float %p, %y
  %r = select i1 %c, float %q, float %s
  store float %r, ptr %a
  ret void
""",
        """\
   0:	addss  %xmm1,%xmm0
   4:	test   %edi,%edi
   6:	je     10 <k+0x10>
   8:	mulss  %xmm1,%xmm0
   c:	divss  %xmm1,%xmm0
  10:	movss  %xmm0,(%rsi)
  14:	ret
""",
    ),
    "a branch made a choice": (
        """\
  br i1 %c, label %times, label %end
times:
  %p = fmul float %x, %y
  br label %end
end:
  %r = phi float [ %p, %times ], [ %x, %0 ]
  store float %r, ptr %a
  ret void
""",
        """\
   0:	1e210802 	fmul	s2, s0, s1
   4:	7100001f 	cmp	w0, #0x0
   8:	1e201c40 	fcsel	s0, s2, s0, ne	// ne = any
   c:	bd000020 	str	s0, [x1]
  10:	d65f03c0 	ret
""",
    ),
    "a product computed once for either sign": (
        """\
  %p = fmul float %x, %y
  %n = fneg float %p
  store float %p, ptr %a
  store float %n, ptr %b
  ret void
""",
        """\
   0:	1e210802 	fmul	s2, s0, s1
   4:	1e218800 	fnmul	s0, s0, s1
   8:	2d000002 	stp	s2, s0, [x0]
   c:	d65f03c0 	ret
""",
    ),
    "a jump back to what comes later": (
        """\
  br i1 %c, label %plus, label %times
plus:
  %s = fadd float %x, %y
  br label %times
times:
  %t = phi float [ %s, %plus ], [ %x, %0 ]
  %p = fmul float %t, %y
  store float %p, ptr %a
  ret void
""",
        """\
   0:	test   %edi,%edi
   2:	jne    10 <k+0x10>
   8:	mulss  %xmm1,%xmm0
   c:	ret
  10:	addss  %xmm1,%xmm0
  14:	jmp    8 <k+0x8>
""",
    ),
}


def alike(body, lines):
    return round_alike(blocks(body), disassembly.read(f"0000000000000000 <k>:\n{lines}")[0]["k"])


@pytest.mark.parametrize("case", MOVED)
def test_what_is_moved_rounds_alike(case):
    assert alike(*MOVED[case])


@pytest.mark.parametrize("case", MOVED)
def test_no_operation_can_be_left_out_or_exchanged_unnoticed_where_code_is_moved(case):
    body, lines = MOVED[case]
    for line in lines.splitlines():
        for mnemonic in ROUNDS.findall(line):
            other = {"mulss": "divss", "vmulss": "vdivss", "fmul": "fdiv", "fnmul": "fdiv"}.get(mnemonic, "mulss")
            assert not alike(body, lines.replace(line, line.replace(mnemonic, other)))
            if "fnmul" not in lines:  # of the products for either sign, one is enough
                assert not alike(body, lines.replace(line, line.replace(mnemonic, "fmov" if mnemonic == "fmul" else "movss")))


SIGNS = MOVED["a product computed once for either sign"]


@pytest.mark.parametrize(
    ("between", "once"),
    [
        ("", True),
        ("   2:\tfadd\ts3, s0, s1\n   3:\tfcmp\ts3, s4\n", None),  # one sum too many, but the sources hold
        ("   2:\tfmov\ts1, s3\n", False),
        ("   2:\tldr\td0, [x1]\n", False),
        ("   2:\tfmul\ts0, s3, s4\n", False),
        ("   2:\tbl\t0 <other>\n", False),
    ],
)
def test_a_product_is_only_the_same_while_its_sources_hold_the_same(between, once):
    first, _, rest = SIGNS[1].partition("\n")
    (block, _) = disassembly.read(f"0000000000000000 <k>:\n{first}\n{between}{rest}")[0]["k"].values()
    assert block.must["mul"] == (1 if once in {True, None} else between.count("fmul") + 2)


@pytest.mark.parametrize(
    ("jump", "followed"),
    [
        ("je     8 <k+0x8>", True),
        ("jmp    *%rax", False),  # to an address that is computed
        ("je     3 <k+0x3>", False),  # into an instruction
        ("jmp    0 <k>", False),  # a loop
        ("br\tx8", False),
        ("jmp    40 <other>", False),  # calls another function instead of what comes next
    ],
)
def test_a_jump_that_cannot_be_followed_is_not_established(jump, followed):
    lines = f"   0:\ttest   %edi,%edi\n   2:\t{jump}\n   8:\tmulss  %xmm1,%xmm0\n   c:\tret\n"
    try:
        outcome = alike("  %p = fmul float %x, %y\n  store float %p, ptr %a\n  ret void\n", lines)
    except NotEstablishedError:
        outcome = False
    assert outcome == followed


def test_a_function_that_one_of_both_does_not_have_is_not_established():
    for object_code in (
        OBJECTS["x86-64"].replace("<compare_select_fusion>", "<another>"),
        f"{OBJECTS['x86-64']}\n0000000000000000 <another>:\n   0:\tmulss  %xmm1,%xmm0\n",
        f"{OBJECTS['x86-64']}\n{OBJECTS['x86-64']}",
    ):
        with pytest.raises(NotEstablishedError, match=r"nothing that rounds|two functions"):
            read(object_code)


def test_what_only_a_choice_needs_may_be_skipped_and_nothing_else():
    body = """\
  %p = fmul float %x, %y
  %q = fadd float %p, %y
  %a = call float @llvm.fabs.f32(float %q)
  %r = select i1 %c, float %a, float %x
  %s = fdiv float %x, %y
  %t = select i1 %c, float %s, float %r
  %u = fcmp ole float %USED, 0.000000e+00
  %v = select i1 %u, float %t, float %x
  store float %v, ptr %b
  ret void
"""
    for used, must in (("x", {}), ("t", {}), ("p", {"mul"}), ("a", {"mul", "add"}), ("s", {"div"})):
        (block,) = blocks(body.replace("USED", used)).values()
        chosen = {kind for kind in ("mul", "add", "div") if block.must[kind]}
        assert chosen == set(must)
        assert block.must + block.may == {"mul": 1, "add": 1, "div": 1}
