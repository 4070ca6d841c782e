"""The interface: the abstract base, a balancer of one's own, the student's reduction, and what a call refuses."""

import pytest

from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.spec import STUDENT_LOSS_KEY


@pytest.fixture
def static(framework):
    """Makes a balancer of the library."""
    return framework.balancers.StaticLossBalancer


@pytest.fixture
def largest_first(framework):
    """Makes a balancer as a user writes it: the first loss counts double, the student not at all."""

    def call(self, loss):
        losses = self.canonical(loss)
        kd = [x for name, x in losses.items() if name != STUDENT_LOSS_KEY]
        return framework.balancers.functional.weighted_sum(kd, [2.0] + [1.0] * (len(kd) - 1))

    return type("LargestFirst", (framework.balancers.DistillationLossBalancer,), {framework.CALL: call})


@pytest.fixture
def scalars(framework):
    """Makes losses."""
    return lambda **losses: {name: framework.array(value) for name, value in losses.items()}


def test_the_base_is_abstract(framework):
    with pytest.raises(TypeError, match=rf"abstract.*{framework.CALL}"):
        framework.balancers.DistillationLossBalancer()


def test_a_subclass_without_a_call_is_abstract(framework):
    class Incomplete(framework.balancers.DistillationLossBalancer):
        pass

    with pytest.raises(TypeError, match=rf"Incomplete.*{framework.CALL}"):
        Incomplete()


def test_a_balancer_of_ones_own(framework, largest_first, scalars):
    balancer = largest_first()
    losses = scalars(M_10=1.0, student_loss=100.0, M_9=5.0)
    assert_same_bits(balancer(losses), framework.array(11.0))
    assert_same_bits(balancer(dict(reversed(losses.items()))), framework.array(11.0))


@pytest.mark.parametrize("kind", ["static", "largest_first"])
def test_what_has_no_state_can_be_stepped_all_the_same(request, scalars, kind):
    """So that a loop need not ask."""
    balancer = request.getfixturevalue(kind)()
    losses = scalars(M_0=1.0, student_loss=3.0)
    before = balancer(losses)
    assert balancer.observe(losses) is balancer.observe(losses, count=2) is balancer.observe(losses, share=0.5) is None
    assert balancer.step() is balancer.discard() is None
    assert_same_bits(balancer(losses), before)


def test_canonical_gives_a_new_dict_in_canonical_order(largest_first, scalars):
    balancer = largest_first()
    losses = scalars(student_loss=1.0, M_10=2.0, M_9=3.0)
    given = dict(losses)
    canonical = balancer.canonical(losses)
    assert list(canonical) == ["M_9", "M_10", "student_loss"]
    assert all(canonical[name] is losses[name] for name in canonical)
    assert list(losses) == list(given)


@pytest.mark.parametrize("whose", ["own", "static"])
def test_the_reduction_is_applied_to_the_student_alone(framework, largest_first, static, whose):
    seen = []

    def mean(x):
        seen.append(x)
        return x.mean()

    balancer = largest_first() if whose == "own" else static(0.5)
    balancer.set_student_loss_reduction_fn(mean)
    losses = {"M_0": framework.array(1.0), "student_loss": framework.array([1.0, 2.0, 6.0])}
    assert_same_bits(balancer.canonical(losses)["student_loss"], framework.array(3.0))
    assert balancer.canonical(losses)["M_0"] is losses["M_0"]
    assert all(x is losses["student_loss"] for x in seen)
    balancer(losses)
    assert len(seen) == 3
    assert losses["student_loss"].shape == (3,)  # the caller's dict is as it was


def test_the_reduction_is_in_the_aggregate_and_its_gradient(framework, static):
    balancer = static(0.5)
    balancer.set_student_loss_reduction_fn(framework.xp.sum)
    student = {"student_loss": framework.loss([1.0, 2.0])}
    aggregate, gradients = framework.differentiate(lambda x: balancer({"M_0": framework.array(4.0), **x}), student)
    assert_same_bits(aggregate, framework.array(3.5))
    assert_same_bits(gradients["student_loss"], framework.array([0.5, 0.5]))


def test_none_removes_the_reduction(framework, static, scalars):
    balancer = static(0.5)
    balancer.set_student_loss_reduction_fn(lambda x: x * 100)
    balancer.set_student_loss_reduction_fn(None)
    assert_same_bits(balancer(scalars(M_0=1.0, student_loss=3.0)), framework.array(2.0))


