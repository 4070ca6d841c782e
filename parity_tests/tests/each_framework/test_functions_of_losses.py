"""`GeometricLossBalancer` and `STCHLossBalancer`: the papers' formulas, absent losses, totals, and losses that are hard."""

import math

import numpy as np
import pytest

from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.spec import registry
from loss_balancers.spec.registry import SETTINGS

NAMES = ("KL_0", "MSE_1", "student_loss")
BALANCERS = [name for name, settings in SETTINGS.items() if settings.weights_are == "derivatives"]
TRACES = 300


@pytest.fixture
def make_geometric(framework):
    """Makes a geometric mean of three losses."""
    return lambda names=NAMES, **settings: framework.balancers.GeometricLossBalancer(names, **settings)


@pytest.fixture
def make_stch(framework):
    """Makes a smooth maximum of three losses."""
    return lambda names=NAMES, **settings: framework.balancers.STCHLossBalancer(names, **settings)


def arrays(framework, row, names=NAMES, dtype="float32", kind="array"):
    return {name: getattr(framework, kind)(x, dtype) for name, x in zip(names, row, strict=True)}


def differentiated(framework, balancer, row, names=NAMES, **more):
    """The aggregate and its gradients as numbers."""
    value, gradients = framework.differentiate(lambda losses: balancer(losses, **more), arrays(framework, row, names, kind="loss"))
    return value.item(), np.array([float(gradients[name]) for name in names])


def drawn(count=3, seed=0, traces=TRACES):
    return np.random.default_rng(seed).lognormal(0, 2, (traces, count)).astype(np.float32)


def geometric(losses, weights):
    """The geometric mean in float64, as a product of powers, and its derivatives."""
    losses, exponents = losses.astype(np.float64), np.array(weights) / np.sum(weights)
    mean = np.prod(losses**exponents)
    return mean, mean * exponents / losses


def smooth_maximum(losses, mu, weights, reference, form):
    """The smooth maximum in float64, and its derivatives; the scale of what it is made of."""
    losses, reference = losses.astype(np.float64), np.array(reference, np.float64)
    y = np.array(weights) * (np.log(losses / reference) if form == "log" else losses - reference)
    powers = np.exp((y - y.max()) / mu)
    inner = np.array(weights) / (losses if form == "log" else 1.0)
    return mu * np.log(powers.sum()) + y.max(), inner * powers / powers.sum(), np.abs(y).max() + mu


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.3, 7.0, 1.0)])
def test_the_geometric_mean_is_the_paper_s(framework, make_geometric, weights):
    balancer = make_geometric(weights=dict(zip(NAMES, weights, strict=True)))
    for row in drawn():
        value, gradients = differentiated(framework, balancer, row)
        wanted, derivatives = geometric(row, weights)
        np.testing.assert_allclose(value, wanted, rtol=1e-5)
        np.testing.assert_allclose(gradients, derivatives, rtol=1e-5)


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("form", ["linear", "log"])
@pytest.mark.parametrize("mu", [0.3, 1.0])
@pytest.mark.parametrize("given", [False, True], ids=["default", "given"])
def test_the_smooth_maximum_is_the_paper_s(framework, make_stch, form, mu, given):
    weights = (0.5, 0.0625, 1.5) if given else (1 / 3,) * 3
    reference = (0.25, 2.0, 0.125) if given else (1.0 if form == "log" else 0.0,) * 3
    settings = {"weights": dict(zip(NAMES, weights, strict=True)), "reference": dict(zip(NAMES, reference, strict=True))}
    balancer = make_stch(mu=mu, form=form, **(settings if given else {}))
    for row in drawn(seed=1):
        value, gradients = differentiated(framework, balancer, row)
        wanted, derivatives, scale = smooth_maximum(row, mu, weights, reference, form)
        np.testing.assert_allclose(value, wanted, atol=1e-6 * scale)
        # An exponent of float32 is off by an ulp of itself, and of y / mu.
        np.testing.assert_allclose(gradients, derivatives, rtol=3e-7 * (10 + scale / mu), atol=1e-37)


