"""The twins have the same names, signatures, defaults, attributes, files and documentation."""

import inspect
import re
from dataclasses import MISSING, fields
from pathlib import Path

import jax.numpy as jnp
import pytest
import torch
from runs import BALANCERS, as_bytes, drawn, make, state_of, step

import loss_balancers.jax
import loss_balancers.torch
from loss_balancers.spec.reference import run
from loss_balancers.spec.registry import SETTINGS

ROOT = Path(__file__).parents[2]
CLASSES = [name for name in loss_balancers.torch.__all__ if name.endswith("LossBalancer")]
#: The ranks that state is shared over: each framework's own way.
RANKS = {"process_group": "ranks", "axis_name": "ranks"}
#: What `nn.Module` calls differently, or has beside.
TORCH_ONLY = {"forward", "extra_repr"}
#: Of NNX: what `nnx.view` calls.
JAX_ONLY = {"set_view"}


def test_same_public_names() -> None:
    assert loss_balancers.torch.__all__ == loss_balancers.jax.__all__
    for module in (loss_balancers.torch, loss_balancers.jax):
        assert all(hasattr(module, name) for name in module.__all__)


def _parameters(fn) -> list[tuple[str, object, object]]:
    return [(RANKS.get(p.name, p.name), p.kind, p.default) for p in inspect.signature(fn).parameters.values()]


def test_same_signature_and_defaults_of_the_function() -> None:
    ours, theirs = loss_balancers.torch.functional.weighted_sum, loss_balancers.jax.functional.weighted_sum
    assert _parameters(ours) == _parameters(theirs)


@pytest.mark.parametrize("name", CLASSES)
def test_same_methods_signatures_and_defaults(name: str) -> None:
    ours, theirs = getattr(loss_balancers.torch, name), getattr(loss_balancers.jax, name)
    public = lambda cls: {m for c in cls.__mro__ if c.__module__.startswith("loss_balancers") for m in vars(c) if m[0] != "_"}  # noqa: E731
    assert public(ours) - TORCH_ONLY == public(theirs) - JAX_ONLY
    for method in (public(ours) & public(theirs)) | {"__init__"}:
        if callable(getattr(ours, method)):
            assert _parameters(getattr(ours, method)) == _parameters(getattr(theirs, method))
    assert _parameters(ours.forward) == _parameters(theirs.__call__)


def test_functional_forms_have_the_same_methods_in_the_same_order() -> None:
    ours, theirs = (module.functional_form(module.StaticLossBalancer()) for module in (loss_balancers.torch, loss_balancers.jax))
    methods = [name for name in vars(type(ours)) if name[0] != "_"]
    assert methods == [name for name in vars(type(theirs)) if name[0] != "_"]
    for method in methods:
        assert _parameters(getattr(ours, method)) == _parameters(getattr(theirs, method))
        texts = [inspect.getdoc(getattr(form, method)) or "" for form in (ours, theirs)]
        assert texts[0].replace("tensors", "arrays").removesuffix("\n\nIt is on the device of the balancer.") == texts[1] != ""


def test_every_balancer_has_settings_and_the_arguments_of_its_settings() -> None:
    assert sorted({"DistillationLossBalancer", *SETTINGS}) == sorted(CLASSES)
    for name, settings in SETTINGS.items():
        own = [
            p for p in inspect.signature(getattr(loss_balancers.torch, name)).parameters.values() if p.kind is not p.KEYWORD_ONLY
        ]
        assert [(p.name, p.default) for p in own] == [
            (field.name, p.empty if field.default is MISSING else field.default)
            for field in fields(settings)
            if field.init
            for p in own[:1]
        ]


@pytest.mark.parametrize("name", CLASSES)
def test_docstrings_say_the_same(name: str) -> None:
    """Word for word, apart from the frameworks' own words and the examples."""
    texts = []
    for module in (loss_balancers.torch, loss_balancers.jax):
        text = inspect.getdoc(getattr(module, name)) or ""
        text = re.sub(r"(process_group|axis_name): .*(\n {8}.*)*", "ranks", text)
        text = re.sub(r"(?s)Example:\n.*?(?=\n\w+:\n|\Z)", "", text)
        texts.append(re.sub(r"(?s)State:\n.*?(?=\n\w+:\n|\Z)", "", text).replace("__call__", "forward"))
    assert texts[0] == texts[1]
    assert len(texts[0]) > 200