def test_without_a_student_the_reduction_is_not_called(framework, static, scalars):
    balancer = static(1.0)
    balancer.set_student_loss_reduction_fn(pytest.fail)
    assert_same_bits(balancer(scalars(M_0=1.0)), framework.array(1.0))


@pytest.mark.parametrize("fn", [3, "mean", [max]], ids=["number", "string", "list"])
def test_a_reduction_is_callable(static, fn):
    with pytest.raises(TypeError, match="`student_loss_reduction_fn` must be callable, or None to remove it"):
        static().set_student_loss_reduction_fn(fn)


def test_what_a_reduction_returns_is_checked(static, scalars):
    balancer = static()
    balancer.set_student_loss_reduction_fn(lambda x: 1.0)
    with pytest.raises(TypeError, match=r"The loss 'student_loss' must be a floating-point array.*Received float"):
        balancer(scalars(M_0=1.0, student_loss=1.0))


#: By what is wrong: what is given, the class of the error, and some of its words.
WRONG = {
    "list": lambda f: ([f.array(1.0)], TypeError, ["must be a mapping from name to loss", "Received list"]),
    "none": lambda f: (None, TypeError, ["must be a mapping", "Received NoneType"]),
    "bare-loss": lambda f: (f.array(1.0), TypeError, ["must be a mapping", f"Received {f.ARRAY}"]),
    "int-as-name": lambda f: ({0: f.array(1.0)}, TypeError, ["names of the losses must be strings", "the key 0"]),
    "empty": lambda f: ({}, ValueError, ["at least one KD loss", "Received []"]),
    "student-only": lambda f: ({"student_loss": f.array(1.0)}, ValueError, ["at least one KD loss", "['student_loss']"]),
    "float": lambda f: ({"M": 1.0}, TypeError, ["The loss 'M' must be a floating-point array", "Received float"]),
    "none-as-loss": lambda f: ({"M": None}, TypeError, ["'M'", "Received NoneType"]),
    "int": lambda f: ({"M": f.array(1, f.INTEGER)}, TypeError, ["'M'", f"Received an array of {f.INTEGER}"]),
    "bool": lambda f: ({"M": f.array(True, "bool")}, TypeError, ["'M'", "Received an array of bool"]),
    "complex": lambda f: ({"M": f.array(1j, "complex64")}, TypeError, ["'M'", "Received an array of complex64"]),
    "int-student": lambda f: ({"M": f.array(1.0), "student_loss": 2}, TypeError, ["'student_loss'", "Received int"]),
}


@pytest.mark.parametrize("call", ["call", "canonical"])
@pytest.mark.parametrize("wrong", WRONG)
def test_errors(framework, static, call, wrong):
    losses, error, words = WRONG[wrong](framework)
    with pytest.raises(error) as caught:
        getattr(static(), framework.CALL if call == "call" else call)(losses)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("shapes", "hint"),
    [
        pytest.param({"M_0": (), "M_1": (), "student_loss": (3,)}, True, id="student-is-odd"),
        pytest.param({"M_0": (), "M_1": (3,), "student_loss": ()}, False, id="kd-is-odd"),
        pytest.param({"M_0": (1,), "M_1": ()}, False, id="no-student"),
    ],
)
def test_shapes_that_differ(framework, static, shapes, hint):
    with pytest.raises(ValueError, match="must all have one shape") as caught:
        static(0.5)({name: framework.xp.ones(shape) for name, shape in shapes.items()})
    assert str(shapes) in str(caught.value)
    assert ("set_student_loss_reduction_fn" in str(caught.value)) is hint


@pytest.mark.parametrize("call", ["call", "weights"])
@pytest.mark.parametrize(
    ("kd_loss_weight", "names", "words"),
    [
        pytest.param([0.5, 0.25], ["M_0"], "one weight per KD loss", id="count"),
        pytest.param({"A": 0.5}, ["B"], "name the KD losses exactly", id="names"),
        pytest.param([0.5, 0.25], ["A", "B"], r"distinct `_\{idx\}`", id="no-idx"),
    ],
)
def test_weights_and_losses_match(framework, static, call, kd_loss_weight, names, words):
    with pytest.raises(ValueError, match=words):
        getattr(static(kd_loss_weight), framework.CALL if call == "call" else call)(dict.fromkeys(names, framework.array(1.0)))


@pytest.mark.parametrize(
    ("kd_loss_weight", "error"), [(True, TypeError), ("0.5", TypeError), (1.5, ValueError), ([0.6, 0.6], ValueError)], ids=str
)
def test_the_settings_are_checked(static, kd_loss_weight, error):
    with pytest.raises(error, match="kd_loss_weight"):
        static(kd_loss_weight)
