"""The functional form: the bits of the module, nothing changed that it is given, and no state where none is needed."""

from functools import partial

import pytest
from with_state import EXAMPLES as WITH_STATE
from with_state import NAMES

from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.spec import registry, schedules

#: No optimizer takes part here.
pytestmark = pytest.mark.filterwarnings("ignore:`.*` of this balancer did not change in a training step:UserWarning")
EXAMPLES = registry.examples()
CHANGING = [name for name, settings in EXAMPLES.items() if settings.can_change]
KD = NAMES[:-1]
#: What a call is given beside the losses.
KEYWORDS = {
    "plain": {},
    "count": {"count": 3},
    "share": {"share": 0.25},
    "absent": {"count": {name: 2.0 * (name == "student_loss") for name in NAMES}},
}


@pytest.fixture
def form_of(framework):
    return framework.balancers.functional_form


@pytest.fixture
def balancers(framework, form_of, request):
    """A module, and the functional form of an equal one."""
    name, *auto = request.param.split()
    make = partial(registry.make, EXAMPLES[name], framework.balancers, **({"auto_step": 2} if auto else {}))
    return make(), form_of(make())


@pytest.fixture(params=CHANGING)
def make(framework, request):
    """Makes a balancer whose state matters: of every kind in turn."""
    return partial(registry.make, EXAMPLES[request.param], framework.balancers)


@pytest.fixture
def ema(framework, form_of):
    return form_of(framework.balancers.EMANormalizedLossBalancer(NAMES))


def assert_same_arrays(actual, expected):
    """Compares dicts of arrays, or of numbers, by names, order and bits."""
    assert list(actual) == list(expected)
    for name, x in expected.items():
        if isinstance(x, float):  # a constant weight
            assert actual[name] == x
        else:
            assert_same_bits(actual[name], x)


#: Each example with each keyword; where it steps by itself, with two of them in turn.
ROWS = [
    *((name, kind) for name in EXAMPLES for kind in KEYWORDS),
    *((f"{name} auto_step", kind) for i, name in enumerate(WITH_STATE) for kind in list(KEYWORDS)[i % 2 :: 2]),
]


@pytest.mark.in_turn(8)
@pytest.mark.parametrize(("balancers", "kind"), ROWS, indirect=["balancers"])
def test_the_bits_are_those_of_the_module(framework, balancers, kind, draw):
    balancer, form = balancers
    keywords, state = KEYWORDS[kind], form.init()
    for i in range(4):
        losses = draw(i, kind=framework.loss)
        if i == 1:
            losses[NAMES[0]] = framework.loss(float("inf"))
        assert_same_arrays(form.weights(state, losses, **keywords), balancer.weights(losses, **keywords))
        assert_same_arrays(form.breakdown(state, losses, **keywords), balancer.breakdown(losses, **keywords))
        given = state
        aggregate, gradients = framework.differentiate(lambda x, s=given: form.apply(s, x, **keywords)[0], losses)
        _, state = form.apply(given, losses, **keywords)
        assert_same_arrays(state, form.observe(given, losses, **keywords))
        assert_same_bits(aggregate, balancer(losses, **keywords))
        balancer.eval()
        assert_same_arrays(gradients, framework.differentiate(lambda x: balancer(x, **keywords), losses)[1])
        balancer.train()
        if i % 2:
            state = form.commit(state)
            balancer.step()
        assert_same_arrays(state, {name: getattr(balancer, name)[...] for name in state})


def test_no_state_where_the_weights_are_constants(framework, form_of, draw):
    balancers = framework.balancers
    schedule = schedules.linear(0.0, 1.0, 3)
    for balancer in (
        balancers.StaticLossBalancer([0.25, 0.25]),
        balancers.WeightedSumLossBalancer(dict.fromkeys(KD, 2.0), 0.5),
        balancers.ScheduledLossBalancer(0.25, NAMES),
        balancers.LogitsAndIntermediatesLossBalancer(0.5),
    ):
        form = form_of(balancer)
        state = form.init()
        assert state == {}
        aggregate, state = form.apply(state, draw())
        assert_same_bits(aggregate, balancer(draw()))
        assert form.commit(form.discard(form.observe(state, draw()))) == {}
        assert_same_arrays(form.weights({}, draw()), balancer.weights(draw()))
    for balancer in (
        balancers.WeightedSumLossBalancer(dict.fromkeys(KD, schedule), 0.5),
        balancers.EMANormalizedLossBalancer(NAMES),
    ):
        assert form_of(balancer).init()


def test_validation_and_what_is_discarded_leave_nothing(make, form_of, draw, values):
    balancer = make()
    form = form_of(balancer)
    _, state = form.apply(form.init(), draw(0))
    state = form.commit(state)
    before = {name: x + 0 for name, x in state.items()}
    validated = form.evaluate(state, draw(1))
    assert_same_bits(validated, form.breakdown(state, draw(1))["total"])
    assert_same_bits(form.apply(state, draw(1))[0], validated)
    form.commit(form.observe(state, draw(2)))
    assert_same_arrays(state, before)  # what was given is as it was
    assert_same_arrays(form.discard(form.observe(state, draw(2))), before)
    assert_same_arrays(values(balancer), values(make()))


def test_the_state_moves_to_the_module_and_back(make, form_of, draw):
    form, module = form_of(make()), make()
    state = form.observe(form.commit(form.observe(form.init(), draw(0))), draw(1))
    module.load_state(form.export_state(state))
    assert_same_arrays(form.load_state(module.export_state()), state)
    assert_same_arrays(state, {name: getattr(module, name)[...] for name in state})


def test_a_balancer_of_ones_own(framework, form_of, draw):
    def call(self, loss):
        return self.canonical(loss)[NAMES[0]]

    own = type("OfOnesOwn", (framework.balancers.DistillationLossBalancer,), {framework.CALL: call})
    form = form_of(own())
    aggregate, state = form.apply(form.init(), draw())
    assert_same_bits(aggregate, own()(draw()))
    assert state == {}

    class WithState(own):
        def __init__(self):
            super().__init__()
            framework.hold(self, "seen", 0.0)

    with pytest.raises(TypeError, match=r"takes a balancer of this library.*Received an object of type WithState"):
        form_of(WithState())


@pytest.mark.parametrize("given", ["none", "class"])
def test_what_is_not_a_balancer_is_refused(framework, form_of, given):
    with pytest.raises(TypeError, match=r"takes a balancer of this library.*Received an object of type"):
        form_of({"none": None, "class": framework.balancers.StaticLossBalancer}[given])


def test_a_state_of_something_else_is_refused(framework, form_of, ema, draw):
    right = ema.init()
    wrong = [
        {},
        None,
        [right],
        {**right, "more": right["steps"]},
        {**right, "steps": framework.cast(right["steps"], framework.xp.float32)},
        {**right, "pending": right["pending"][:-1]},
        {**right, "pending": 0.0},
    ]
    for state in wrong:
        for call in (ema.apply, ema.evaluate, ema.observe, ema.weights, ema.breakdown):
            with pytest.raises(ValueError, match=r"state of a `EMANormalizedLossBalancer` must have.*Received"):
                call(state, draw())
        for call in (ema.commit, ema.discard, ema.export_state):
            with pytest.raises(ValueError, match="state of a `EMANormalizedLossBalancer` must have"):
                call(state)
    with pytest.raises(ValueError, match="state of a `StaticLossBalancer`"):
        form_of(framework.balancers.StaticLossBalancer()).apply(right, draw())
    with pytest.raises(TypeError, match="A `StaticLossBalancer` has no state"):
        form_of(framework.balancers.StaticLossBalancer()).export_state({})
