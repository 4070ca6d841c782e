"""A LoRA student learns a made-up language from a teacher, in Tunix, with gradients accumulated over two batches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.distillation import strategies
from tunix.distillation.distillation_trainer import TrainingConfig, TrainingInput

from loss_balancers.jax import EMANormalizedLossBalancer  # balancer
from loss_balancers.jax.tunix import BalancedTrainer  # balancer

WORDS = 32


class Model(nnx.Module):
    """Guesses the next word from the last one."""

    def __init__(self, width: int, seed: int, lora_rank: int = 0):
        rngs = nnx.Rngs(seed)
        self.embed = nnx.Embed(WORDS, width, rngs=rngs)
        last = nnx.Linear(width, WORDS, rngs=rngs)
        self.head = nnx.LoRA(width, lora_rank, WORDS, base_module=last, rngs=rngs) if lora_rank else last

    def __call__(self, x):
        return self.head(self.embed(x))


def forward(model, input_tokens, input_mask):
    del input_mask
    return model(input_tokens[:, :-1])


def labels(input_tokens, input_mask):
    del input_mask
    return jax.nn.one_hot(input_tokens[:, 1:], WORDS)


def batches(count: int) -> list[TrainingInput]:
    """Sentences in which a word is mostly followed by the next one but two."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        x = (rng.integers(0, WORDS, (8, 1)) + 3 * np.arange(12) + (rng.random((8, 12)) < 0.1)) % WORDS
        found.append(TrainingInput(input_tokens=x, input_mask=np.ones_like(x, bool)))
    return found


def taught(model: Model) -> Model:
    """A teacher, trained on the labels alone."""
    optimizer = nnx.Optimizer(model, optax.adam(0.05), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x):
        def loss(model):
            return optax.softmax_cross_entropy(forward(model, x, None), labels(x, None)).mean()

        optimizer.update(model, nnx.grad(loss)(model))

    for batch in batches(60):
        step(model, optimizer, jnp.asarray(batch.input_tokens))
    return model


def main() -> None:
    teacher, student = taught(Model(32, 0)), Model(8, 1, lora_rank=4)
    strategy = strategies.LogitStrategy(forward, forward, labels)
    config = TrainingConfig(eval_every_n_steps=50, max_steps=100, gradient_accumulation_steps=2)
    balancer = EMANormalizedLossBalancer(("student_loss", "KLDivLoss_0"), lagged=True, auto_step=2)  # balancer
    trainer = BalancedTrainer(student, teacher, strategy, optax.adam(0.05), config, balancer=balancer)  # balancer
    trainer.train(batches(200), batches(4))

    x = jnp.asarray(batches(1)[0].input_tokens)
    for name, model in (("teacher", teacher), ("student", student)):
        right = (forward(model, x, None).argmax(-1) == x[:, 1:]).mean()
        print(f"{name}: {float(right):.1%} of the next words guessed")
    print({name: np.asarray(entry).tolist() for name, entry in balancer.export_state()["state"].items()})  # balancer


if __name__ == "__main__":
    main()
