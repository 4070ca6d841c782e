"""What is audited: every balancer of the registry, on every target, by its examples and more."""

from loss_balancers import spec
from loss_balancers.audit import TARGETS, Dag, compare
from loss_balancers.audit.__main__ import every_case
from loss_balancers.audit.prescribed import left_out, reference
from loss_balancers.audit.prescribed.cases import ELEMENTARY, KINDS, all_cases, balancers
from loss_balancers.audit.prescribed.planted import planted_cases
from loss_balancers.spec import registry


def test_every_example_of_the_registry_is_audited_forward_and_gradient():
    cases = [*all_cases(), *planted_cases()]
    names = [case.name for case in cases]
    assert len(set(names)) == len(names) == len({case.slug for case in cases})
    wanted = {"div"} | {f"{each.balancer} {name}" for name, each in registry.examples().items()}
    wanted |= {f"StaticLossBalancer {form} K={count}" for form in ("one weight", "weights") for count in (1, 3, 12)}
    wanted |= {"LogitsAndIntermediatesLossBalancer K=4", "EMANormalizedLossBalancer K=2"}
    assert {f"{name} {kind}" for name in wanted for kind in ("forward", "gradient")} <= set(names)
    for case in cases:
        assert len(case.expected(Dag())) == case.results
        assert len(case.draws()) in {0, case.arguments + sum(case.vectors.values())}


def test_a_balancer_that_joins_the_registry_is_audited(monkeypatch):
    class Settings(spec.StaticLossBalancerSettings):
        balancer = "NewLossBalancer"

        @classmethod
        def examples(cls) -> dict[str, spec.StaticLossBalancerSettings]:
            return {"new": cls(0.25)}

    monkeypatch.setitem(registry.SETTINGS, "NewLossBalancer", Settings)
    cases = {case.name: case for case in all_cases()}
    settings, names = balancers()["NewLossBalancer new"]
    for kind in ("forward", "gradient"):
        prescribes = cases[f"NewLossBalancer new {kind}"].expected(Dag())
        assert compare(reference.balancer(Dag(), settings, names, kind == "gradient"), prescribes) == []


#: Balancers whose every case is left out for targets of a kind, by `left_out`: no scalar and no vector that its reader follows.
NOT_FOLLOWED = {
    "cpu": {"SoftAdaptLossBalancer"},
    "cuda": {"FAMOLossBalancer"},
    "cuda-torch": {
        "DWALossBalancer",
        "SoftAdaptLossBalancer",
        "GeometricLossBalancer",
        "RandomLossBalancer",
        "UncertaintyLossBalancer",
        "IMTLLossBalancer",
        "FAMOLossBalancer",
    },
    "tpu": {
        "DWALossBalancer",
        "SoftAdaptLossBalancer",
        "GeometricLossBalancer",
        "STCHLossBalancer",
        "RandomLossBalancer",
        "FAMOLossBalancer",
    },
}
#: And those of which the gradient alone is audited, or the forward.
ONE_KIND = {
    "cpu": {"GeometricLossBalancer", "STCHLossBalancer", "FAMOLossBalancer"},
    "cuda": {"STCHLossBalancer"},
    "cuda-torch": set(),
    "tpu": {"UncertaintyLossBalancer", "IMTLLossBalancer"},
}


def test_what_is_left_out_exists_and_what_is_followed_of_each_balancer_is_said_here(monkeypatch):
    monkeypatch.setattr(left_out, "_vectors_are_short", lambda: False)
    names, kinds = {case.name for case in every_case()}, {name.partition(":")[0] for name in TARGETS}
    assert set(left_out.LEFT_OUT) == kinds
    every = [*left_out.LEFT_OUT.values(), left_out.SHORT_VECTORS]
    assert {name for each in every for name in each} <= names
    assert all(reason for each in every for reason in each.values())
    for target in TARGETS.values():
        audited = {case.name for case in target.cases(every_case())}
        kind_of_target = target.name.partition(":")[0]
        for balancer in registry.SETTINGS:
            found = {kind for kind in KINDS if any(name.startswith(balancer) and name.endswith(kind) for name in audited)}
            missing = 2 if balancer in NOT_FOLLOWED[kind_of_target] else 1 if balancer in ONE_KIND[kind_of_target] else 0
            assert len(found) == 2 - missing, (target.name, balancer, found)
        assert {f"{name} {kind}" for name in ELEMENTARY for kind in KINDS} <= audited


def test_what_llvm_makes_a_loop_of_is_left_out_where_vectors_are_short(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_max_isa=SSE4_2")
    assert set(left_out.SHORT_VECTORS) <= set(TARGETS["cpu"].left_out)
    assert not set(left_out.SHORT_VECTORS) & set(TARGETS["tpu:v6e"].left_out) - set(left_out.LEFT_OUT["tpu"])
