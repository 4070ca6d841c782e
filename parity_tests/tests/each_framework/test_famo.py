"""`FAMOLossBalancer`: the paper's value and step, `update()`, losses of which nothing follows, and how batches are split."""

import math

import numpy as np
import pytest

from loss_balancers.parity.bits import assert_same_bits

NAMES = ("KL_0", "MSE_1", "student_loss")
OWN = ("logits", "moments", "corrections")


@pytest.fixture
def make_famo(framework):
    """Makes a balancer of three losses."""
    return lambda **settings: framework.balancers.FAMOLossBalancer(NAMES, **settings)


@pytest.fixture
def losses_of(framework):
    """Losses by name."""
    return lambda row, kind=framework.array: {name: kind(x) for name, x in zip(NAMES, row, strict=True)}


@pytest.fixture
def train(losses_of):
    """Trains for a step, with the losses before it and after it."""

    def step(balancer, before, after, **more):
        balancer(losses_of(before), **more)
        balancer.update(losses_of(after), **more)
        balancer.step()

    return step


@pytest.fixture
def logits(values):
    """The logits."""
    return lambda balancer: values(balancer)["logits"]


def drawn(steps, seed=0):
    """Losses before a step, and after it."""
    rng = np.random.default_rng(seed)
    rows = rng.lognormal(0, 1, (steps, len(NAMES)))
    return np.stack([rows, rows * rng.uniform(0.5, 1.2, rows.shape)], 1).astype(np.float32)


def papers(rows, lr, weight_decay, least):
    """The logits in float64, by Adam as PyTorch has it."""
    w, m, v = np.zeros((3, len(NAMES)))
    for t, (before, after) in enumerate(rows.astype(np.float64), 1):
        z = np.exp(w) / np.exp(w).sum()
        fall = np.log(before - least + 1e-8) - np.log(after - least + 1e-8)
        gradient = z * (fall - (z * fall).sum()) + weight_decay * w
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        w = w - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return w


