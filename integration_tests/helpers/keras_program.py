"""Runs Keras with one backend, and writes what it computed as arrays: `test_keras.py` compares backends with these.

A process of its own, since Keras has one backend a process. Every function below whose name is an argument makes arrays by name.
"""

import doctest
import os
import re
import sys
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = sys.argv[1]

import keras
import numpy as np

import loss_balancers.keras.balancer
from loss_balancers.keras import Balancer
from loss_balancers.spec import (
    EMANormalizedLossBalancerSettings,
    IMTLLossBalancerSettings,
    ScheduledLossBalancerSettings,
    StaticLossBalancerSettings,
    UncertaintyLossBalancerSettings,
)
from loss_balancers.spec.keys import EXAMPLE_NAMES
from loss_balancers.spec.registry import examples
from loss_balancers.spec.schedules import linear

NAMES = ("student_loss", "MSELoss_0", "KLDivLoss_1")
SETTINGS = {
    "static": StaticLossBalancerSettings({"MSELoss_0": 0.3, "KLDivLoss_1": 0.45}),
    "scheduled": ScheduledLossBalancerSettings({"MSELoss_0": linear(0.1, 0.4, 20), "KLDivLoss_1": linear(0.5, 0.2, 20)}),
    "ema": EMANormalizedLossBalancerSettings(NAMES, beta=0.9),
    "ema-lagged": EMANormalizedLossBalancerSettings(NAMES, lagged=True),
}


def arrays(prefix: str, tensors: Any) -> dict[str, np.ndarray]:
    """Tensors of the backend by name, as NumPy has them."""
    return {f"{prefix}/{name}": keras.ops.convert_to_numpy(x).copy() for name, x in tensors.items()}


def state(prefix: str, layer: Balancer) -> dict[str, np.ndarray]:
    """The layer's weights, by the names that Keras shows."""
    return arrays(prefix, {variable.name: variable.value for variable in layer.weights})