def test_libmtl_s_gradients_are_those_of_the_form_log(framework, make_stch):
    mu, nadir = 0.5, (2.0, 0.25, 1.0)
    balancer = make_stch(mu=mu / 3, form="log", reference=dict(zip(NAMES, nadir, strict=True)), total_weight="K")
    for row in drawn(seed=2, traces=50):
        powers = (row / np.array(nadir)) ** (1 / mu)
        np.testing.assert_allclose(differentiated(framework, balancer, row)[1], 3 * powers / powers.sum() / row, rtol=2e-5)


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_any_number_of_losses(framework, make_geometric, make_stch, count):
    names = tuple(f"MSE_{i}" for i in range(count))
    for row in drawn(count, seed=3, traces=3):
        value, gradients = differentiated(framework, make_geometric(names), row, names)
        wanted, derivatives = geometric(row, [1.0] * count)
        np.testing.assert_allclose(value, wanted, rtol=1e-5)
        np.testing.assert_allclose(gradients, derivatives, rtol=1e-5)
        value, gradients = differentiated(framework, make_stch(names), row, names)
        wanted, derivatives, _ = smooth_maximum(row, 1.0, [1 / count] * count, [0.0] * count, "linear")
        np.testing.assert_allclose(value, wanted, rtol=1e-5)
        np.testing.assert_allclose(gradients, derivatives, rtol=2e-5, atol=1e-37)


@pytest.mark.parametrize(("total_weight", "total"), [("paper", {"geometric": 1, "stch": 1 / 3}), ("K", 3), ("one", 1)])
def test_the_total_of_the_derivatives(framework, make_geometric, make_stch, total_weight, total):
    made = {
        "geometric": make_geometric(total_weight=total_weight),
        "stch": make_stch(total_weight=total_weight),
        "log": make_stch(total_weight=total_weight, form="log"),
    }
    for name, balancer in made.items():
        wanted = total if isinstance(total, int) else total["geometric" if name == "geometric" else "stch"]
        of_equal = differentiated(framework, balancer, [1.0] * 3)[1]
        assert of_equal.sum() == pytest.approx(wanted, rel=1e-6)


def test_one_as_the_total_has_the_bits_of_the_paper_s_one(framework, make_geometric):
    for row in drawn(seed=4, traces=10):
        losses = arrays(framework, row)
        assert_same_bits(make_geometric()(losses), make_geometric(total_weight="one")(losses))


