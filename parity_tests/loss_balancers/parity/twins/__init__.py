"""Other people's twins: a PyTorch balancer and a JAX balancer that must give the same bits."""
