"""The audit of races, on texts: what Inductor wrote where steps were lost, and each kind of race by itself."""

import json
import re
from pathlib import Path
from unittest.mock import Mock, patch

import pytest
import torch

from loss_balancers.audit import NotEstablishedError
from loss_balancers.audit.__main__ import every_case
from loss_balancers.audit.compilers.targets import TARGETS
from loss_balancers.audit.dumps.races import races, read_races
from loss_balancers.audit.expressions.comparison import FUSED_MULTIPLY_ADD, OVERWRITTEN, RACE
from loss_balancers.audit.prescribed.left_out import left_out
from loss_balancers.audit.prescribed.state_cases import STEP_ALONE, state_cases
from loss_balancers.audit.prescribed.torch_cases import torch_cases
from loss_balancers.torch import known

# The `step()` of a ScheduledLossBalancer whose state is written by one operation, as Inductor compiles it for an H100.
EXCERPTS = Path(__file__).parent / "excerpts"
FUSED = (EXCERPTS / "fused_write.triton").read_text("utf-8")
CALLS = (EXCERPTS / "fused_write.calls").read_text("utf-8")


def test_the_fused_write_that_lost_steps_is_a_race_with_both_lines():
    first, second = races(CALLS, {"triton_for_fused_0": FUSED})
    assert {first.kind, second.kind} == {RACE}
    assert first.line == "tl.load(in_ptr2 + 1), tl.store(out_ptr2 + x0, tmp28, xmask)"
    assert "a thread loads what another stores in triton_for_fused_0.run(arg1_1, arg2_1, arg0_1, " in first.found


def test_the_same_kernel_on_other_buffers_is_none():
    code = CALLS.replace("arg2_1, arg0_1, stream", "arg2_1, arg3_1, stream").replace("arg2_1 = args", "arg2_1, arg3_1 = args")
    assert races(code, {"triton_for_fused_0": FUSED}) == []


HEAD = """
@triton_heuristics.pointwise(size_hints={{'x': 4}}, triton_meta={{'signature': {signature}, 'launch_pdl': False}})
@triton.jit
def kernel({parameters}, xnumel, XBLOCK : tl.constexpr):
    xnumel = 4
    xoffset = tl.program_id(0) * XBLOCK
    xindex = xoffset + tl.arange(0, XBLOCK)[:]
    xmask = xindex < xnumel
    x0 = xindex
"""
REDUCTION = """\
    r0_numel = 8
    R0_BLOCK: tl.constexpr = 8
    r0_index = tl.arange(0, R0_BLOCK)[None, :]
    r0_offset = 0
    r0_mask = r0_index < r0_numel
    r0_0 = r0_index
"""
CALL = """    def call(self, args):
        arg0_1, arg1_1 = args
        args.clear()
        with torch.cuda._DeviceGuard(0):
            torch.cuda.set_device(0)
            raw_stream0 = get_raw_stream(0)
{lines}
        return ({returned})
"""
LOAD, STORE = "tmp0 = tl.load(p + (x0), xmask)", "tl.store(q + (x0), tmp0, xmask)"
SAME = "kernel.run(arg0_1, arg0_1, 4, stream=raw_stream0)"


def kernel(*lines, head=HEAD, reduction=False, **types):
    """A kernel of two pointers, ``p`` and ``q``."""
    signature = {"p": "*fp32", "q": "*fp32"} | types | {"xnumel": "constexpr", "XBLOCK": "constexpr"}
    text = head.format(signature=signature, parameters=", ".join(list(signature)[:-2]))
    return text + (REDUCTION if reduction else "") + "".join(f"    {line}\n" for line in lines)


def calls(*lines, returned=""):
    return CALL.format(lines="\n".join(" " * 12 + line for line in lines), returned=returned)


def outcome(source, code):
    """The kinds of the findings; the reason if nothing is established."""
    try:
        return [finding.kind for finding in races(code, {"kernel": source})]
    except NotEstablishedError as error:
        return str(error)


