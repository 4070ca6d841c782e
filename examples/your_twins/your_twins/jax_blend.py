"""Our balancer in JAX."""

from loss_balancers.jax import STUDENT_LOSS_KEY, DistillationLossBalancer, functional

KD_WEIGHT = 0.3


class Blend(DistillationLossBalancer):
    """0.3 of the mean KD loss, 0.7 of the student loss."""

    def __call__(self, loss):
        losses = self.canonical(loss)
        kd = KD_WEIGHT / (len(losses) - 1)
        weights = [0.7 if name == STUDENT_LOSS_KEY else kd for name in losses]
        return functional.weighted_sum(list(losses.values()), weights)
