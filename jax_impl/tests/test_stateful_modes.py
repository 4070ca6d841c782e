"""Whatever NNX offers to switch modes, switches a balancer's; and what a commit does at the ends."""

import copy
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from loss_balancers import spec
from loss_balancers.jax import observing, stateful
from loss_balancers.parity.bits import assert_same_bits

NAMES = ("LogitsKL_0", "MSE_1", "student_loss")


class Model(nnx.Module):
    """A model with a balancer, and a layer with a mode of its own or none."""

    def __init__(self, balancer, norm):
        self.norm = nnx.BatchNorm(1, rngs=nnx.Rngs(0)) if norm else None
        self.balancer = balancer

    def __call__(self, losses):
        return self.balancer(losses)


SWITCHES = {
    "eval": lambda model, running: model.eval() if running else model.train(),
    "set_attributes": lambda model, running: model.set_attributes(use_running_average=running),
    "set_attributes-tree": lambda model, running: model.set_attributes(use_running_average=running, graph=False),
    "view": lambda model, running: nnx.view(model, use_running_average=running),
    "view-tree": lambda model, running: nnx.view(model, use_running_average=running, graph=False),
    "with_attributes": lambda model, running: nnx.with_attributes(model, use_running_average=running),
}
#: Those that Flax has not always had, and whether this version has.
LATER = {
    "set_attributes-tree": "graph" in inspect.signature(nnx.Module.set_attributes).parameters,
    "with_attributes": hasattr(nnx, "with_attributes"),
}


def marks_of(switch):
    if switch.startswith("view"):
        return pytest.mark.needs_views
    return pytest.mark.skipif(not LATER.get(switch, True), reason=f"this version of Flax has no {switch}")


each_switch = pytest.mark.parametrize("switch", [pytest.param(switch, marks=marks_of(switch)) for switch in SWITCHES])


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("norm", [False, True], ids=["alone", "with-batch-norm"])
@each_switch
def test_each_switch_of_modes(make, draw, values, assert_same_state, switch, norm):
    model = Model(make(), norm)
    model = SWITCHES[switch](model, True) or model
    assert model.balancer.use_running_average is True
    before = values(model.balancer)
    model(draw(0))
    nnx.jit(lambda m, losses: m(losses))(model, draw(0))
    assert_same_state(model.balancer, before)
    model = SWITCHES[switch](model, False) or model
    assert model.balancer.use_running_average is False
    model(draw(0))
    assert model.balancer.pending[-2] == 1


@pytest.mark.needs_views
def test_a_view_for_evaluation_leaves_the_model_in_training(make, draw):
    model = Model(make(), norm=False)
    view = nnx.view(model, use_running_average=True)
    view(draw(0))
    assert (view.balancer.pending[-2], model.balancer.pending[-2]) == (0, 0)
    model(draw(1))
    assert model.balancer.pending[-2] == 1
    assert not model.balancer.use_running_average


@pytest.mark.needs_views
def test_a_view_of_other_attributes_changes_no_mode(make):
    model = Model(make(), norm=True)
    assert not nnx.view(model, only=nnx.BatchNorm, use_running_average=True).balancer.use_running_average
    assert "use_running_average: bool | None = None" in nnx.view_info(make())
    with pytest.raises(ValueError, match="deterministic"):
        nnx.view(make(), deterministic=True)


def test_discard_drops_what_is_pending_and_moves_no_counter(make, draw, values, assert_same_state):
    balancer = make()
    balancer(draw(0))
    balancer.step()
    before = values(balancer)
    balancer(draw(1))
    balancer({name: x * jnp.nan for name, x in draw(2).items()})
    nnx.jit(lambda b: b.discard())(balancer)
    assert_same_state(balancer, before)
    balancer(draw(1))
    balancer.discard()
    balancer.step()
    assert (balancer.steps[...], balancer.skipped[...]) == (2, 0)


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("mode", ["eager", "jit"])
def test_counters_stay_at_their_ends(make, mode):
    """Of int32 the largest; and what float32 cannot count any more is left out."""
    balancer = make()
    exported = balancer.export_state()
    observed = len(exported["state"]["pending"]) // 2 - 1
    full = [1.0] * observed + [float(spec.MOST_CALLS)] * observed
    step = nnx.jit(lambda b: b.step()) if mode == "jit" else lambda b: b.step()
    for steps, skipped, calls, left_out, more in [
        (spec.MOST_STEPS - 1, 0, 1.0, 0.0, 0),
        (spec.MOST_STEPS, spec.MOST_STEPS - 1, 1.0, 3.0, 1),
        (5, 0, 1.0, 3e9, spec.MOST_LEFT_OUT),
        (5, 200, 1.0, 3e9, spec.MOST_STEPS - 200),
        (5, 0, float(spec.MOST_CALLS), 2.0, spec.MOST_CALLS + 2),
    ]:
        exported["state"] |= {
            "steps": np.int32(steps),
            "skipped": np.int32(skipped),
            "pending": np.array([*full, calls, left_out], np.float32),
        }
        balancer.load_state(exported)
        step(balancer)
        assert (balancer.steps[...], balancer.skipped[...]) == (min(steps + 1, spec.MOST_STEPS), skipped + more)
        if observed:
            own = [getattr(balancer, name)[...] for name in exported["state"] if name not in ("steps", "skipped", "pending")]
            heeded = left_out > 0 and balancer._settings.updates  # means that may be of different data are not compared
            assert any(x.any() for x in own) == (calls < spec.MOST_CALLS and not heeded)
        balancer.load_state({**exported, "state": {name: np.zeros_like(x) for name, x in exported["state"].items()}})


def test_a_step_interrupted_before_its_writes_changes_nothing(make, draw, values, assert_same_state, monkeypatch):
    """All values are computed first. What is left is assignments of Python, one after the other."""
    for name in ("pending_mean", "advanced") if len(make().pending[...]) > 2 else ("advanced",):
        balancer = make()
        balancer(draw())
        before = values(balancer)

        def interrupted(*args):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(stateful, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                balancer.step()
        assert_same_state(balancer, before)
        balancer.step()
        assert balancer.steps[...] == 1


@pytest.mark.in_turn(8)
@pytest.mark.needs_pytrees
def test_a_module_that_jit_does_not_return_keeps_its_state(make, draw, values, assert_same_state):
    """As of Flax's `BatchNorm`: modules are pytrees, which `jax.jit` copies. Return it too, as docs/state.md says."""
    balancer = make()
    before = values(balancer)

    @jax.jit
    def lost(balancer, losses):
        return balancer(losses), balancer.step()

    lost(balancer, draw())
    assert_same_state(balancer, before)

    @jax.jit
    def kept(balancer, losses):
        total = balancer(losses)
        balancer.step()
        return total, balancer

    expected = copy.deepcopy(balancer)
    total, balancer = kept(balancer, draw())
    assert_same_bits(total, expected(draw()))
    expected.step()
    assert_same_state(balancer, expected)


def test_the_functions_are_pure():
    """State in, state out: for those who hold state themselves."""
    pending = jnp.zeros(8, jnp.float32)
    after = observing.observed(pending, jnp.ones(3, jnp.float32), None, None)
    assert_same_bits(after, jnp.asarray([1, 1, 1, 1, 1, 1, 1, 0], jnp.float32))
    assert not pending.any()
