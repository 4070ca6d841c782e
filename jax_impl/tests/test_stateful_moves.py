"""State goes where the model goes: copies, checkpoints, NNX's own ways, and stays what it is, with x64 and without."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from with_state import train

import loss_balancers.jax
from loss_balancers.jax import LogitsAndIntermediatesLossBalancer, ScheduledLossBalancer
from loss_balancers.jax.carried import BalancerState, BalancerTable
from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.parity.jax_versions import enable_x64, in_mode, merged_copy
from loss_balancers.spec import registry, schedules


def by_update(balancer, make):
    other = make()
    nnx.update(other, nnx.state(balancer, BalancerState))
    return other


def by_export(balancer, make):
    other = make()
    other.load_state(balancer.export_state())
    return other


def by_pure_dict(balancer, make):
    other, state = make(), nnx.state(make(), BalancerState)
    nnx.replace_by_pure_dict(state, nnx.to_pure_dict(nnx.state(balancer, BalancerState)))
    nnx.update(other, state)
    return other


COPIES = {
    "deepcopy": lambda b, make: copy.deepcopy(b),
    "pickle": lambda b, make: pickle.loads(pickle.dumps(b)),
    "clone": lambda b, make: nnx.clone(b),
    "split-merge": lambda b, make: nnx.merge(*pickle.loads(pickle.dumps(nnx.split(b)))),
    "update": by_update,
    "pure-dict": by_pure_dict,
    "export": by_export,
}


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("way", COPIES.values(), ids=COPIES)
def test_a_copy_goes_on_as_the_original_does(make, draw, way, values, assert_same_state):
    balancer = train(make(), draw)
    before = values(balancer)
    other = way(balancer, make)
    assert_same_state(other, balancer)
    train(other, draw, start=20)
    assert_same_state(balancer, before)  # a copy shares nothing
    other.load_state(balancer.export_state())
    for i in range(5):
        assert_same_bits(other(draw(i)), balancer(draw(i)))
        other.step()
        balancer.step()
    assert_same_state(other, balancer)


def test_a_state_cannot_be_loaded_into_an_abstract_balancer(make, draw):
    trained = train(make(), draw)
    balancer = nnx.eval_shape(make)
    words = r"A state must be loaded into a balancer that has values. This one is abstract, without values. Build it outside"
    with pytest.raises(RuntimeError, match=words):
        balancer.load_state(trained.export_state())


def test_a_state_cannot_be_exported_from_an_abstract_balancer(make):
    words = r"A state must be exported from a balancer that has values. This one is abstract, and has none. Build it outside"
    with pytest.raises(RuntimeError, match=words):
        nnx.eval_shape(make).export_state()


USED = {
    "call": lambda balancer, draw: balancer(draw()),
    "call-in-eval": lambda balancer, draw: (balancer.eval(), balancer(draw())),
    "observe": lambda balancer, draw: balancer.observe(draw()),
    "weights": lambda balancer, draw: balancer.weights(draw()),
    "breakdown": lambda balancer, draw: balancer.breakdown(draw()),
    "step": lambda balancer, draw: balancer.step(),
    "discard": lambda balancer, draw: balancer.discard(),
}


@pytest.mark.parametrize("use", USED.values(), ids=USED)
@pytest.mark.parametrize("auto_step", [None, 1])
def test_an_abstract_balancer_cannot_be_used(make, draw, use, auto_step):
    balancer = nnx.eval_shape(lambda: make(auto_step=auto_step))
    words = (
        r"A balancer must have values to be used. This one is abstract, and has none. Build it outside of `nnx.eval_shape` first"
    )
    with pytest.raises(RuntimeError, match=words):
        use(balancer, draw)


def test_an_abstract_table_cannot_be_used(draw):
    """As after a restore of the state alone into an abstract balancer."""
    balancer = nnx.eval_shape(lambda: ScheduledLossBalancer(0.5, names=tuple(draw())))
    restored = nnx.state(ScheduledLossBalancer(0.5, names=tuple(draw())), BalancerState)
    nnx.update(balancer, restored)
    with pytest.raises(RuntimeError, match="A balancer must have values to be used"):
        balancer(draw())


def test_an_abstract_balancer_can_be_traced(make, draw):
    """Its shapes are all that `nnx.eval_shape` needs."""
    assert nnx.eval_shape(lambda balancer: balancer(draw()), nnx.eval_shape(make)).shape == ()


STACKED = {
    **USED,
    "export": lambda balancer, draw: balancer.export_state(),
    "load": lambda balancer, draw: balancer.load_state(registry.make(balancer._settings, loss_balancers.jax).export_state()),
}


@pytest.mark.parametrize("use", STACKED.values(), ids=STACKED)
@pytest.mark.parametrize("size", [1, 3])
def test_a_stack_of_balancers_cannot_be_used_as_one(make, draw, use, size):
    stack = nnx.vmap(lambda _: make(), axis_size=size)(jnp.arange(size))
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(stack)))
    with pytest.raises(RuntimeError, match=rf"must have the shapes that it was made with.*it is of shape \({size},\).*`nnx.vmap`"):
        use(stack, draw)
    after = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(stack)))
    assert jax.tree.all(jax.tree.map(np.array_equal, before, after))


@pytest.mark.in_turn(8)
def test_a_stack_of_balancers_is_used_within_vmap_or_one_by_one(make, draw, assert_same_state):
    """Each member is as a balancer alone, and the words of the error say how to get it."""
    stack, alone = nnx.vmap(lambda _: make(), axis_size=3)(jnp.arange(3)), [make() for _ in range(3)]
    losses = [draw(i) for i in range(3)]
    nnx.vmap(lambda balancer, losses: (balancer(losses), balancer.step()))(stack, jax.tree.map(lambda *x: jnp.stack(x), *losses))
    graphdef, state = nnx.split(stack)
    for i, balancer in enumerate(alone):
        balancer(losses[i])
        balancer.step()
        assert_same_state(nnx.merge(graphdef, jax.tree.map(lambda x, i=i: x[i], state)), balancer)


@pytest.mark.in_turn(8)
def test_orbax(make, draw, tmp_path, assert_same_state):
    balancer, other = train(make(), draw), make()
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", nnx.state(balancer, BalancerState))
        checkpointer.wait_until_finished()
        nnx.update(other, checkpointer.restore(tmp_path / "state", nnx.state(other, BalancerState)))
    assert_same_state(other, balancer)
    assert_same_bits(other(draw(9)), balancer(draw(9)))


def test_a_whole_model_is_saved_with_its_balancer(make, draw, tmp_path, assert_same_state):
    class Model(nnx.Module):
        def __init__(self):
            self.student, self.balancer = nnx.Linear(2, 2, rngs=nnx.Rngs(0)), make()

    model, other = Model(), Model()
    train(model.balancer, draw)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "model", nnx.to_pure_dict(nnx.state(model)))
        checkpointer.wait_until_finished()
        state = nnx.state(other)
        nnx.replace_by_pure_dict(state, checkpointer.restore(tmp_path / "model", nnx.to_pure_dict(state)))
    nnx.update(other, state)
    assert_same_state(other.balancer, model.balancer)


@pytest.mark.needs_pytrees  # before, `nnx.state` holds no variables, but what describes them
def test_what_is_in_the_state(make):
    balancer = make()
    state = nnx.state(balancer, BalancerState)
    assert sorted(state) == sorted(balancer.export_state()["state"])
    assert all(type(key) is str for path, _ in nnx.to_flat_state(nnx.state(balancer)) for key in path)
    assert all(
        type(variable) in (BalancerState, BalancerTable) for variable in jax.tree.leaves(nnx.state(balancer), is_leaf=_is_variable)
    )
    assert {x[...].dtype for x in jax.tree.leaves(state, is_leaf=_is_variable)} <= {np.dtype("int32"), np.dtype("float32")}
    assert nnx.variablelib.variable_name_from_type(BalancerState) == "balancer_state"
    assert nnx.variablelib.variable_name_from_type(BalancerTable) == "balancer_table"
    assert not jax.tree.leaves(nnx.state(balancer, nnx.Param))


def _is_variable(x):
    return isinstance(x, nnx.Variable)


def _described(balancer):
    arrays = nnx.to_pure_dict(nnx.state(balancer))
    return {name: (x.shape, x.dtype) for name, x in arrays.items()}


def test_nothing_is_allocated_at_a_call(make, draw):
    balancer = make()
    attributes = set(vars(balancer))
    before = _described(balancer)
    for _ in range(3):
        balancer(draw())
        balancer.step()
    assert _described(balancer) == before
    assert set(vars(balancer)) == attributes


# --- x64 ------------------------------------------------------------------------------------------------------------


@pytest.mark.in_turn(8)
def test_x64_changes_no_bit_and_no_format(make, draw, assert_same_state):
    exported = train(make(), draw).export_state()
    with enable_x64(True):
        other = train(make(), draw)
        assert_same_state(other, exported["state"])
        other.load_state(exported)
        compiled = nnx.jit(lambda balancer, losses: (balancer(losses), balancer.step())[0])
        aggregate = compiled(other, draw(8))
        back = other.export_state()
    balancer = make()
    balancer.load_state(exported)
    assert_same_bits(aggregate, balancer(draw(8)))
    balancer.step()
    assert_same_state(balancer, back["state"])
    balancer.load_state(back)


@pytest.mark.in_turn(8)
def test_float64_losses(make, draw):
    with enable_x64(True):
        balancer = make()
        losses = {name: jnp.asarray(np.asarray(x, np.float64) / 3) for name, x in draw().items()}
        if not balancer._settings.takes_float64:
            with pytest.raises(TypeError, match="must not be float64"):
                balancer(losses)
            return
        eager = balancer(losses)
        assert eager.dtype == jnp.float64
        other = make()
        assert_same_bits(nnx.jit(lambda balancer, losses: balancer(losses))(other, losses), eager)
        assert_same_bits(other.pending[...], balancer.pending[...])
        assert other.pending[...].dtype == jnp.float32


# --- the cost of settings -------------------------------------------------------------------------------------------


def test_a_long_table_is_hashed_once_and_is_no_constant_of_a_graph(draw, monkeypatch):
    """A table is bytes, whose hash Python keeps, and a variable: one trace, and nothing of its million steps in the graph."""
    steps, traces = 1_000_000, []
    table = schedules.tabulate(lambda step: step / steps, steps)

    @nnx.jit(**in_mode(False))
    def compiled(balancer, losses):
        traces.append(1)
        aggregate = balancer(losses)
        balancer.step()
        return aggregate

    balancer = ScheduledLossBalancer(table, names=tuple(draw()))
    built = []
    monkeypatch.setattr(type(balancer._settings), "table", property(lambda self: built.append(1)))
    for _ in range(20):
        compiled(balancer, draw())
    assert len(traces) == 1
    assert not built
    graph, state = nnx.split(balancer)
    jaxpr = jax.make_jaxpr(lambda state, losses: merged_copy(graph, state)(losses))(state, draw())
    assert all(np.size(constant) < 100 for constant in jaxpr.consts)


def test_a_balancer_that_never_changes_needs_no_table_of_steps():
    table = LogitsAndIntermediatesLossBalancer(2.0).export_state()["settings"]
    assert table["kd_loss_scale"] == {"points": [[0, 2.0, "linear"]]}