HARMLESS = {
    "each thread its own": kernel(LOAD, STORE),
    "a range moved in both": kernel("tmp0 = tl.load(p + (2 + x0), xmask)", "tl.store(q + (2 + x0), tmp0, xmask)"),
    "a place that none stores": kernel("tmp0 = tl.load(p + (6))", STORE),
    "a permutation": kernel("tmp0 = tl.load(p + (3 - x0), xmask)", "tl.store(q + (3 + (-1)*x0), tmp0, xmask)"),
    "other masks": kernel("tmp0 = tl.load(p + (x0), xmask & tmp9)", "tl.store(q + (x0), tmp0, tmp1 & xmask)"),
    "a block that is full": kernel(LOAD, "tl.store(q + (x0), tmp0, None)").replace(
        "xindex < xnumel", "tl.full([XBLOCK], True, tl.int1)"
    ),
    "one thread": kernel(
        "tmp0 = tl.load(p + (0))", "tl.store(q + (tl.full([XBLOCK], 0, tl.int32).broadcast_to(XBLOCK)), tmp0, xmask)"
    ).replace("xnumel = 4", "xnumel = 1"),
    "a reduction": kernel(
        "tmp0 = tl.load(p + (r0_0), r0_mask, other=0.0)",
        "tmp1 = tl.broadcast_to(tmp0, [XBLOCK, R0_BLOCK])",
        "tmp2 = triton_helpers.any(tmp1, 1)[:, None].to(tl.int1)",
        "tmp3 = tl.where(tmp2, tmp0, tmp0)",
        "tl.store(q + (tl.broadcast_to(r0_0, [XBLOCK, R0_BLOCK])), tmp3, r0_mask & xmask)",
        reduction=True,
    ).replace("xnumel = 4", "xnumel = 1"),
    "an index that is not known, of another buffer": kernel(LOAD, "tmp1 = tl.load(r + (tmp7), xmask)", STORE, r="*fp32"),
}  # fmt: skip


@pytest.mark.parametrize("name", HARMLESS)
def test_what_each_thread_does_for_itself_is_no_race(name):
    more = "arg1_1, " if "r," in HARMLESS[name].partition("def kernel(")[2] else ""
    assert outcome(HARMLESS[name], calls(f"kernel.run(arg0_1, arg0_1, {more}4, stream=raw_stream0)")) == []


RACES = {
    "a broadcast": kernel("tmp0 = tl.load(p + (2))", STORE),
    "a neighbour": kernel("tmp0 = tl.load(p + (1 + x0), xmask)", STORE),
    "a mirror": kernel("tmp0 = tl.load(p + (3 - x0), xmask)", STORE),
    "one place stored by all": kernel(LOAD, "tl.store(q + (tl.full([XBLOCK], 5, tl.int32)), tmp0, xmask)"),
    "an index that is not injective": kernel("tl.store(q + (x0 // 2), tmp0, xmask)"),
    "two stores": kernel("tl.store(p + (x0), tmp0, xmask)", STORE),
    "a load after the store": kernel("tl.store(q + (x0), 0.0, xmask)", LOAD),
    "another branch": kernel("if pid < 1:", f"    {LOAD}", "else:", "    tmp0 = 0.0", f"    {STORE}"),
    "a branch of a branch": kernel(LOAD, "if pid < 1:", "    pass", "elif pid < 2:", f"    {STORE}"),
    "what a reduction leaves": kernel(
        "tmp0 = tl.load(p + (r0_0), r0_mask, other=0.0)",
        "tmp1 = tl.sum(tmp0, 1)[:, None]",
        "tl.store(q + (x0), tmp1, xmask)",
        reduction=True,
    ),
    "a broadcast in a reduction": kernel(
        "tmp0 = tl.load(p + (6))", "tl.store(q + (r0_0 + 8*x0), tmp0, r0_mask & xmask)", reduction=True
    ),
    "all programs of a reduction": kernel("tl.store(q + (r0_0), 0.0, r0_mask & xmask)", reduction=True),
}


