"""A small network for handwritten digits learns from a larger one, in Keras 3: one script for the backends "torch" and "jax"."""

import os

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
from sklearn.datasets import load_digits

from loss_balancers.keras import Balancer  # balancer
from loss_balancers.spec import EMANormalizedLossBalancerSettings  # balancer

TEMPERATURE = 4.0


def network(width: int) -> keras.Model:
    """A classifier of 8×8 images with one hidden layer."""
    return keras.Sequential([keras.Input((64,)), keras.layers.Dense(width, "relu"), keras.layers.Dense(10)])


class Distilled(keras.Model):
    """A student whose loss has two parts: the labels, and the teacher's softened answers."""

    def __init__(self, student: keras.Model, teacher: keras.Model, **kwargs):
        super().__init__(**kwargs)
        self.student, self.teacher = student, teacher
        teacher.trainable = False
        settings = EMANormalizedLossBalancerSettings(("student_loss", "KLDivLoss_0"), lagged=True)  # balancer
        self.balancer = Balancer(settings, auto_step=2)  # balancer

    def call(self, x, training=None):
        return self.student(x, training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        soft = [keras.ops.softmax(logits / TEMPERATURE) for logits in (self.teacher(x, training=False), y_pred)]
        kd = keras.ops.mean(keras.losses.kl_divergence(*soft)) * TEMPERATURE**2
        losses = {"student_loss": super().compute_loss(x, y, y_pred, sample_weight), "KLDivLoss_0": kd}
        return self.balancer(losses, training=training)  # balancer


def main() -> None:
    """Trains a teacher, then distils a student, with gradients accumulated over two batches."""
    keras.utils.set_random_seed(0)
    digits = load_digits()
    x, y = (digits.data / 16).astype("float32"), digits.target
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    teacher = network(256)
    teacher.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    teacher.fit(x[:1500], y[:1500], batch_size=100, epochs=4, verbose=0)

    model = Distilled(network(16), teacher)
    model.compile(keras.optimizers.Adam(0.01, gradient_accumulation_steps=2), loss, metrics=["accuracy"])
    model.fit(x[:1500], y[:1500], batch_size=50, epochs=4, validation_data=(x[1500:], y[1500:]), verbose=0)
    accuracies = [each.evaluate(x[1500:], y[1500:], verbose=0)[1] for each in (teacher, model)]
    print(f"{keras.backend.backend()}: teacher {accuracies[0]:.1%}, student {accuracies[1]:.1%}")
    print({entry.name: keras.ops.convert_to_numpy(entry).tolist() for entry in model.balancer.weights})  # balancer


if __name__ == "__main__":
    main()