def test_same_attributes() -> None:
    for given in (0.25, [0.5, 0.25], (0.5, 0.25), {"KL": 0.5, "student_loss": 0.5}):
        ours, theirs = loss_balancers.torch.StaticLossBalancer(given), loss_balancers.jax.StaticLossBalancer(given)
        assert ours.kd_loss_weight == theirs.kd_loss_weight == given
        assert type(ours.kd_loss_weight) is type(theirs.kd_loss_weight) is type(given)
        assert ours.student_loss_weight == theirs.student_loss_weight
        assert repr(ours) == repr(theirs)


def test_same_weights_in_canonical_order() -> None:
    names = ["MSELoss_0", "KLDivLoss_1", "MSELoss_10", "student_loss", "MSELoss_2"]
    ours = loss_balancers.torch.StaticLossBalancer([0.1, 0.2, 0.3, 0.15]).weights({name: torch.tensor(1.0) for name in names})
    theirs = loss_balancers.jax.StaticLossBalancer([0.1, 0.2, 0.3, 0.15]).weights({name: jnp.float32(1.0) for name in names})
    assert list(ours) == ["MSELoss_0", "KLDivLoss_1", "MSELoss_2", "MSELoss_10", "student_loss"]
    assert list(ours.items()) == list(theirs.items())


@pytest.mark.parametrize("name", BALANCERS)
def test_same_answers_beside_the_aggregate(name: str) -> None:
    """Weights and the breakdown, by the same names in the same order, to the bit, before and after a commit; repr and names."""
    ours, theirs = (make(framework, BALANCERS[name]) for framework in ("torch", "jax"))
    assert repr(ours) == repr(theirs)
    assert ours.names == theirs.names == BALANCERS[name].names
    for row in drawn(4):
        losses = {k: torch.from_numpy(x) for k, x in row.items()}, {k: jnp.asarray(x) for k, x in row.items()}
        before = state_of(ours)
        for method in ("weights", "breakdown"):
            mine, other = getattr(ours, method)(losses[0]), getattr(theirs, method)(losses[1])
            assert [(k, as_bytes(x)) for k, x in mine.items()] == [(k, as_bytes(x)) for k, x in other.items()]
        assert state_of(ours) == before  # neither is an observation
        for balancer, given in zip((ours, theirs), losses, strict=True):
            balancer.observe(given)
            step(balancer)
        assert state_of(ours) == state_of(theirs)


def test_each_file_has_its_twin() -> None:
    files = {part: {f.name for f in (ROOT / f"{part}_impl/loss_balancers/{part}").glob("*.py")} for part in ("torch", "jax")}
    # torch spells out how a function is differentiated in compiled code (transforms.py); keeps the host's work from Dynamo
    # (host.py) and from an eager call like the last one (again.py), and weights until state changes (known.py); tells a forward
    # from its repetition (recomputation.py), and minds who wraps it (wrapped.py).
    beside = {"again.py", "host.py", "known.py", "recomputation.py", "transforms.py", "wrapped.py"}
    # Adapters, each for a library that one framework alone has.
    beside |= {"modelopt.py", "transformers.py"}
    assert files["torch"] - files["jax"] == beside
    # JAX lowers its sums of scalars itself (scalars.py); and a host that it alone has.
    assert files["jax"] - files["torch"] == {"scalars.py", "tunix.py"}


@pytest.mark.parametrize("scale", [1e-40, 2.0**-127, 2.0**-126, 2.0**-125], ids=float.hex)
def test_a_scale_that_is_no_normal_number_is_zero(scale: float) -> None:
    """Of a ratio of 1e30 too, by which it would be lifted out of the range that a product flushes (spec A3)."""
    row = {"student_loss": 1.0, "LogitsKLLoss_0": 2.0**-100}
    settings = SETTINGS["LogitsAndIntermediatesLossBalancer"](scale)
    (answer,) = run(settings, [({name: ("f32", x) for name, x in row.items()}, 1.0)])
    for module, array in ((loss_balancers.torch, torch.tensor), (loss_balancers.jax, jnp.float32)):
        balancer = module.LogitsAndIntermediatesLossBalancer(scale)
        losses = {name: array(x) for name, x in row.items()}
        assert {name: float(x) for name, x in balancer.weights(losses).items()} == answer.weights
        assert float(balancer(losses)) == answer.aggregate
    assert (answer.weights["LogitsKLLoss_0"] == 0) == (scale <= 2.0**-126)