@pytest.mark.parametrize("name", RACES)
def test_a_race_is_found(name):
    assert set(outcome(RACES[name], calls(SAME))) == {RACE}


def test_a_race_by_in_out_ptr():
    source = kernel("tmp0 = tl.load(p + (2))", "tmp1 = tl.load(p + (x0), xmask)", "tl.store(p + (x0), tmp0, xmask)")
    source = re.sub(r"\bp\b", "in_out_ptr0", source)
    (finding,) = races(calls("kernel.run(arg0_1, arg1_1, 4, stream=raw_stream0)"), {"kernel": source})
    assert (finding.kind, finding.line) == (RACE, "tl.load(in_out_ptr0 + 2), tl.store(in_out_ptr0 + x0, tmp0, xmask)")


NEIGHBOUR = RACES["a neighbour"]


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (["kernel.run(arg0_1, arg1_1, 4, stream=raw_stream0)"], []),
        (["buf0 = reinterpret_tensor(arg0_1, (4, ), (1, ), 8)", "kernel.run(arg0_1, buf0, 4, stream=raw_stream0)"], []),
        # A view that begins one later makes the neighbour a thread's own, and its own the neighbour's.
        (["buf0 = reinterpret_tensor(arg0_1, (4, ), (1, ), 1)", "kernel.run(arg0_1, buf0, 4, stream=raw_stream0)"], []),
        (["kernel.run(arg0_1, reinterpret_tensor(arg0_1, (4, ), (1, ), 2), 4, stream=raw_stream0)"], [RACE]),
        (["buf0 = empty_strided_cuda((4, ), (1, ), torch.float32)", "kernel.run(arg0_1, buf0, 4, stream=raw_stream0)"], []),
        (["buf0 = arg0_1; del arg0_1  # reuse", "kernel.run(buf0, buf0, 4, stream=raw_stream0)"], [RACE]),
        (["buf0 = arg0_1", "buf1 = buf0; del buf0  # reuse", "kernel.run(arg0_1, buf1, 4, stream=raw_stream0)"], [RACE]),
    ],
    ids=["two inputs", "a view apart", "a view by one", "views that overlap", "new", "reused", "reused twice"],
)
def test_arguments_are_one_buffer_by_whatever_name(lines, found):
    assert outcome(NEIGHBOUR, calls(*lines)) == found