class Model(keras.Model):
    """A model whose losses are columns of its data, so that sums of them are exact; a small part trains a parameter."""

    def __init__(self, settings: Any, auto_step: int | None = 1, form: str = "mean", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.form = form
        self.dense = keras.layers.Dense(3, kernel_initializer="ones")
        self.balancer = settings if isinstance(settings, Balancer) else Balancer(settings, auto_step=auto_step)

    def call(self, x: Any) -> Any:
        return self.dense(x)

    def compute_loss(self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True):
        given = {"mean": {}, "count": {"count": x.shape[0]}, "share": {"share": x.shape[0] / 16}}[self.form]
        reduced = keras.ops.sum(x, axis=0) / (16 if self.form == "share" else x.shape[0])
        losses = {name: reduced[i] for i, name in enumerate(NAMES)}
        return self.balancer(losses, training=training, **given) + keras.ops.mean(keras.ops.square(y_pred - y))

    def get_config(self) -> dict[str, Any]:
        return {"settings": keras.saving.serialize_keras_object(self.balancer), "form": self.form}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Model":
        return cls(keras.saving.deserialize_keras_object(config["settings"]), form=config["form"])


def data(items: int) -> tuple[np.ndarray, np.ndarray]:
    """Items whose losses are small multiples of 1/64: no sum of them is rounded."""
    rng = np.random.default_rng(items)
    x = np.stack([rng.integers(1, 64 << 3 * i, items) / 64 for i in range(len(NAMES))], axis=1).astype("float32")
    return x, (x[:, :1] / 4).astype("float32")


def fitted(model: Model, items: int, batch: int, accumulated: int | None = None, **fit: Any) -> Model:
    """The model after an epoch over `items` items, in order."""
    keras.utils.set_random_seed(0)
    model.compile(keras.optimizers.SGD(1e-6, gradient_accumulation_steps=accumulated))
    model.fit(*data(items), batch_size=batch, shuffle=False, verbose=0, **fit)
    return model


def calls() -> dict[str, np.ndarray]:
    """Every balancer of the registry: aggregates, weights and state over calls of all kinds."""
    found = {}
    rng = np.random.default_rng(0)
    rows = rng.lognormal(0, 3, (12, 3)).astype("float32")
    for key, settings in examples().items():
        layer = Balancer(settings, auto_step=None)
        for i, row in enumerate(rows):
            losses = {name: keras.ops.convert_to_tensor(x) for name, x in zip(EXAMPLE_NAMES, row, strict=True)}
            given = [{}, {"count": 4}, {"count": {name: j for j, name in enumerate(losses)}}][i % 3]
            found |= arrays(f"{key}/{i}", {"aggregate": layer(losses, training=i % 4 != 3, **given)})
            found |= arrays(f"{key}/{i}/weights", layer.loss_weights(losses))
            found |= arrays(f"{key}/{i}/breakdown", layer.breakdown(losses))
            layer.observe(losses)
            layer.discard() if i == 7 else None
            layer.step() if i % 2 else None
            found |= state(f"{key}/{i}/state", layer)
    return found


def accumulated() -> dict[str, np.ndarray]:
    """State and weights after 5 optimizer steps of 16 items: whole, as 4×4 and as 16×1; with means, counts, shares."""
    found = {}
    for form in ("mean", "count", "share"):
        for parts in (1, 4, 16):
            model = fitted(Model(SETTINGS["ema-lagged"], parts, form), 80, 16 // parts, parts if parts > 1 else None)
            model.balancer.step()  # what fit would commit in the next call
            found |= state(f"{form}/{parts}", model.balancer)
            found |= arrays(f"{form}/{parts}", model.balancer.loss_weights(dict.fromkeys(NAMES, keras.ops.ones(()))))
    return found


def validated() -> dict[str, np.ndarray]:
    """State without validation; with validation in ``fit``; and after ``evaluate`` and ``predict``."""
    x, y = data(40)
    found = {}
    for key, settings in SETTINGS.items():
        found |= state(f"{key}/without", fitted(Model(settings), 48, 8, epochs=2).balancer)
        model = fitted(Model(settings), 48, 8, epochs=2, validation_data=(x, y))
        found |= state(f"{key}/with", model.balancer)
        model.evaluate(x, y, verbose=0)
        model.predict(x, verbose=0)
        model.test_on_batch(x, y)
        found |= state(f"{key}/evaluated", model.balancer)
    return found


def resumed() -> dict[str, np.ndarray]:
    """A run of 12 batches, and one that is read from the checkpoint of a batch: all variables, and the losses that follow."""
    found = {}
    x, y = data(96)
    folder = Path(sys.argv[2]).parent
    for i, (key, settings) in enumerate(SETTINGS.items()):
        at = int(np.random.default_rng(i).integers(2, 11))
        file = f"{folder}/{key}-{{batch:02d}}.keras"
        saving = keras.callbacks.ModelCheckpoint(file, save_freq=at)
        whole = Model(settings, 2)
        whole.compile(keras.optimizers.Adam(1e-3, gradient_accumulation_steps=2))
        logs = Losses()
        whole.fit(x, y, batch_size=8, shuffle=False, verbose=0, callbacks=[saving, logs])
        again: Any = keras.models.load_model(file.format(batch=at), custom_objects={"Model": Model})
        found |= state(f"{key}/read", again.balancer)
        more = Losses()
        again.fit(x[8 * at :], y[8 * at :], batch_size=8, shuffle=False, verbose=0, callbacks=[more])
        for name, model, seen in (("whole", whole, logs.seen[at:]), ("again", again, more.seen)):
            found[f"{key}/{name}/losses"] = np.array(seen)
            found |= state(f"{key}/{name}/state", model.balancer)
            found |= arrays(f"{key}/{name}/dense", dict(enumerate(v.value for v in model.dense.weights)))
            found |= arrays(f"{key}/{name}/optimizer", dict(enumerate(v.value for v in model.optimizer.variables)))
    return found


class Losses(keras.callbacks.Callback):
    """The loss of each batch: Keras' own log is the mean since the epoch began."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.model.reset_metrics()
        del batch, logs

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seen.append(float(logs["loss"]))


def policies() -> dict[str, np.ndarray]:
    """State and aggregates under a policy of mixed dtypes: nothing of the balancer is cast."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        layer = Balancer(SETTINGS["ema"])
        for x in (1.1, 2.3, 3.7):
            losses = {name: keras.ops.convert_to_tensor(np.float32(x * i)) for i, name in enumerate(NAMES, 1)}
            aggregate = layer(losses, training=True)
        model = fitted(Model(SETTINGS["ema-lagged"]), 32, 8)
    finally:
        keras.config.set_dtype_policy("float32")
    return {**arrays("call", {"aggregate": aggregate}), **state("state", layer), **state("fitted", model.balancer)}


def built() -> dict[str, np.ndarray]:
    """A model of symbolic tensors that ends in a balancer, which learns from the model whether it trains."""
    inputs = {name: keras.Input((), name=name) for name in NAMES}
    sums = {name: keras.layers.Lambda(keras.ops.sum, output_shape=())(x) for name, x in inputs.items()}
    model = keras.Model(inputs, Balancer(SETTINGS["ema-lagged"], name="balancer")(sums))
    x = {name: np.float32([i + 1, 2]) for i, name in enumerate(NAMES)}
    totals = [model(x, training=training) for training in (True, False, True, True, False)]
    return {**arrays("totals", dict(enumerate(totals))), **state("state", model.get_layer("balancer"))}


def scoped() -> dict[str, np.ndarray]:
    """``step()`` and a call in a `StatelessScope`: the scope changes, the variables do not."""
    layer = Balancer(SETTINGS["ema-lagged"], auto_step=None)
    losses = {name: keras.ops.convert_to_tensor(np.float32(i)) for i, name in enumerate(NAMES, 1)}
    begin = [keras.ops.convert_to_tensor(keras.ops.convert_to_numpy(v.value).copy()) for v in layer.weights]
    with keras.StatelessScope(state_mapping=list(zip(layer.weights, begin, strict=True))) as scope:
        layer(losses, training=True)
        layer.step()
    inside = {v.name: scope.get_current_value(v) for v in layer.weights}
    given = {v.name: x for v, x in zip(layer.weights, begin, strict=True)}
    return {**arrays("inside", inside), **arrays("given", given), **state("outside", layer)}


def distilled() -> dict[str, np.ndarray]:
    """200 steps of Keras' own `Distiller`, weighed by itself and by a balancer: the losses, and the student."""
    found = {}
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(800, 6)).astype("float32"), rng.integers(0, 4, 800)
    for student_weight, eagerly in ((0.5, False), (0.3, True)):
        for name in ("own", "balancer"):
            keras.utils.set_random_seed(0)
            teacher, student = (keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="out")]) for _ in range(2))
            parts = [keras.distillation.LogitsDistillation(temperature=t) for t in (1.0, 3.0)]
            kind = Weighed if name == "balancer" else keras.distillation.Distiller
            model = kind(teacher, student, parts, student_loss_weight=student_weight)
            model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=eagerly)
            logs = Losses()
            model.fit(x, y, batch_size=4, shuffle=False, verbose=0, callbacks=[logs])
            found[f"{student_weight}/{name}/losses"] = np.array(logs.seen)
            found |= arrays(f"{student_weight}/{name}", {v.name: v.value for v in student.variables})
    return found


