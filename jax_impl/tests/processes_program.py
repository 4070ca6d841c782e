"""Run by test_ranks.py in two processes: `jax.distributed` on CPU, by gloo. Arguments: the port, and which process this is."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from loss_balancers.jax import EMANormalizedLossBalancer
from loss_balancers.parity.bits import assert_same_bits

NAMES = ("MSELoss_0", "KLDivLoss_1", "student_loss")


def drawn(step):
    """A loss of each name in each process, in sixty-fourths: their sums and means are exact."""
    rng = np.random.default_rng(step)
    return {name: rng.integers(1, 256, 2).astype(np.float32) / 64 for name in NAMES}


def compare(state, expected):
    """The state is the same in both processes, and that of one process."""
    for name, variable in expected._state().items():
        (shard,) = state[name][...].addressable_shards
        assert_same_bits(np.asarray(shard.data), variable[...])


def main(port, process):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=process)
    assert (jax.process_count(), len(jax.devices()), len(jax.local_devices())) == (2, 2, 1)
    mesh = jax.make_mesh((2,), ("i",), axis_types=(AxisType.Auto,))

    def placed(array, spec):
        return jax.make_array_from_callback(array.shape, NamedSharding(mesh, spec), lambda index: np.asarray(array)[index])

    def run(balancer, step):
        graphdef, state = nnx.split(balancer)
        state = jax.tree.map(lambda x: placed(x, P()), state)
        compiled = jax.jit(lambda state, losses: step(graphdef, state, losses))
        for i in range(5):
            state = compiled(state, {name: placed(x, P("i")) for name, x in drawn(i).items()})
        return state

    def globally(graphdef, state, losses):
        merged = nnx.merge(graphdef, state)
        merged({name: x.mean() for name, x in losses.items()})
        merged.step()
        return nnx.state(merged)

    def by_device(graphdef, state, losses):
        def body(state, losses):
            merged = nnx.merge(graphdef, state)
            merged({name: x[0] for name, x in losses.items()})
            merged.step()
            return nnx.state(merged)

        return jax.shard_map(body, mesh=mesh, in_specs=(P(), P("i")), out_specs=P())(state, losses)

    for lagged in (False, True):
        expected = EMANormalizedLossBalancer(NAMES, beta=0.5, lagged=lagged)
        for i in range(5):
            expected({name: jnp.asarray(x).mean() for name, x in drawn(i).items()})
            expected.step()
        compare(run(EMANormalizedLossBalancer(NAMES, beta=0.5, lagged=lagged), globally), expected)
        compare(run(EMANormalizedLossBalancer(NAMES, beta=0.5, lagged=lagged, axis_name="i"), by_device), expected)
    print("same bits")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
