"""State has one discipline: the call observes, `step()` commits, and nothing else changes anything."""

import math
import operator
import warnings

import numpy as np
import pytest

from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.spec import registry

NAN, INF = math.nan, math.inf


def nothing_pending(state):
    return not state["pending"].any()


def test_a_call_observes_and_changes_nothing_else(framework, make, draw, values, assert_same_state):
    balancer = make()
    before = values(balancer)
    balancer(draw(0))
    balancer(draw(1))
    assert_same_state(balancer, before, apart_from=["pending"])
    sums = [draw(0)[name] + draw(1)[name] for name in draw()] if registry.observes(balancer._settings) else []
    after = [0.0] * len(sums) if balancer._settings.updates else []
    assert_same_bits(balancer.pending[...], framework.array([*sums, *after, *[2.0] * len(sums), *after, 2.0, 0.0]))


def test_step_commits(make, draw, values, assert_same_state):
    balancer = make()
    before = values(balancer)
    balancer(draw())
    balancer.step()
    assert balancer.steps[...] == 1
    assert nothing_pending(values(balancer))
    if not registry.observes(balancer._settings):
        assert_same_state(balancer, before, apart_from=["steps"])


def test_step_commits_the_losses(framework, make_ema, draw):
    balancer = make_ema()
    balancer(draw())
    balancer.step()
    assert_same_bits(balancer.total[...], framework.xp.stack([*draw().values()]))
    assert_same_bits(balancer.fix[...], framework.xp.ones(3))


def test_a_step_without_an_observation_counts_and_no_more(make, draw, values, assert_same_state):
    balancer = make()
    balancer(draw())
    balancer.step()
    before = values(balancer)
    balancer.step()
    assert balancer.steps[...] == 2
    assert_same_state(balancer, before, apart_from=["steps"])


def test_eval_observes_nothing(make, draw, values, assert_same_state):
    balancer = make(auto_step=1)
    balancer(draw())
    before = values(balancer)
    balancer.eval()
    for _ in range(3):
        balancer(draw(1))
    assert_same_state(balancer, before)


def test_weights_and_breakdown_change_no_state(make, draw, values, assert_same_state):
    balancer = make(auto_step=1)
    balancer(draw())
    before = values(balancer)
    balancer.weights(draw(1))
    balancer.breakdown(draw(1))
    assert_same_state(balancer, before)


def test_micro_batches_are_averaged(make_observing, draw, assert_same_state):
    balancer, whole = make_observing(), make_observing()
    for seed in range(4):
        balancer(draw(seed))
    sums = dict(draw(0))
    for seed in range(1, 4):
        sums = {name: sums[name] + x for name, x in draw(seed).items()}
    whole({name: x / 4 for name, x in sums.items()})
    for each in (balancer, whole):
        each.step()
    assert_same_state(balancer, whole)


@pytest.mark.parametrize("bad", [NAN, INF, -INF], ids=["nan", "inf", "minus-inf"])
def test_what_is_not_finite_shows_in_the_aggregate_and_never_in_state(framework, make_observing, draw, bad, assert_same_state):
    balancer, spared = make_observing(), make_observing()
    for each in (balancer, spared):
        each(draw(0))
        each.step()
        each(draw(1))
    for name in draw():
        aggregate = balancer({**draw(2), name: framework.array(bad)})
        assert not framework.xp.isfinite(aggregate)
    for each in (balancer, spared):
        each.step()
    assert balancer.skipped[...] == 3
    assert_same_state(balancer, spared, apart_from=["skipped"])


def test_a_sum_that_overflows_leaves_its_last_observation_out(framework, make_ema, draw):
    balancer = make_ema()
    large = {**draw(), "MSE_1": framework.array(3e38)}
    balancer(large)
    balancer(large)
    balancer.step()
    assert balancer.skipped[...] == 1
    assert balancer.total[...][1] == framework.array(3e38)


def test_only_what_is_not_finite_is_no_observation(framework, make_observing, draw, values, assert_same_state):
    balancer = make_observing()
    before = values(balancer)
    balancer({**draw(), "MSE_1": framework.array(NAN)})
    balancer.step()
    assert_same_state(balancer, before, apart_from=["steps", "skipped"])
    assert (balancer.steps[...], balancer.skipped[...]) == (1, 1)


