"""`torch.func` and forward mode within compiled functions: what eager gives, bit for bit, and what the exact reference gives."""

import os
import shutil

import pytest
import torch
import torch._dynamo
import torch._dynamo.exc
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils._pytree import tree_leaves
from with_state import EXAMPLES, FIRST

import loss_balancers.torch
from loss_balancers import spec
from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.spec import arithmetic, registry
from loss_balancers.spec.versions import release
from loss_balancers.torch import EMANormalizedLossBalancer, StaticLossBalancer, functional
from loss_balancers.torch.portable import div, division, rmul

HAS_COMPILER = any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++") if name)
INDUCTOR = pytest.param(
    "inductor",
    marks=pytest.mark.skipif(not HAS_COMPILER, reason="torch.compile on CPU needs a C++ compiler"),
)
pytestmark = [
    # PyTorch 2.13's own, for every autograd.Function that Dynamo traces, and at the first compilation or forward mode of a process.
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script(_method)?` is deprecated:DeprecationWarning"),
    # And of Inductor: of any kernel that reads both formats, and of its own code for a hessian.
    pytest.mark.filterwarnings("ignore:bf16 and fp16 are mixed"),
    pytest.mark.filterwarnings("ignore:`torch._prims_common.check` is deprecated:FutureWarning"),
]

DTYPES = {name: getattr(torch, fmt.dtype) for name, fmt in spec.FORMATS.items()}
FORMATS = {name: (name,) * 3 for name in DTYPES} | {"mixed": ("bf16", "f32", "f16")}
WEIGHTS = (0.2, 0.3, 0.5)
NAMES = ("LogitsKL_0", "MSE_1", "student_loss")  # those of the fixture `make`


def of_balancer(balancer):
    return lambda *losses: balancer(dict(zip(NAMES, losses, strict=True)))


by_number, by_sequence = (of_balancer(StaticLossBalancer(given)) for given in (0.3, WEIGHTS[:-1]))


def by_vector(*losses):
    return functional.weighted_sum(losses, torch.tensor(WEIGHTS))


def squared(f):
    """So that a second derivative is not zero."""
    return lambda *x: f(*(y * y for y in x))


def dual_level(f, x, t):
    with forward_ad.dual_level():
        return tuple(forward_ad.unpack_dual(f(*map(forward_ad.make_dual, x, t))))


def batch(x):
    return tuple(torch.stack([y, y * 2, y - 1]) for y in x)


def each(x):
    return tuple(range(len(x)))


def of_a_vector(f):
    """The function, of its operands in one tensor."""
    return lambda x: f(*x.unbind())


#: From a function, operands and tangents.
TRANSFORMS = {
    "vjp": lambda f, x, t: vjp(f, *x)[1](f(*t)),
    "jvp": jvp,
    "jvp-of-vmap": lambda f, x, t: jvp(vmap(f), batch(x), batch(t)),
    "dual-level": dual_level,
    "jacfwd": lambda f, x, t: jacfwd(f, each(x))(*x),
    "jacfwd-of-a-vector": lambda f, x, t: jacfwd(of_a_vector(f))(torch.stack(x)),
    "jacrev": lambda f, x, t: jacrev(f, each(x))(*x),
    "vmap": lambda f, x, t: vmap(f)(*batch(x)),
    "vmap-of-grad": lambda f, x, t: vmap(grad(f, each(x)))(*batch(x)),
    "vmap-of-jvp": lambda f, x, t: vmap(lambda x, t: jvp(f, x, t))(batch(x), batch(t)),
    "hessian": lambda f, x, t: hessian(squared(f), each(x))(*x),
    "hessian-of-a-vector": lambda f, x, t: hessian(of_a_vector(squared(f)))(torch.stack(x)),
    "hessian-of-a-square": lambda f, x, t: hessian(of_a_vector(lambda *x: f(*x) ** 2))(torch.stack(x)),
    "jacfwd-of-jacfwd": lambda f, x, t: jacfwd(jacfwd(of_a_vector(squared(f))))(torch.stack(x)),
    "grad-of-grad": lambda f, x, t: grad(grad(lambda a: f(*(y * a * a for y in x))))(t[0]),
    "jvp-of-grad": lambda f, x, t: jvp(grad(squared(f), each(x)), x, t),
    "grad-of-jvp": lambda f, x, t: grad(lambda *x: jvp(squared(f), x, t)[1], each(x))(*x),
}


#: Jacobians by forward mode. Dynamo traces those by several arguments, of whatever function, since PyTorch 2.13 or 2.12.
BY_SEVERAL = ("jacfwd", "hessian")
HAS_BY_SEVERAL = release(torch.__version__) >= (2, 13)
by_several = pytest.mark.xfail(
    not HAS_BY_SEVERAL, raises=torch._dynamo.exc.TorchDynamoException, reason="Dynamo before 2.13: `jacfwd` by several arguments"
)
COMPILED = {name: transform for name, transform in TRANSFORMS.items() if HAS_BY_SEVERAL or name not in BY_SEVERAL}


def several(*names):
    """These, in one function: a compilation less for each."""
    return lambda f, x, t: [TRANSFORMS[name](f, x, t) for name in names]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def drawn(seed, formats):
    values = torch.rand(3, generator=torch.Generator().manual_seed(seed)) * 4 + 0.1
    return tuple(x.to(DTYPES[fmt]) for x, fmt in zip(values, formats, strict=False))


def zeros(formats):
    return tuple(torch.zeros((), dtype=DTYPES[fmt]) for fmt in formats)


def assert_compiled_gives_what_eager_gives(transform, f, formats, backend="aot_eager"):
    def whole(x, t):
        return transform(f, x, t)

    compiled = torch.compile(whole, fullgraph=True, backend=backend)
    for x in (drawn(3, formats), zeros(formats)):
        results = [tree_leaves(function(x, drawn(9, formats))) for function in (compiled, whole)]
        for result, expected in zip(*results, strict=True):
            assert_same_bits(result, expected)


# --- as eager -------------------------------------------------------------------------------------------------------


FEW = several(
    "jvp", "dual-level", "vmap-of-grad", *(BY_SEVERAL if HAS_BY_SEVERAL else (f"{name}-of-a-vector" for name in BY_SEVERAL))
)


#: In bfloat16 each; in float32, where nothing is converted, every second.
EACH_TRANSFORM = [*((name, "bf16") for name in TRANSFORMS), *((name, "f32") for name in list(TRANSFORMS)[::2])]


@pytest.mark.in_turn(8)
@pytest.mark.parametrize(
    ("name", "fmt"), [pytest.param(*row, marks=by_several if row[0] in BY_SEVERAL else ()) for row in EACH_TRANSFORM]
)
def test_each_transform(name, fmt):
    assert_compiled_gives_what_eager_gives(TRANSFORMS[name], by_sequence, FORMATS[fmt])


#: Each format by Inductor, and by the graph alone those of which `test_each_transform` has none.
EACH_FORMAT = [
    *(pytest.param(formats, "inductor", marks=INDUCTOR.marks, id=f"{name}-inductor") for name, formats in FORMATS.items()),
    *(pytest.param(FORMATS[name], "aot_eager", id=f"{name}-aot_eager") for name in ("f64", "mixed")),
]


@pytest.mark.in_turn(2)
@pytest.mark.parametrize(("formats", "backend"), EACH_FORMAT)
def test_each_format(formats, backend):
    assert_compiled_gives_what_eager_gives(FEW, by_sequence, formats, backend)


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("name", EXAMPLES)
def test_each_balancer_with_state(name, draw):
    balancer = registry.make(EXAMPLES[name], loss_balancers.torch)
    for i in range(3):
        balancer(draw(i))
        balancer.step()
    # Second derivatives take longest to compile: every second balancer has them.
    transform = several("jvp", "vmap-of-grad")
    if name in FIRST:
        transform = FEW if FIRST.index(name) % 2 else several("jvp", "dual-level", "vmap-of-grad")
    assert_compiled_gives_what_eager_gives(transform, of_balancer(balancer.eval()), FORMATS["bf16"])


def test_quotients_by_bits(monkeypatch):
    """As on a device that only estimates quotients: a balancer with state looks at bits there, eager and compiled."""
    monkeypatch.setattr(division, "_divides", lambda a: False)
    balancer = EMANormalizedLossBalancer(NAMES).eval()
    assert_compiled_gives_what_eager_gives(several("jvp", "vmap", "vmap-of-grad"), of_balancer(balancer), FORMATS["f32"])


@pytest.mark.parametrize("function", [by_number, by_vector])
def test_each_form_of_weights(function):
    assert_compiled_gives_what_eager_gives(FEW, function, FORMATS["bf16"])


@pytest.mark.parametrize("function", [div, rmul])
@pytest.mark.parametrize(("transform", "fmt"), [(several(*COMPILED), "f32"), (FEW, "f64")], ids=["all-f32", "few-f64"])
def test_portable_functions(function, transform, fmt):
    """Of operands that are zero too: a quotient is NaN there, and its tangents."""
    assert_compiled_gives_what_eager_gives(transform, function, (fmt,) * 2)


# --- as the exact reference -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("formats", "backend"), EACH_FORMAT)
def test_a_tangent_is_the_weighted_sum_of_the_tangents(formats, backend):
    """Spec A8: the map itself, `keep` and roundings included, at a loss of zero too."""
    tangents = drawn(9, formats)
    expected = arithmetic.balance([x.item() for x in tangents], formats, WEIGHTS, 1.0)[0]
    compiled = torch.compile(lambda x, t: jvp(by_sequence, x, t)[1], fullgraph=True, backend=backend)
    for losses in (drawn(3, formats), zeros(formats)):
        assert_same_bits(
            compiled(losses, tangents), torch.tensor(expected, dtype=functional.common_dtype([x.dtype for x in losses]))
        )


@pytest.mark.parametrize("backend", [INDUCTOR])
@pytest.mark.parametrize("fmt", ["bf16", "f16"])
def test_losses_and_tangents_computed_inside_the_graph(fmt, backend):
    """Both are taken as their format holds them, though Inductor goes on in float32 (spec A9)."""

    def model(a, b):
        losses = tuple(x.to(DTYPES[fmt]) for x in (a * b, (a - b) * 0.1, a * a * 1.1))
        return by_sequence(*losses), losses

    compiled = torch.compile(lambda x, t: jvp(model, x, t), fullgraph=True, backend=backend)
    generator = torch.Generator().manual_seed(1)
    x, t = (tuple(torch.randn(2, 1000, generator=generator).unbind()) for _ in "xt")
    (aggregate, losses), (tangent, tangents), *_ = compiled(x, t)
    assert_same_bits(aggregate, by_sequence(*losses))
    assert_same_bits(tangent, by_sequence(*tangents))


# --- around the transform -------------------------------------------------------------------------------------------


def test_a_derivative_of_the_compiled_function():
    """A training loop that differentiates a tangent: `backward` through a compiled `jvp`."""
    t = drawn(9, FORMATS["bf16"])

    def tangent(*x):
        return jvp(squared(by_sequence), x, t)[1]

    gradients = []
    for function in (torch.compile(tangent, fullgraph=True, backend="aot_eager"), tangent):
        x = [y.requires_grad_() for y in drawn(3, FORMATS["bf16"])]
        gradients.append(torch.autograd.grad(function(*x), x))
    for gradient, expected in zip(*gradients, strict=True):
        assert_same_bits(gradient, expected)


def test_one_tensor_as_all_losses():
    def tangent(x, t):
        return jvp(lambda x: by_sequence(x, x, x), (x,), (t,))[1]

    x, t = torch.tensor(0.0), torch.tensor(0.7)
    assert_same_bits(torch.compile(tangent, fullgraph=True, backend="aot_eager")(x, t), tangent(x, t))


def test_transformed_and_plain_calls_in_one_graph():
    f = by_sequence

    def both(x, t):
        return f(*x), jvp(f, x, t), f(*t), dual_level(f, x, t), f(*x)

    x, t = zeros(FORMATS["bf16"]), drawn(9, FORMATS["bf16"])
    results = tree_leaves(torch.compile(both, fullgraph=True, backend="aot_eager")(x, t))
    for result, expected in zip(results, tree_leaves(both(x, t)), strict=True):
        assert_same_bits(result, expected)


def test_compiled_once():
    compiled = torch.compile(several("jvp", "dual-level"), fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(3):
            compiled(by_sequence, drawn(seed, FORMATS["f32"]), drawn(9, FORMATS["f32"]))


#: What newer versions say themselves: PyTorch 2.15 does.
REFUSED_BY_DYNAMO = "Attempted to wrap a dual tensor input"


@pytest.mark.parametrize("before", [False, True], ids=["at-once", "compiled-before"])
@pytest.mark.parametrize("function", [by_sequence, div, rmul], ids=["balancer", "div", "rmul"])
def test_a_dual_level_around_a_compiled_function_is_refused(function, before, told_in_a_graph):
    """Inductor returns no tangents there, of whatever function; and what was compiled before must not be taken for it."""
    formats = FORMATS["f32"] if function not in (div, rmul) else ("f32", "f32")
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    if before:
        compiled(*drawn(3, formats))
    told = told_in_a_graph(RuntimeError, r"cannot be compiled within `forward_ad.dual_level\(\)`")
    with pytest.raises(torch._dynamo.exc.Unsupported, match=f"{told}|{REFUSED_BY_DYNAMO}"):
        dual_level(compiled, drawn(3, formats), drawn(9, formats))
    assert_same_bits(compiled(*drawn(3, formats)), function(*drawn(3, formats)))


def test_a_dual_level_around_a_function_that_may_fall_back_to_eager():
    f, x, t = by_sequence, zeros(FORMATS["bf16"]), drawn(9, FORMATS["bf16"])
    results = dual_level(torch.compile(f, backend="aot_eager"), x, t)
    for result, expected in zip(results, dual_level(f, x, t), strict=True):
        assert_same_bits(result, expected)


def test_pytorch_drops_the_tangents_of_what_inductor_compiles_or_refuses():
    """Once this fails, a dual level around a compiled balancer need not be refused."""
    if not HAS_COMPILER:
        pytest.skip("torch.compile on CPU needs a C++ compiler")
    try:
        _, tangent = dual_level(torch.compile(torch.add, fullgraph=True), drawn(3, ("f32",) * 2), drawn(9, ("f32",) * 2))
    except torch._dynamo.exc.Unsupported as error:
        if REFUSED_BY_DYNAMO not in str(error):
            raise
    else:
        assert tangent is None
