"""What is kept between calls is as good in the next one, whatever was active when it was made, and with threads that share it."""

import copy
import io
import itertools
import pickle
import sys
import threading
import time
from contextlib import contextmanager

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import loss_balancers.torch
from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.spec.keys import EXAMPLE_NAMES
from loss_balancers.spec.registry import examples, make
from loss_balancers.torch import StaticLossBalancer, functional, functional_form

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings(
        "ignore:`.*` of this balancer did not change in a training step:UserWarning"
    ),  # no optimizer takes part here
]

NAMES = ("M_0", "M_1", "M_2", "M_3", "student_loss")
fresh = itertools.count()


def fresh_weights(count):
    """Weights that nothing in this process has had yet, so that nothing is kept of them."""
    return [0.1 + 2.0**-20 * next(fresh)] * count


def losses_of(count, requires_grad=False, shape=()):
    return {name: torch.full(shape, 0.3 + i, requires_grad=requires_grad) for i, name in enumerate(NAMES[-count - 1 :])}


class Everything(TorchFunctionMode):
    """Makes something else of whatever PyTorch returns."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        return result * 0.5 if isinstance(result, torch.Tensor) and result.is_floating_point() else result


class Meta(TorchDispatchMode):
    """Makes everything on another device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return tree_map_only(torch.Tensor, lambda x: x.to("meta"), func(*args, **kwargs or {}))


@contextmanager
def default_device():
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


