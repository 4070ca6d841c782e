"""The interface: the abstract base, a balancer of one's own, the student's reduction, and what a call refuses."""

import numpy as np
import pytest
import torch

from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.torch import STUDENT_LOSS_KEY, DistillationLossBalancer, StaticLossBalancer, functional


class LargestFirst(DistillationLossBalancer):
    """A balancer as a user writes it: the first loss counts double, the student not at all."""

    def forward(self, loss):
        losses = self.canonical(loss)
        kd = [x for name, x in losses.items() if name != STUDENT_LOSS_KEY]
        return functional.weighted_sum(kd, [2.0] + [1.0] * (len(kd) - 1))


def scalars(**losses):
    return {name: torch.tensor(value) for name, value in losses.items()}


def test_the_base_is_abstract():
    with pytest.raises(TypeError, match=r"abstract.*forward"):
        DistillationLossBalancer()  # type: ignore[abstract]


def test_a_subclass_without_forward_is_abstract():
    class Incomplete(DistillationLossBalancer):
        pass

    with pytest.raises(TypeError, match=r"Incomplete.*forward"):
        Incomplete()  # type: ignore[abstract]


def test_a_balancer_of_ones_own():
    balancer = LargestFirst()
    losses = scalars(M_10=1.0, student_loss=100.0, M_9=5.0)
    assert_same_bits(balancer(losses), torch.tensor(11.0))
    assert_same_bits(balancer(dict(reversed(losses.items()))), torch.tensor(11.0))


def test_canonical_gives_a_new_dict_in_canonical_order():
    balancer = LargestFirst()
    losses = scalars(student_loss=1.0, M_10=2.0, M_9=3.0)
    given = dict(losses)
    canonical = balancer.canonical(losses)
    assert list(canonical) == ["M_9", "M_10", "student_loss"]
    assert all(canonical[name] is losses[name] for name in canonical)
    assert list(losses) == list(given)


@pytest.mark.parametrize("make", [LargestFirst, lambda: StaticLossBalancer(0.5)], ids=["own", "static"])
def test_the_reduction_is_applied_to_the_student_alone(make):
    seen = []

    def mean(x):
        seen.append(x)
        return x.mean()

    balancer = make()
    balancer.set_student_loss_reduction_fn(mean)
    losses = {"M_0": torch.tensor(1.0), "student_loss": torch.tensor([1.0, 2.0, 6.0])}
    assert_same_bits(balancer.canonical(losses)["student_loss"], torch.tensor(3.0))
    assert balancer.canonical(losses)["M_0"] is losses["M_0"]
    assert all(x is losses["student_loss"] for x in seen)
    balancer(losses)
    assert len(seen) == 3
    assert losses["student_loss"].shape == (3,)  # the caller's dict is as it was


def test_the_reduction_is_in_the_aggregate_and_its_gradient():
    balancer = StaticLossBalancer(0.5)
    balancer.set_student_loss_reduction_fn(torch.sum)
    student = torch.tensor([1.0, 2.0], requires_grad=True)
    aggregate = balancer({"M_0": torch.tensor(4.0), "student_loss": student})
    aggregate.backward()
    assert_same_bits(aggregate, torch.tensor(3.5))
    assert_same_bits(student.grad, torch.tensor([0.5, 0.5]))


def test_none_removes_the_reduction():
    balancer = StaticLossBalancer(0.5)
    balancer.set_student_loss_reduction_fn(lambda x: x * 100)
    balancer.set_student_loss_reduction_fn(None)
    assert_same_bits(balancer(scalars(M_0=1.0, student_loss=3.0)), torch.tensor(2.0))


def test_without_a_student_the_reduction_is_not_called():
    balancer = StaticLossBalancer(1.0)
    balancer.set_student_loss_reduction_fn(pytest.fail)  # type: ignore[arg-type]
    assert_same_bits(balancer(scalars(M_0=1.0)), torch.tensor(1.0))


