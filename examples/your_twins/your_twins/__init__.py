"""A loss balancer of your own, in PyTorch and in JAX."""