class Weighed(keras.distillation.Distiller):
    """Keras' distiller with the weights of a balancer: a number weighs the sum of all KD losses, as the distiller does."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.balancer = Balancer(StaticLossBalancerSettings(1 - self.student_loss_weight))

    def compute_loss(self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True):
        losses = {"student_loss": self._student_loss(y, y_pred)}  # in the distiller's order, in which gradients are added
        answer = self.teacher(x, training=False)
        losses |= {f"Logits_{i}": part.compute_loss(answer, y_pred) for i, part in enumerate(self.distillation_losses)}
        return self.balancer(losses, training=training)


def refused() -> dict[str, np.ndarray]:
    """What is an error, in words."""
    losses = {name: keras.ops.ones(()) for name in NAMES}
    found = {}
    for key, wrong in {
        "training": lambda: Balancer(SETTINGS["ema"])(losses),
        "settings": lambda: Balancer(0.5),  # type: ignore[reportArgumentType]
        "auto_step": lambda: Balancer(SETTINGS["ema"], auto_step=0),
        "names": lambda: Balancer(SETTINGS["ema"])({"student_loss": keras.ops.ones(())}, training=True),
        "export": lambda: Balancer(SETTINGS["static"]).export_state(),
    }.items():
        try:
            wrong()
        except (TypeError, ValueError) as error:
            found[key] = np.array(f"{type(error).__name__}: {error}")
    return found


def moved() -> dict[str, np.ndarray]:
    """An exported state goes into another layer."""
    there = fitted(Model(SETTINGS["ema"]), 32, 8).balancer
    here = Balancer(SETTINGS["ema"])
    here.load_state(there.export_state())
    return {**state("there", there), **state("here", here)}


def learned() -> dict[str, np.ndarray]:
    """Parameters after a fit by plain descent, by a power of two, and what a file of the model has of them."""
    found = {}
    for settings in (UncertaintyLossBalancerSettings(NAMES), IMTLLossBalancerSettings(NAMES, -2.0, "one")):
        model, key = Model(settings), settings.parameter
        model.dense.trainable = False
        assert [variable.name for variable in model.trainable_variables] == [key]
        model.compile(keras.optimizers.SGD(2.0**-6))
        model.fit(*data(96), batch_size=8, shuffle=False, verbose=0, validation_data=data(40))
        model.save(file := f"{Path(sys.argv[2]).parent}/{key}.keras")
        back = keras.saving.load_model(file, custom_objects={"Model": Model})
        found |= {**state(f"{key}/fitted", model.balancer), **state(f"{key}/saved", back.balancer)}
        back.balancer.load_state(model.balancer.export_state())
        found |= state(f"{key}/loaded", back.balancer)
    return found


def recomputed() -> dict[str, np.ndarray]:
    """Training calls that a backward repeats, and some that none repeats: on the torch backend, which writes state in both."""
    found = {}
    for name, call in (("repeated", keras.remat), ("plain", lambda function: function)):
        layer = Balancer(SETTINGS["ema"])
        for i in range(1, 4):
            x = keras.ops.convert_to_tensor(np.float32(i)).requires_grad_()

            def total(x: Any, layer: Balancer = layer) -> Any:  # squares and a product: the backward needs what the call gave
                return x * layer({name: x * x * j for j, name in enumerate(NAMES, 1)}, training=True)

            call(total)(x).backward()
            found |= {f"{name}/{i}": keras.ops.convert_to_numpy(x.grad).copy()}
        found |= state(f"{name}/state", layer)
    return found


def examples_of_docstrings() -> dict[str, np.ndarray]:
    """Runs the examples in the docstrings."""
    failed, tried = doctest.testmod(loss_balancers.keras.balancer)
    assert not failed
    return {"tried": np.array(tried)}


def page() -> dict[str, np.ndarray]:
    """Runs the Python blocks of the page, each by itself."""
    text = (Path(__file__).parents[2] / "docs/hosts/keras_distill.md").read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    for block in blocks:
        exec(compile(block, "<docs/hosts/keras_distill.md>", "exec"), {"__name__": "__document__"})
    return {"blocks": np.array(len(blocks))}


if __name__ == "__main__":
    made = {f"{name}/{key}": x for name in sys.argv[3:] for key, x in globals()[name]().items()}
    np.savez(sys.argv[2], **made)
