"""Run by test_ranks.py over 8 virtual devices: state in `shard_map`, and under `jit` with global arrays."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from loss_balancers.jax import EMANormalizedLossBalancer
from loss_balancers.jax.carried import BalancerState
from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.parity.jax_versions import varying

NAMES = ("MSELoss_0", "KLDivLoss_1", "student_loss")
MESH = jax.make_mesh((8,), ("i",), axis_types=(AxisType.Auto,))


def drawn(step):
    """A loss of each name on each device, in sixty-fourths: their sums and means are exact."""
    rng = np.random.default_rng(step)
    return {name: jnp.asarray(rng.integers(1, 256, 8) / 64, jnp.float32) for name in NAMES}


def assert_same_state(actual, expected):
    for name, variable in expected._state().items():
        assert_same_bits(actual[name][...], variable[...])


def one_process(lagged, missing=None):
    """The run in one process, of eight calls a step: its aggregates and the balancer after it."""
    balancer, aggregates = EMANormalizedLossBalancer(NAMES, beta=0.5, lagged=lagged), []
    for step in range(5):
        losses = drawn(step)
        aggregates.append([balancer({n: x[i] for n, x in losses.items()}) for i in range(8) if (step, i) != missing])
        balancer.step()
    return aggregates, balancer


def step_of(graphdef, losses, state):
    balancer = nnx.merge(graphdef, state)
    aggregate = balancer({name: x[0] for name, x in losses.items()})
    balancer.step()
    return aggregate[None], nnx.state(balancer)


def sharded(lagged):
    balancer = EMANormalizedLossBalancer(NAMES, beta=0.5, lagged=lagged, axis_name="i")
    graphdef, state = nnx.split(balancer)
    mapped = jax.shard_map(
        lambda losses, state: step_of(graphdef, losses, state), mesh=MESH, in_specs=(P("i"), P()), out_specs=(P("i"), P())
    )
    return state, mapped


def test_same_bits_as_one_process():
    for lagged in (False, True):
        aggregates, expected = one_process(lagged)
        state, mapped = sharded(lagged)
        compiled = jax.jit(mapped)
        for step in range(5):
            aggregate, state = compiled(drawn(step), state)
            assert_same_bits(aggregate, jnp.stack(aggregates[step]))
        assert_same_state(state, expected)
        assert all(len(x.sharding.device_set) == 8 and x.sharding.is_fully_replicated for x in jax.tree.leaves(state))


def test_one_psum():
    state, mapped = sharded(True)
    text = str(jax.make_jaxpr(mapped)(drawn(0), state))
    assert text.count("psum") == text.count("psum_invariant[") == 1, text
    assert "all_gather" not in text


def test_a_shard_without_an_observation_counts_nothing():
    _, expected = one_process(True, missing=(2, 3))
    state, mapped = sharded(True)
    for step in range(5):
        losses = drawn(step)
        if step == 2:
            losses = {name: x.at[3].set(jnp.nan) for name, x in losses.items()}
        _, state = jax.jit(mapped)(losses, state)
    assert state["skipped"][...] == 1
    for name in ("total", "fix", "steps", "pending"):
        assert_same_bits(state[name][...], expected._state()[name][...])


def test_scan_of_micro_batches_inside():
    """Each device adds up its own; the carry is of the type that `pending` gets, which differs between devices."""
    balancer = EMANormalizedLossBalancer(NAMES, beta=0.5, lagged=True, axis_name="i")
    expected = EMANormalizedLossBalancer(NAMES, beta=0.5, lagged=True)
    graphdef, state = nnx.split(balancer)

    def body(state, losses):
        merged = nnx.merge(graphdef, state)
        aggregate = merged(losses)
        return nnx.state(merged), aggregate

    def run(losses, state):
        state["pending"] = jax.tree.map(lambda x: varying(x, "i"), state["pending"])
        state, aggregates = jax.lax.scan(body, state, losses)
        merged = nnx.merge(graphdef, state)
        merged.step()
        return aggregates, nnx.state(merged)

    losses = {name: jnp.concatenate([drawn(0)[name], drawn(1)[name]]) for name in NAMES}
    _, state = jax.jit(jax.shard_map(run, mesh=MESH, in_specs=(P("i"), P()), out_specs=(P("i"), P())))(losses, state)
    for i in range(16):
        expected({name: x[i] for name, x in losses.items()})
    expected.step()
    assert_same_state(state, expected)


def test_auto_step():
    """All devices step together; what is pending stays on each."""
    balancer = EMANormalizedLossBalancer(NAMES, beta=0.5, lagged=True, axis_name="i", auto_step=1)
    graphdef, state = nnx.split(balancer)
    specs = nnx.state(balancer)
    for name in specs:
        specs[name] = P("i") if name == "pending" else P()
    state["pending"] = jax.tree.map(lambda x: jnp.tile(x, 8), state["pending"])

    def call(losses, state):
        merged = nnx.merge(graphdef, state)
        return merged({name: x[0] for name, x in losses.items()})[None], nnx.state(merged)

    mapped = jax.jit(jax.shard_map(call, mesh=MESH, in_specs=(P("i"), specs), out_specs=(P("i"), specs)))
    for step in range(5):
        _, state = mapped(drawn(step), state)
    expected = EMANormalizedLossBalancer(NAMES, beta=0.5, lagged=True)
    for step in range(4):
        for i in range(8):
            expected({name: x[i] for name, x in drawn(step).items()})
        expected.step()
    for name in ("total", "fix", "steps", "skipped"):
        assert_same_bits(state[name][...], expected._state()[name][...])


def test_global_arrays_under_jit():
    """Nothing to do: the mean over the batch is over all devices."""
    balancer, expected = (EMANormalizedLossBalancer(NAMES, beta=0.5) for _ in range(2))
    compiled = nnx.jit(lambda balancer, batch: (balancer({n: x.mean() for n, x in batch.items()}), balancer.step())[0])
    for step in range(5):
        batch = drawn(step)
        placed = jax.device_put(batch, NamedSharding(MESH, P("i")))
        assert_same_bits(compiled(balancer, placed), expected({name: x.mean() for name, x in batch.items()}))
        expected.step()
    assert_same_state(nnx.state(balancer, BalancerState), expected)


if __name__ == "__main__":
    assert len(jax.devices()) == 8
    for name, test in list(globals().items()):
        if name.startswith("test_"):
            test()
            print(name)