#: By what is wrong: losses that have it, the class of the error, and some of its words.
BAD = {
    "no-mapping": lambda f, x: (list(x.values()), TypeError, "must be a mapping"),
    "a-number": lambda f, x: ({**x, "MSE_1": 1.0}, TypeError, "'MSE_1' must be a floating-point array"),
    "an-integer": lambda f, x: ({**x, "MSE_1": f.array(1, f.INTEGER)}, TypeError, f"array of {f.INTEGER}"),
    "another-shape": lambda f, x: ({**x, "MSE_1": f.xp.ones(2)}, ValueError, "one shape"),
    "no-kd-loss": lambda f, x: ({"student_loss": x["student_loss"]}, ValueError, "at least one KD loss"),
}


@pytest.mark.parametrize("call", ["__call__", "observe", "weights", "breakdown"])
@pytest.mark.parametrize("bad", BAD)
def test_a_call_that_fails_changes_nothing(framework, make, draw, values, assert_same_state, bad, call):
    balancer = make(auto_step=1)
    balancer(draw())
    before = values(balancer)
    losses, kind, words = BAD[bad](framework, draw())
    with pytest.raises(kind, match=words):
        getattr(balancer, call)(losses)
    assert_same_state(balancer, before)


@pytest.mark.parametrize("change", ["missing", "extra", "another"])
def test_names_are_fixed(framework, make, draw, values, assert_same_state, change):
    balancer = make(auto_step=1)
    losses = draw()
    if change != "extra":
        del losses["LogitsKL_0"]
    if change != "missing":
        losses["Logits_7" if balancer.names else "LogitsKL_7"] = framework.array(1.0)
    if not balancer.names and (change == "another" or balancer._settings.reference is not None):
        return  # takes any names that have one logits loss, or the one that it names
    balancer(draw())
    before = values(balancer)
    with pytest.raises(ValueError, match="built for" if balancer.names else 'exactly one KD loss whose name holds "Logits"'):
        balancer(losses)
    assert_same_state(balancer, before)