@pytest.mark.parametrize(("lr", "weight_decay", "least"), [(0.025, 1e-3, 0.0), (0.25, 0.125, -1.0)])
def test_the_logits_are_the_paper_s(make_famo, train, logits, lr, weight_decay, least):
    for seed in range(4):
        balancer, rows = make_famo(lr=lr, weight_decay=weight_decay, min_losses=dict.fromkeys(NAMES, least)), drawn(20, seed)
        for before, after in rows:
            train(balancer, before, after)
        np.testing.assert_allclose(logits(balancer), papers(rows, lr, weight_decay, least), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(("total_weight", "total"), [("paper", 1.0), ("K", 3.0), ("one", 1.0)])
def test_value_and_derivatives_are_the_paper_s(framework, make_famo, train, losses_of, logits, total_weight, total):
    balancer = make_famo(lr=0.5, total_weight=total_weight, min_losses={"KL_0": -1.0})
    for before, after in drawn(5):
        train(balancer, before, after)
    balancer.eval()
    z = np.exp(np.float64(logits(balancer)))
    z /= z.sum()
    for before, _ in drawn(20, seed=1):
        levels = before.astype(np.float64) - np.array([-1.0, 0.0, 0.0])
        norm = (z / levels).sum()
        value, gradients = framework.differentiate(balancer, losses_of(before, framework.loss))
        np.testing.assert_allclose(value.item(), total * (z / norm * np.log(levels)).sum(), rtol=1e-5, atol=1e-5)
        found = np.array([float(gradients[name]) for name in NAMES])
        np.testing.assert_allclose(found, total * z / (norm * levels), rtol=2e-6)
        assert found.sum() == pytest.approx(total, rel=1e-6)
        for name, weight in balancer.weights(losses_of(before)).items():
            assert_same_bits(weight, gradients[name])


def test_a_loss_that_falls_faster_gets_less(make_famo, train, logits):
    balancer = make_famo()
    train(balancer, (4.0, 2.0, 1.0), (1.0, 1.5, 1.0))
    np.testing.assert_allclose(logits(balancer), (-0.025, 0.025, 0.025), rtol=1e-5)


def test_without_an_update_only_the_counters_move_and_what_was_observed_is_dropped(make_famo, train, losses_of, values):
    balancer, other = make_famo(), make_famo()
    train(balancer, (4.0, 2.0, 1.0), (1.0, 1.5, 1.0))
    train(other, (4.0, 2.0, 1.0), (1.0, 1.5, 1.0))
    before = values(balancer)
    balancer(losses_of((9.0, 9.0, 9.0)))
    balancer.step()
    found = values(balancer)
    assert found["steps"] == 2
    assert not found["pending"].any()
    for name in OWN:
        assert_same_bits(found[name], before[name])
    balancer.update(losses_of((1.0, 2.0, 3.0)))  # and without a forward
    balancer.step()
    for name in OWN:
        assert_same_bits(values(balancer)[name], before[name])
    for each in (balancer, other):
        train(each, (3.0, 2.0, 1.0), (2.0, 1.5, 0.5))
    for name in OWN:
        assert_same_bits(values(balancer)[name], values(other)[name])


def test_an_update_is_dropped_too(make_famo, losses_of, values):
    balancer = make_famo()
    before = values(balancer)
    balancer(losses_of((4.0, 2.0, 1.0)))
    balancer.update(losses_of((1.0, 1.0, 1.0)))
    assert values(balancer)["pending"][:12].tolist() == [4.0, 2.0, 1.0, 1.0, 1.0, 1.0] + [1.0] * 6
    assert values(balancer)["pending"][12:].tolist() == [1.0, 0.0]
    balancer.discard()
    for name, value in values(balancer).items():
        assert_same_bits(value, before[name])


def test_eval_mode_observes_an_update_and_no_forward(make_famo, losses_of, values):
    balancer = make_famo()
    balancer.eval()
    balancer(losses_of((4.0, 2.0, 1.0)))
    assert not values(balancer)["pending"].any()
    balancer.update(losses_of((1.0, 1.0, 1.0)))
    assert values(balancer)["pending"][3:6].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("which", ["before", "after"])
@pytest.mark.parametrize("hard", [0.5, 0.25, "absent"])
def test_of_a_loss_not_above_its_least_value_nothing_follows(framework, make_famo, train, values, which, hard):
    """Its own state stays; the others' is as if there were only they."""
    balancer = make_famo(lr=0.25, min_losses={"MSE_1": 0.5})
    pair = framework.balancers.FAMOLossBalancer((NAMES[0], NAMES[2]), lr=0.25)
    rows = [np.array(row) for row in ((4.0, 2.0, 1.0), (3.0, 1.5, 0.25))]
    if isinstance(hard, float):
        rows[which == "after"][1] = hard
        train(balancer, *rows)
    else:
        for call, row, is_hard in zip((balancer, balancer.update), rows, (which == "before", which == "after"), strict=True):
            count = {name: 0.0 if is_hard and name == "MSE_1" else 1.0 for name in NAMES}
            call({name: framework.array(x) for name, x in zip(NAMES, row, strict=True)}, count=count)
        balancer.step()
    for call, row in zip((pair, pair.update), rows, strict=True):
        call({name: framework.array(row[i]) for i, name in ((0, NAMES[0]), (2, NAMES[2]))})
    pair.step()
    for name in OWN:
        mine, theirs = values(balancer)[name].reshape(-1, 3), values(pair)[name].reshape(-1, 2)
        assert mine[:, 1].tolist() == [0.0] * len(mine)
        assert_same_bits(mine[:, ::2].copy(), theirs)
    assert values(balancer)["logits"][0] != 0


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_a_call_that_was_left_out_leaves_the_logits_as_they_are(make_famo, train, losses_of, values, wrong, which):
    balancer = make_famo()
    train(balancer, (4.0, 2.0, 1.0), (1.0, 1.5, 1.0))
    before = values(balancer)
    rows = [(4.0, 2.0, 1.0), (3.0, 1.0, 1.0)]
    rows[which] = (1.0, wrong, 1.0)
    balancer(losses_of((8.0, 1.0, 1.0)))  # another part of the batch, whose means are of less than those on the other side
    balancer(losses_of(rows[0]))
    balancer.update(losses_of((4.0, 1.0, 1.0)))
    balancer.update(losses_of(rows[1]))
    balancer.step()
    assert values(balancer)["skipped"] == 1
    for name in OWN:
        assert_same_bits(values(balancer)[name], before[name])


def test_a_loss_below_its_least_value_makes_value_and_gradients_nan(framework, make_famo, losses_of):
    balancer = make_famo(eps=0.0)
    balancer.eval()
    for row in ((-1.0, 2.0, 3.0), (0.0, 2.0, 3.0), (math.nan, 2.0, 3.0)):
        value, gradients = framework.differentiate(balancer, losses_of(row, framework.loss))
        assert np.isnan([value.item(), *map(float, gradients.values())]).all()


def test_an_absent_loss_has_no_part(framework, make_famo, losses_of):
    balancer, pair = make_famo(), framework.balancers.FAMOLossBalancer((NAMES[0], NAMES[2]))
    balancer.eval()
    pair.eval()
    for given in (-5.0, math.nan):
        row = losses_of((4.0, given, 0.5), framework.loss)
        value, gradients = framework.differentiate(
            lambda losses: balancer(losses, count={"KL_0": 1, "MSE_1": 0, "student_loss": 1}), row
        )
        two = {name: framework.loss(x) for name, x in ((NAMES[0], 4.0), (NAMES[2], 0.5))}
        wanted, of_two = framework.differentiate(pair, two)
        np.testing.assert_allclose(value.item(), wanted.item(), rtol=1e-6)
        assert float(gradients["MSE_1"]) == 0.0
        for name in two:
            np.testing.assert_allclose(float(gradients[name]), float(of_two[name]), rtol=1e-6)


@pytest.mark.parametrize("keyword", ["means", "count", "share"])
def test_a_batch_in_parts_gives_the_same_logits(framework, make_famo, values, keyword):
    """Sixteen parts, four, or one: of numbers whose sums are exact."""
    rng = np.random.default_rng(5)
    items = rng.integers(1, 64, (6, 2, 16, len(NAMES))) / 16
    states = []
    for parts in (1, 4, 16):
        balancer = make_famo(lr=0.25)
        for step in items:
            for call, whole in zip((balancer, balancer.update), step, strict=True):
                for part in np.split(whole, parts):
                    row = part.sum(0) / 16 if keyword == "share" else part.mean(0)
                    more = {"means": {}, "count": {"count": 16 // parts}, "share": {"share": 1 / parts}}[keyword]
                    call({name: framework.array(x) for name, x in zip(NAMES, row, strict=True)}, **more)
            balancer.step()
        states.append(values(balancer))
    for state in states[1:]:
        for name in OWN:
            assert_same_bits(state[name], states[0][name])
    assert np.ptp(states[0]["logits"]) > 0.1


def test_a_commit_adds_what_other_ranks_observed_and_heeds_what_they_left_out(monkeypatch, make_famo, losses_of, values):
    whole, mine, other = (make_famo(lr=0.25) for _ in range(3))
    for balancer, rows in ((whole, ((4.0, 2.0, 1.0), (6.0, 4.0, 1.0))), (mine, ((4.0, 2.0, 1.0),)), (other, ((6.0, 4.0, 1.0),))):
        for row in rows:
            balancer(losses_of(row))
        for row in rows:
            balancer.update(losses_of([x / (2 + x) for x in row]))
    monkeypatch.setattr(type(mine), "_over_ranks", lambda self, x, *_: x + other.pending[:] if self is mine else x)
    whole.step()
    mine.step()
    for name in OWN:
        assert_same_bits(values(mine)[name], values(whole)[name])
    for balancer, row in ((mine, (4.0, 2.0, 1.0)), (other, (math.nan, 1.0, 1.0))):
        balancer(losses_of(row))
        balancer.update(losses_of((1.0, 2.0, 3.0)))
    mine.step()
    assert values(mine)["skipped"] == 1
    for name in OWN:
        assert_same_bits(values(mine)[name], values(whole)[name])


def test_the_least_value_of_a_share_is_its_part(framework, make_famo, losses_of):
    whole, parts = (make_famo(min_losses={"KL_0": -1.0}, eps=0.0) for _ in range(2))
    whole.eval()
    parts.eval()
    row = (2.0, 4.0, 1.0)
    wanted = whole.weights(losses_of(row))
    found = parts.weights(losses_of([x / 4 for x in row]), share=0.25)
    for name in NAMES:
        assert_same_bits(found[name], wanted[name])


def test_auto_step_commits_an_update_with_the_forwards_before_it(make_famo, losses_of, values):
    by_itself, by_hand = make_famo(auto_step=2), make_famo()
    for parts in np.split(drawn(6), 3):
        for balancer in (by_itself, by_hand):
            for before, _ in parts:
                balancer(losses_of(before))
            for _, after in parts:
                balancer.update(losses_of(after))
        by_hand.step()
    by_itself(losses_of((1.0, 1.0, 1.0)))
    for name in OWN:
        assert_same_bits(values(by_itself)[name], values(by_hand)[name])
    assert values(by_hand)["logits"].any()


def test_pure_functions_have_update(framework, make_famo, losses_of, values):
    balancer, form = make_famo(lr=0.5), framework.balancers.functional_form(make_famo(lr=0.5))
    state = form.init()
    for before, after in drawn(4):
        balancer(losses_of(before))
        balancer.update(losses_of(after), count=3)
        balancer.step()
        _, state = form.apply(state, losses_of(before))
        state = form.commit(form.update(state, losses_of(after), count=3))
    for name, value in values(balancer).items():
        assert_same_bits(form.export_state(state)["state"][name], value)


def test_a_loss_that_starts_afresh_has_corrections_of_its_own(framework, make_famo, train, values):
    balancer = make_famo(lr=0.25)
    for before, after in drawn(3):
        train(balancer, before, after)
    names = ("KL_0", "New_1", "student_loss")
    renamed = framework.balancers.FAMOLossBalancer(names, lr=0.25)
    renamed.load_state(balancer.export_state(), renamed={"New_1": None})
    old, new = values(balancer), values(renamed)
    for name in OWN:
        assert_same_bits(new[name].reshape(-1, 3)[:, ::2].copy(), old[name].reshape(-1, 3)[:, ::2].copy())
        assert not new[name].reshape(-1, 3)[:, 1].any()
    renamed({name: framework.array(x) for name, x in zip(names, (4.0, 2.0, 1.0), strict=True)})
    renamed.update({name: framework.array(x) for name, x in zip(names, (4.0, 1.0, 1.0), strict=True)})
    renamed.step()
    assert values(renamed)["logits"][1] == pytest.approx(-0.25, rel=1e-5)  # a first step of Adam is the learning rate


def test_who_never_updates_is_warned_once_and_by_line(make_famo, losses_of):
    balancer = make_famo()
    for _ in range(99):
        balancer(losses_of((1.0, 1.0, 1.0)))
        balancer.step()
    balancer(losses_of((1.0, 1.0, 1.0)))
    with pytest.warns(UserWarning, match=r"`update\(\)` was not called in 100 training forwards: .*docs/spec Q4") as caught:
        balancer.step()
    assert caught[0].filename == __file__
    for _ in range(105):  # a second warning would be an error
        balancer(losses_of((1.0, 1.0, 1.0)))
        balancer.step()


def test_who_observes_nothing_is_not_warned(make_famo, losses_of):
    """A rank without data, say, or a validation."""
    balancer = make_famo()
    for _ in range(105):
        balancer.step()
    balancer.eval()
    for _ in range(105):
        balancer(losses_of((1.0, 1.0, 1.0)))
        balancer.step()


def test_an_update_after_many_micro_batches_is_in_time(make_famo, losses_of):
    balancer = make_famo()
    for _ in range(99):
        balancer.observe(losses_of((1.0, 1.0, 1.0)))
    balancer.update(losses_of((1.0, 1.0, 1.0)))
    balancer.step()
    for _ in range(105):
        balancer(losses_of((1.0, 1.0, 1.0)))
        balancer.step()


def test_who_updates_is_not_warned_however_seldom(make_famo, losses_of):
    balancer = make_famo()
    balancer.update(losses_of((1.0, 1.0, 1.0)))
    for _ in range(205):
        balancer(losses_of((1.0, 1.0, 1.0)))
        balancer.step()


def test_an_update_that_is_compiled_counts(framework, make_famo, losses_of):
    """Where the step is eager, too: what Python sees of a compiled update must be enough."""
    balancer = make_famo()
    update = framework.compiled(lambda balancer, losses: balancer.update(losses))
    for _ in range(105):
        balancer(losses_of((1.0, 1.0, 1.0)))
        update(balancer, losses_of((1.0, 1.0, 1.0)))
        balancer.step()


def test_it_never_warns_of_steps_that_do_not_come_for_updates(make_famo, losses_of, recwarn):
    balancer = make_famo()
    for _ in range(105):
        balancer.update(losses_of((1.0, 1.0, 1.0)))
    assert not recwarn.list