@pytest.mark.parametrize("fn", [3, "mean", [torch.mean]], ids=["number", "string", "list"])
def test_a_reduction_is_callable(fn):
    with pytest.raises(TypeError, match="`student_loss_reduction_fn` must be callable, or None to remove it"):
        StaticLossBalancer().set_student_loss_reduction_fn(fn)


def test_what_a_reduction_returns_is_checked():
    balancer = StaticLossBalancer()
    balancer.set_student_loss_reduction_fn(lambda x: 1.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"The loss 'student_loss' must be a floating-point array.*Received float"):
        balancer(scalars(M_0=1.0, student_loss=1.0))


ONE = torch.tensor(1.0)


@pytest.mark.parametrize("call", ["forward", "canonical"])
@pytest.mark.parametrize(
    ("losses", "error", "words"),
    [
        pytest.param([ONE], TypeError, ["must be a mapping from name to loss", "Received list"], id="list"),
        pytest.param(None, TypeError, ["must be a mapping", "Received NoneType"], id="none"),
        pytest.param(ONE, TypeError, ["must be a mapping", "Received Tensor"], id="bare-loss"),
        pytest.param({0: ONE}, TypeError, ["names of the losses must be strings", "the key 0"], id="int-as-name"),
        pytest.param({}, ValueError, ["at least one KD loss", "Received []"], id="empty"),
        pytest.param({"student_loss": ONE}, ValueError, ["at least one KD loss", "['student_loss']"], id="student-only"),
        pytest.param({"M": 1.0}, TypeError, ["The loss 'M' must be a floating-point array", "Received float"], id="float"),
        pytest.param({"M": None}, TypeError, ["'M'", "Received NoneType"], id="none-as-loss"),
        pytest.param({"M": torch.tensor(1)}, TypeError, ["'M'", "Received an array of int64"], id="int"),
        pytest.param({"M": torch.tensor(True)}, TypeError, ["'M'", "Received an array of bool"], id="bool"),
        pytest.param({"M": torch.tensor(1j)}, TypeError, ["'M'", "Received an array of complex64"], id="complex"),
        pytest.param({"M": ONE, "student_loss": 2}, TypeError, ["'student_loss'", "Received int"], id="int-student"),
        pytest.param({"M": np.float32(1)}, TypeError, ["'M'", "Received float32"], id="numpy-scalar"),
    ],
)
def test_errors(call, losses, error, words):
    with pytest.raises(error) as caught:
        getattr(StaticLossBalancer(), call)(losses)
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
def test_shapes_that_differ(shapes, hint):
    with pytest.raises(ValueError, match="must all have one shape") as caught:
        StaticLossBalancer(0.5)({name: torch.ones(shape) for name, shape in shapes.items()})
    assert str(shapes) in str(caught.value)
    assert ("set_student_loss_reduction_fn" in str(caught.value)) is hint


def test_devices_that_differ():
    with pytest.raises(ValueError, match="must all be on one device") as caught:
        StaticLossBalancer(0.5)({"M_0": ONE, "M_1": ONE.to("meta")})
    assert "'M_0': 'cpu', 'M_1': 'meta'" in str(caught.value)


@pytest.mark.parametrize("call", ["forward", "weights"])
@pytest.mark.parametrize(
    ("kd_loss_weight", "names", "words"),
    [
        pytest.param([0.5, 0.25], ["M_0"], "one weight per KD loss", id="count"),
        pytest.param({"A": 0.5}, ["B"], "name the KD losses exactly", id="names"),
        pytest.param([0.5, 0.25], ["A", "B"], r"distinct `_\{idx\}`", id="no-idx"),
    ],
)
def test_weights_and_losses_match(call, kd_loss_weight, names, words):
    with pytest.raises(ValueError, match=words):
        getattr(StaticLossBalancer(kd_loss_weight), call)(dict.fromkeys(names, ONE))


@pytest.mark.parametrize(
    ("kd_loss_weight", "error"), [(True, TypeError), ("0.5", TypeError), (1.5, ValueError), ([0.6, 0.6], ValueError)], ids=str
)
def test_the_settings_are_checked(kd_loss_weight, error):
    with pytest.raises(error, match="kd_loss_weight"):
        StaticLossBalancer(kd_loss_weight)