CONTEXTS = {
    "set-default-device": default_device,
    "default-dtype": default_dtype,
    "device": lambda: torch.device("meta"),
    "fake-tensors": lambda: FakeTensorMode(allow_non_fake_inputs=True),
    "function-mode": Everything,
    "dispatch-mode": Meta,
    "inference-mode": torch.inference_mode,
    "dual-level": forward_ad.dual_level,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def within(context):
    def call(function, losses):
        with context():
            function(losses)

    return call


#: How a first call may be made, of a function of losses.
FIRST_CALLS = {
    **{name: within(context) for name, context in CONTEXTS.items()},
    "grad": lambda function, losses: torch.func.grad(lambda x: function(x).sum())(losses),
    "vmap": lambda function, losses: torch.func.vmap(function)({name: x.expand(2, *x.shape) for name, x in losses.items()}),
    "vmap-of-grad": lambda function, losses: torch.func.vmap(torch.func.grad(lambda x: function(x).sum()))(
        {name: x.expand(2, *x.shape) for name, x in losses.items()}
    ),
    "jvp": lambda function, losses: torch.func.jvp(function, (losses,), (losses,)),
    "make-fx": lambda function, losses: make_fx(function)(losses),
}


def by_weighted_sum(weights):
    weights = [*weights, 1 - sum(weights)]
    return lambda losses: functional.weighted_sum(list(losses.values()), weights)


MAKERS = {"balancer": StaticLossBalancer, "weighted-sum": by_weighted_sum}


def step(function, losses):
    leaves = {name: x.detach().requires_grad_() for name, x in losses.items()}
    aggregate = function(leaves)
    return aggregate.detach(), *torch.autograd.grad(aggregate.sum(), list(leaves.values()))


@pytest.mark.parametrize("first", FIRST_CALLS.values(), ids=FIRST_CALLS)
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize(("count", "shape"), [(1, ()), (4, ()), (4, (2,))], ids=["2-terms", "5-terms", "5-vectors"])
def test_a_first_call_leaves_nothing_behind(first, make, count, shape):
    weights, losses = fresh_weights(count), losses_of(count, shape=shape)
    function = make(weights)
    first(function, losses)
    expected = [torch.full_like(losses[name], weight) for name, weight in zip(losses, [*weights, 1 - sum(weights)], strict=True)]
    for user in (function, make(weights)):  # this one and every later one
        aggregate, *gradients = step(user, losses)
        exact = sum(weight.double() * x.double() for weight, x in zip(expected, losses.values(), strict=True))
        torch.testing.assert_close(aggregate.double(), exact, rtol=1e-6, atol=0)
        assert aggregate.dtype == torch.float32
        for gradient, weight in zip(gradients, expected, strict=True):
            assert_same_bits(gradient, weight)
            assert not gradient.is_inference()


@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_a_copy_made_under_a_context_takes_nothing_of_it_along(context, copied):
    losses = losses_of(4)
    balancer = StaticLossBalancer(fresh_weights(4))
    expected = step(balancer, losses)
    with context():
        other = copied(balancer)
    for result, wanted in zip(step(other, losses), expected, strict=True):
        assert_same_bits(result, wanted)


def test_a_balancer_loaded_for_another_device():
    losses = losses_of(4)
    balancer = StaticLossBalancer(fresh_weights(4))
    expected = step(balancer, losses)
    file = io.BytesIO()
    torch.save(balancer, file)
    file.seek(0)
    loaded = torch.load(file, map_location="meta", weights_only=False)
    for result, wanted in zip(step(loaded, losses), expected, strict=True):
        assert_same_bits(result, wanted)


# --- threads --------------------------------------------------------------------------------------------------------


@pytest.fixture
def eager_to_switch():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


class SlowToStore(StaticLossBalancer):
    """Gives way after each store, so that another thread's may come before it is read again."""

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        time.sleep(0.0005)


class SlowToRead(StaticLossBalancer):
    """Gives way after each read of what the last call left, so that another thread may change it before it is read again."""

    def __getattribute__(self, name):
        value = super().__getattribute__(name)
        if name in ("_again", "_last_plan"):
            time.sleep(0.0005)
        return value


#: Two calls that need different plans: of other names, and of a dtype of which nothing is kept.
CALLS = [
    {"M_0": torch.tensor(0.5), "student_loss": torch.tensor(2.0)},
    {"M_0": torch.tensor(3.0)},
    {
        "M_0": torch.tensor(0.5, dtype=torch.bfloat16),
        "M_1": torch.tensor(0.7, dtype=torch.bfloat16),
        "student_loss": torch.tensor(1.0),
    },
]


@pytest.mark.filterwarnings("ignore:.*student_loss.*")
@pytest.mark.usefixtures("eager_to_switch")
@pytest.mark.parametrize("cls", [StaticLossBalancer, SlowToStore, SlowToRead])
def test_threads_that_share_a_balancer(cls):
    balancer = cls(0.3)
    expected = [StaticLossBalancer(0.3)(losses) for losses in CALLS]
    wrong = []

    def work(which):
        for _ in range(60):
            try:
                aggregate = balancer(CALLS[which])
                if not torch.equal(aggregate, expected[which]):
                    wrong.append((which, aggregate))
            except Exception as error:
                wrong.append((which, error))

    threads = [threading.Thread(target=work, args=(i % len(CALLS),)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, (len(wrong), wrong[:3])


# --- what is handed out ---------------------------------------------------------------------------------------------


def handed_out(balancer, losses, **keywords):
    """All that the methods of a balancer, and of its functional form, give, as bits; then each tensor of it is written to."""
    form = functional_form(balancer)
    state = form.init()
    first = form.apply(state, losses, **keywords)
    given = [
        balancer(losses, **keywords),
        balancer.weights(losses, **keywords),
        balancer.breakdown(losses, **keywords),
        *first,
        form.commit(first[1]),
        form.discard(first[1]),
        form.weights(state, losses, **keywords),
        form.breakdown(state, losses, **keywords),
    ]
    balancer.step()
    given += [balancer(losses, **keywords), balancer.weights(losses, **keywords), dict(balancer.state_dict())]
    leaves = [x for x in tree_leaves((given, state)) if isinstance(x, torch.Tensor)]
    bits = [x.detach().numpy().tobytes() for x in leaves]
    with torch.no_grad():
        for x in leaves:
            x.add_(1)
    return bits


AMOUNTS = {
    "plain": {},
    "count": {"count": 3},
    "share": {"share": 0.5},
    "absent": {"count": {**dict.fromkeys(EXAMPLE_NAMES, 2), "MSE_1": 0}},
}


@pytest.mark.parametrize("amounts", AMOUNTS)
@pytest.mark.parametrize("name", examples())
def test_what_is_handed_out_may_be_written_to(name, amounts):
    """No tensor that is kept is among it: else the next balancer would be given what one user wrote."""
    found = []
    for _ in range(2):
        balancer = make(examples()[name], loss_balancers.torch)
        losses = {k: torch.tensor(1.5 + i) for i, k in enumerate(EXAMPLE_NAMES)}
        found.append(handed_out(balancer, losses, **AMOUNTS[amounts]))
    assert found[0] == found[1]