UNREADABLE = {
    "an index of data": (kernel(LOAD, "tmp1 = tl.load(p + (tmp0), xmask)", STORE), "an index that cannot be read"),
    "a store at an index of data": (kernel(LOAD, "tl.store(q + (tmp0), tmp0, xmask)"), "an index that cannot be read"),
    "a quotient of what may be negative": (kernel("tmp0 = tl.load(p + ((x0 - 1) // 2), xmask)", STORE), "an index that cannot be"),
    "a loop": (kernel("for r0_offset in range(0, 8, R0_BLOCK):", f"    {LOAD}"), "a statement of a kernel"),
    "an atomic": (kernel("tl.atomic_add(q + (x0), tmp0, xmask)"), "a call of a kernel"),
    "an atomic that gives a value": (kernel("tmp0 = tl.atomic_add(q + (x0), 1, xmask)"), "a use of a pointer"),
    "a pointer that is kept": (kernel("r = q + 1", LOAD, STORE), "a use of a pointer"),
    "a pointer of two": (kernel("tmp0 = tl.load(tl.where(tmp9, p, q) + (x0), xmask)"), "a use of a pointer"),
    "an address without an index": (kernel("tmp0 = tl.load(p)", STORE), "an address that cannot be read"),
    "a barrier": (kernel(LOAD, "tl.debug_barrier()", STORE), "a call of a kernel"),
    "a store without a mask": (kernel(LOAD, "tl.store(q + (x0), tmp0, None)"), "a store by threads beyond the range x"),
    "a mask that is no conjunction": (kernel(LOAD, "tl.store(q + (x0), tmp0, xmask | tmp9)"), "threads beyond the range x"),
    "a store without the mask of a reduction": (
        kernel("tl.store(q + (r0_0 + 8*x0), tmp0, xmask)", reduction=True), "threads beyond the range r0_"
    ),
    "a size that is not known": (kernel(LOAD, STORE).replace("    xnumel = 4\n", ""), "a range of a kernel"),
    "a range of another kind": (kernel(LOAD, STORE).replace("tl.arange(0, XBLOCK)", "tl.arange(1, XBLOCK)"), "a range of a kernel"),
    "an offset of another kind": (kernel(LOAD, STORE).replace("* XBLOCK", "* 2"), "an offset of a kernel"),
    "launches that overlap": (kernel(LOAD, STORE).replace("'launch_pdl': False", "'launch_pdl': True"), "launch_pdl"),
    "two types of one buffer": (kernel(LOAD, STORE, q="*i32"), "as another type"),
    "no signature": (kernel(LOAD, STORE).replace("triton_meta", "meta"), "has no signature"),
    "one place around a reduction": (
        kernel(
            "tmp0 = tl.load(p + (x0), xmask)",
            "tmp1 = tl.sum(tmp9, 1)[:, None]",
            "tl.store(q + (x0), tmp0, xmask)",
            reduction=True,
        ),
        "a load and a store around a reduction",
    ),
    "a value that threads exchange": (
        kernel(
            "tmp0 = tl.load(p + (r0_0 + 8*x0), r0_mask & xmask)",
            "tmp1 = tl.sum(tmp0, 1)[:, None]",
            "tl.store(q + (r0_0 + 8*x0), 0.0, r0_mask & xmask)",
            reduction=True,
        ),
        "a value that threads exchange",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_kernel_that_cannot_be_read_is_not_established(name):
    source, words = UNREADABLE[name]
    assert words in outcome(source, calls(SAME))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "nothing is launched"),
        (["kernel.run(arg0_1, 4, stream=raw_stream0)"], "a value of Inductor's that cannot be read: 4"),
        (["kernel.run(arg0_1, stream=raw_stream0)"], "takes other arguments"),
        (["other.run(arg0_1, arg0_1, 4, stream=raw_stream0)"], "there is no kernel other"),
        (["kernel.run(arg0_1, arg0_1, 4, stream=raw_stream1)"], "other than one stream"),
        (["raw_stream1 = get_raw_stream(1)", SAME], "other than one stream"),
        (["buf0 = alloc_from_pool(arg0_1, 0, torch.float32, (4, ), (1, ))"], "a value of Inductor's"),
        (["buf0 = torch.ops.aten.sort.default(arg0_1)"], "a value of Inductor's"),
        (["extern_kernels.mm(arg0_1, arg1_1, out=arg0_1)"], "a call of Inductor's"),
        (["if True: pass"], "a line of Inductor's"),
    ],
)
def test_calls_that_cannot_be_read_are_not_established(lines, words):
    assert words in outcome(kernel(LOAD, STORE), calls(*lines))


COPY = "kernel.run(arg1_1, arg0_1, 4, stream=raw_stream0)"
BACK = "kernel.run(arg0_1, arg1_1, 4, stream=raw_stream0)"
NEW = "buf0 = empty_strided_cuda((4, ), (1, ), torch.float32)"