@pytest.mark.parametrize("given", ["host", "device"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_an_absent_loss_has_no_part(framework, make_geometric, make_stch, given, value):
    weights, others = {"KL_0": 0.7, "MSE_1": 1.0, "student_loss": 3.0}, ("KL_0", "student_loss")
    counts = {name: 0.0 if name == "MSE_1" else 2.0 for name in NAMES}
    counts = counts if given == "host" else {name: framework.array(x) for name, x in counts.items()}
    of_others = {name: weights[name] for name in others}
    pairs = [(make_geometric(weights=weights), make_geometric(others, weights=of_others))]
    pairs += [
        (make_stch(weights=weights, form=form), make_stch(others, weights=of_others, form=form)) for form in ("linear", "log")
    ]
    for whole, part in pairs:
        found, gradients = differentiated(framework, whole, [2.9, value, 0.3], count=counts)
        wanted, of_part = differentiated(framework, part, [2.9, 0.3], others)
        assert found == wanted
        assert gradients.tolist() == [of_part[0], 0.0, of_part[1]]
        assert not np.signbit(gradients).any()


@pytest.mark.parametrize("kind", ["count", "share"])
@pytest.mark.parametrize("given", ["host", "device"])
def test_amounts_that_are_not_zero_change_no_bit(framework, make_geometric, make_stch, kind, given):
    weights = {"KL_0": 0.7, "student_loss": 0.1}
    amounts = dict(zip(NAMES, (0.1, 3.0, 0.5), strict=True))
    amounts = amounts if given == "host" else {name: framework.array(x) for name, x in amounts.items()}
    for balancer in (make_geometric(weights=weights), make_stch(weights=weights), make_stch(form="log", mu=0.3)):
        for row in drawn(seed=5, traces=10):
            found = differentiated(framework, balancer, row, **{kind: amounts})
            wanted = differentiated(framework, balancer, row)
            assert found[0] == wanted[0]
            assert found[1].tolist() == wanted[1].tolist()


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("balancer", BALANCERS)
def test_if_all_are_absent_value_and_gradients_are_0(framework, balancer, dtype):
    for settings in SETTINGS[balancer].examples().values():
        made = registry.make(settings, framework.balancers)
        if settings.state:
            made.eval()  # a transform refuses to observe
        losses = arrays(framework, (math.nan, 0.0, -1.0), made.names, dtype, "loss")
        value, gradients = framework.differentiate(lambda losses, made=made: made(losses, count=0), losses)
        assert_same_bits(value, framework.array(0.0, dtype))
        for gradient in gradients.values():
            assert_same_bits(gradient, framework.array(0.0, dtype))


def test_hard_losses_of_the_geometric_mean(framework, make_geometric):
    nan = math.nan
    for row, value, gradients in (
        ((0.0, 1.0, 2.0), 0.0, (nan, 0.0, 0.0)),
        ((-0.0, 1.0, 2.0), 0.0, (nan, 0.0, 0.0)),
        ((2.0**-130, 1.0, 2.0), 0.0, (nan, 0.0, 0.0)),
        ((-1.0, 1.0, 2.0), nan, (nan,) * 3),
        ((nan, 1.0, 2.0), nan, (nan,) * 3),
        ((math.inf, 1.0, 2.0), math.inf, (nan, math.inf, math.inf)),
        ((math.inf, 0.0, 2.0), nan, (nan,) * 3),
    ):
        found, of_losses = differentiated(framework, make_geometric(), row)
        np.testing.assert_array_equal([found, *of_losses], [value, *gradients])
    found, _ = differentiated(framework, make_geometric(), [1e-20] * 3)  # whose product is 0 in float32
    assert found == pytest.approx(1e-20, rel=1e-5)


def test_hard_losses_of_the_smooth_maximum(framework, make_stch):
    nan = math.nan
    third = float(np.float32(1 / 3))
    found, gradients = differentiated(framework, make_stch(), (0.0, -0.0, 2.0**-130))
    assert found == pytest.approx(math.log(3))
    np.testing.assert_allclose(gradients, [third**2] * 3, rtol=1e-6)
    found, gradients = differentiated(framework, make_stch(mu=0.001), (-5.0, -3.0, -9.0))
    assert found == pytest.approx(-1.0)
    assert gradients.tolist() == [0.0, third, 0.0]
    found, gradients = differentiated(framework, make_stch(mu=2.0**-100), (3e38, -3e38, 1.0))
    assert (found, gradients.tolist()) == (pytest.approx(1e38), [third, 0.0, 0.0])
    for wrong in (nan, math.inf):
        found, gradients = differentiated(framework, make_stch(), (wrong, 1.0, 2.0))
        assert np.isnan([found, *gradients]).all()
    found, gradients = differentiated(framework, make_stch(form="log"), (0.0, 1.0, 1.0))
    assert found == pytest.approx(math.log(2))
    assert np.isnan(gradients).tolist() == [True, False, False]
    found, gradients = differentiated(framework, make_stch(form="log"), (-1.0, 1.0, 2.0))
    assert np.isnan([found, *gradients]).all()


@pytest.mark.parametrize("balancer", BALANCERS)
@pytest.mark.parametrize("dtypes", [("float64",) * 3, ("float32", "float64", "bfloat16")], ids=["all", "one"])
def test_float64_is_refused_in_words(framework, balancer, dtypes):
    made = registry.make(next(iter(SETTINGS[balancer].examples().values())), framework.balancers)
    wrong = [name for name, dtype in zip(made.names, dtypes, strict=True) if dtype == "float64"]
    words = (
        "The losses of this balancer must not be float64: it computes with exponentials or logarithms, which are those of float32 "
        f"alone. Received float64 for {wrong}. Cast these losses to float32. (docs/spec G1)"
    )
    with framework.float64():
        losses = {name: framework.array(1.0, dtype) for name, dtype in zip(made.names, dtypes, strict=True)}
        for call in (made, made.weights, made.breakdown):
            with pytest.raises(TypeError) as raised:
                call(losses)
            assert str(raised.value) == words


@pytest.mark.parametrize("balancer", BALANCERS)
def test_no_bit_depends_on_the_order_of_the_dict(framework, balancer):
    for settings in SETTINGS[balancer].examples().values():
        made = registry.make(settings, framework.balancers)
        for row in drawn(seed=6, traces=5):
            losses = arrays(framework, row, made.names)
            assert_same_bits(made(losses), made(dict(reversed(losses.items()))))