def test_losses_that_make_weights_must_be_scalars(framework, make, draw, values, assert_same_state):
    balancer = make()
    losses = {name: framework.xp.broadcast_to(x, (2,)) for name, x in draw().items()}
    if not balancer._scalars:
        assert balancer(losses).shape == (2,)
        return
    before = values(balancer)
    with pytest.raises(ValueError, match=r"must be scalars, of shape \(\)"):
        balancer(losses)
    assert_same_state(balancer, before)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_auto_step_commits_at_the_start_of_a_call(framework, make, draw, count, assert_same_state):
    by_itself, by_hand = make(auto_step=count), make()
    steps = []
    for i in range(8):
        if i and i % count == 0:
            by_hand.step()
        losses = {**draw(i), "MSE_1": framework.array(NAN)} if i % 3 == 2 else draw(i)
        assert_same_bits(by_itself(losses), by_hand(losses))
        assert_same_state(by_itself, by_hand)
        steps.append(int(by_itself.steps[...]))
    assert steps == [i // count for i in range(8)]


def test_auto_step_and_step_go_together(make, draw):
    balancer = make(auto_step=2)
    balancer(draw())
    balancer.step()
    balancer(draw())
    balancer(draw())
    assert balancer.steps[...] == 1
    balancer(draw())
    assert balancer.steps[...] == 2


@pytest.mark.parametrize("given", [0, -1, 2**24, True, 1.0, "2"])
def test_auto_step_is_a_count(make, given):
    with pytest.raises((TypeError, ValueError), match="`auto_step` must be None or an int from 1 to 16777215"):
        make(auto_step=given)


# --- observe --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("auto_step", [None, 2])
def test_observe_is_what_a_training_call_observes(make, draw, auto_step, assert_same_state):
    calling, observing = make(auto_step=auto_step), make(auto_step=auto_step)
    observing.eval()
    for i in range(5):
        calling(draw(i))
        observing.observe(draw(i))
        assert_same_state(observing, calling)
        calling.eval()
        assert_same_bits(observing(draw(i)), calling(draw(i)))
        calling.train()
        if i % 2:
            calling.step()
            observing.step()


# --- the warning ----------------------------------------------------------------------------------------------------


def model_of(framework, balancer):
    """A model that calls a balancer."""

    def call(self, losses):
        return self.balancer(losses)

    model = type("Model", (framework.Module,), {framework.CALL: call})()
    model.balancer = balancer
    return model


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("way", ["call", "inside-a-model", "observe"])
def test_who_never_steps_is_warned_once_and_by_line(framework, make, draw, way):
    balancer = make()
    call = {"call": balancer, "inside-a-model": model_of(framework, balancer), "observe": balancer.observe}[way]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(99):
            call(draw())
        assert not caught
        for _ in range(200):
            call(draw())
    (warning,) = caught
    assert warning.category is UserWarning
    assert str(warning.message).startswith("`step()` was not called in 100 training forwards")
    assert warning.filename == __file__
    with open(__file__) as source:
        line = source.readlines()[warning.lineno - 1]
    assert line.strip() == ("return self.balancer(losses)" if way == "inside-a-model" else "call(draw())")


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("why", ["stepped", "discarded", "eval", "auto-step"])
def test_who_steps_is_not_warned(make, draw, why):
    balancer = make(auto_step=1000 if why == "auto-step" else None)
    if why == "eval":
        balancer.eval()
    for i in range(150):
        balancer(draw())
        if i == 50 and why == "stepped":
            balancer.step()
        if i == 50 and why == "discarded":  # whoever discards knows of `step()`
            balancer.discard()


# --- what is logged -------------------------------------------------------------------------------------------------


@pytest.mark.in_turn(8)
@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-6), ("bfloat16", 0.01), ("float64", 1e-7)], ids=["f32", "bf16", "f64"])
def test_breakdown(framework, make, draw, dtype, rtol):
    balancer = make()
    if dtype == "float64" and not balancer._settings.takes_float64:
        return  # an error in words
    with framework.float64(dtype == "float64"):
        losses = draw(dtype=dtype, kind=framework.loss)
        for _ in range(3):
            balancer(losses)
            balancer.step()
            parts, weights = balancer.breakdown(losses), balancer.weights(losses)
            names = ["LogitsKL_0", "MSE_1", "student_loss"]
            assert list(weights) == names
            assert list(parts) == [f"{name}/{part}" for name in names for part in ("raw", "weight", "weighted")] + ["total"]
            assert_same_bits(parts["total"], balancer(losses))
            for name in names:
                raw, weight, weighted = (parts[f"{name}/{part}"] for part in ("raw", "weight", "weighted"))
                assert_same_bits(raw, losses[name])
                assert_same_bits(weight, weights[name])
                assert_same_bits(weighted, framework.cast(raw, weighted.dtype) * framework.cast(weight, weighted.dtype))
            assert all(x.ndim == 0 and x.device == losses["MSE_1"].device for x in parts.values())
            assert not any(map(framework.has_graph, parts.values()))
            if balancer._settings.weights_are == "derivatives":
                continue  # the products need not add up to the total
            total = framework.xp.stack([parts[f"{name}/weighted"] for name in names]).sum()
            np.testing.assert_allclose(framework.cast(parts["total"], total.dtype), total, rtol=rtol)


def test_a_student_reduction_comes_first(framework, make, draw):
    balancer, reduced = make(), make()
    balancer.set_student_loss_reduction_fn(framework.xp.sum)
    losses = {**draw(), "student_loss": framework.xp.ones(5)}
    expected = {**draw(), "student_loss": framework.array(5.0)}
    assert_same_bits(balancer(losses), reduced(expected))
    assert_same_bits(balancer.breakdown(losses)["student_loss/raw"], framework.array(5.0))
    assert_same_bits(balancer.pending[...], reduced.pending[...])


def test_the_callers_dict_is_unchanged(make, draw):
    balancer = make()
    balancer.set_student_loss_reduction_fn(operator.neg)
    losses = draw()
    before = dict(losses)
    for call in (balancer, balancer.observe, balancer.weights, balancer.breakdown):
        call(losses)
    assert list(losses) == list(before)
    assert all(losses[name] is before[name] for name in losses)


def test_the_order_of_the_dict_does_not_matter(make, draw, assert_same_state):
    one, other = make(), make()
    for i in range(4):
        losses = draw(i)
        assert_same_bits(one(losses), other(dict(reversed(losses.items()))))
        one.step()
        other.step()
    assert_same_state(one, other)


def test_repr_shows_the_settings(make):
    shown = repr(make())
    assert shown.startswith(type(make()).__name__ + "(")
    assert "Schedule(0: " in shown or make()._table is None