@pytest.mark.parametrize(
    ("lines", "returned", "found"),
    [
        ([COPY], "", []),
        ([NEW, "kernel.run(arg0_1, buf0, 4, stream=raw_stream0)", COPY], "buf0, ", []),
        ([NEW, COPY, "kernel.run(arg0_1, buf0, 4, stream=raw_stream0)"], "buf0, ", [OVERWRITTEN]),
        ([COPY, BACK], "", [OVERWRITTEN]),
        ([COPY], "arg0_1, ", [OVERWRITTEN]),
        ([COPY], "reinterpret_tensor(arg0_1, (1, ), (1, ), 1), ", [OVERWRITTEN]),
        ([COPY], "arg1_1, None, ", []),
        ([COPY, "buf0 = torch.ops.loss_balancers.recomputing.default(arg0_1)"], "", [OVERWRITTEN]),
        # A buffer that is used again has a new name; what is read by the old one, or by a view of it, is gone.
        (["buf0 = arg0_1; del arg0_1  # reuse", "kernel.run(buf0, buf0, 4, stream=raw_stream0)"], "buf0, ", []),
        (
            ["buf1 = reinterpret_tensor(arg0_1, (2, ), (1, ), 0)", "buf0 = arg0_1; del arg0_1  # reuse",
             "kernel.run(arg1_1, buf0, 4, stream=raw_stream0)"],
            "buf1, ", [OVERWRITTEN],
        ),
    ],
    ids=["a copy", "read before", "read after", "read after as the other's", "returned", "a view returned", "another returned",
         "given to an operation", "reused", "a view of what is reused"],
)  # fmt: skip
def test_what_is_computed_from_overwritten_state_is_found(lines, returned, found):
    assert outcome(kernel(LOAD, STORE), calls(*lines, returned=returned)) == found


def test_every_graph_of_a_case_is_read(tmp_path):
    for number, source in enumerate((kernel(LOAD, STORE), NEIGHBOUR)):
        (tmp_path / f"{number}_kernel.py").write_text(source, "utf-8")
    (tmp_path / "plan.json").write_text(json.dumps([{"code": calls(SAME)}] * 2), "utf-8")
    assert [finding.kind for finding in read_races(tmp_path)] == [RACE]


@pytest.mark.parametrize("planted", [each for each in state_cases() if each.case.planted], ids=lambda each: each.case.name)
def test_a_planted_fault_replaces_what_the_case_calls(planted, monkeypatch):
    """Without a compiler: a name that has moved must not wait for the audit to be found."""
    replaced = {}
    plant = patch.object

    def counting(target, name, new):
        replaced[name] = Mock(side_effect=new)
        return plant(target, name, replaced[name])

    monkeypatch.setattr(patch, "object", counting)
    monkeypatch.setattr(known, "values_of", lambda tensors: None)  # compiled code keeps no factors
    with planted.fault():
        planted.function()(*[torch.tensor(1.0)] * planted.losses)
    assert len(replaced) == 1
    assert all(each.called for each in replaced.values())


def test_every_balancer_with_state_has_its_cases_on_one_target_of_pytorch_alone():
    names = [each.case.name for each in state_cases()]
    for balancer in ("Scheduled", "WeightedSum", "EMANormalized", "EMANormalized lagged", "LogitsAndIntermediates"):
        first, _, more = balancer.partition(" ")
        begin = f"{first}LossBalancer {more} ".replace("  ", " ")
        assert {f"{begin}training", f"{begin}training, auto_step", f"{begin}step()"} <= set(names)
    assert {each.case.planted for each in state_cases() if each.case.planted} == {(RACE,), (OVERWRITTEN,), (FUSED_MULTIPLY_ADD,)}
    assert set(names) <= {each.case.name for each in torch_cases()}
    cases = every_case()
    assert len({case.slug for case in cases}) == len(cases)
    for balancer in STEP_ALONE:
        assert {name for name in names if name.startswith(f"{balancer} ")} == {f"{balancer} step()"}
    read = set(names) - set(left_out("cuda-torch"))
    assert len(read) >= len(names) - 1
    for name, target in TARGETS.items():
        assert set(names) & {case.name for case in target.cases(cases)} == (read if name == "cuda-torch:sm_90" else set())
