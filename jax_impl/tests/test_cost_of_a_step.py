"""A jitted step moves nothing between host and device, and is one scalar operation a term."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from loss_balancers.jax import StaticLossBalancer
from loss_balancers.jax.functional import weighted_sum

FORMS = {"number": 0.3, "sequence-2": [0.1, 0.2], "sequence-12": [0.05] * 12}
STACKED = ("concatenate", "stack", "dot_general", "gather", "scatter", "dynamic_slice", "dynamic_update_slice")


def example(given, dtype=jnp.float32):
    count = len(given) if isinstance(given, list) else 3
    return {name: jnp.asarray(1.0, dtype) for name in [f"M_{i}" for i in range(count)] + ["student_loss"]}


@pytest.mark.parametrize("given", FORMS.values(), ids=FORMS)
def test_no_transfer(given):
    balancer = StaticLossBalancer(given)
    compiled = jax.jit(jax.value_and_grad(balancer))
    losses = example(given)
    compiled(losses)
    with jax.transfer_guard("disallow"):
        compiled(losses)


def test_the_guard_can_see():
    compiled = jax.jit(jnp.add)
    compiled(jnp.float32(1.0), jnp.float32(1.0))
    with jax.transfer_guard("disallow"), pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        compiled(np.float32(1.0), np.float32(1.0))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16], ids=["f32", "bf16", "f16"])
@pytest.mark.parametrize("given", FORMS.values(), ids=FORMS)
def test_one_scalar_operation_a_term(given, dtype):
    losses = example(given, dtype)
    text = jax.jit(StaticLossBalancer(given)).lower(losses).as_text()
    assert [word for word in STACKED if word in text] == []
    assert not re.search(r"tensor<\d", text)  # scalars all the way


def test_as_many_multiplications_and_additions_as_terms():
    text = jax.jit(lambda terms: weighted_sum(terms, [0.1] * 5)).lower([jnp.float32(1.0)] * 5).as_text()
    assert text.count("stablehlo.multiply") == 5
    assert text.count("stablehlo.add") == 4


def test_the_search_can_see():
    text = jax.jit(lambda terms: jnp.stack(terms).sum()).lower([jnp.float32(1.0)] * 5).as_text()
    assert "concatenate" in text
    assert re.search(r"tensor<\d", text)
