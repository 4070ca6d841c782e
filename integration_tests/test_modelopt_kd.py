"""ModelOpt's distillation with our balancers: `mtd.convert`, training, evaluation, saving, and ModelOpt's own balancer."""

import copy
import pickle
import random
import warnings

import pytest
import torch
from in_torch import KINDS, Net, Rows, assert_same, batch, make, rows_of
from torch import nn
from torch.nn import functional as F

from loss_balancers import torch as ours
from loss_balancers.torch import EMANormalizedLossBalancer, LogitsAndIntermediatesLossBalancer, StaticLossBalancer

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "transformers .* is not tested with current version of modelopt")
    import modelopt.torch.distill as mtd
    import modelopt.torch.opt as mto
    import modelopt.torch.quantization as mtq

    from loss_balancers.torch.modelopt import as_modelopt

#: As ModelOpt names the losses of `CRITERION`.
NAMES = ("LogitsDistillationLoss_0", "MSELoss_1", "student_loss")
CRITERION = {("head", "head"): mtd.LogitsDistillationLoss(2.0, "batchmean"), ("hidden", "hidden"): nn.MSELoss()}
ALL = {kind: lambda kind=kind: make(kind, NAMES) for kind in KINDS} | {"intermediates": LogitsAndIntermediatesLossBalancer}


def converted(balancer, seed=0, prepare=lambda model: model):
    """A student, its initial weights from a seed, with a teacher that is always the same."""
    torch.manual_seed(1000)
    teacher = Net()
    torch.manual_seed(seed)
    config = {"teacher_model": teacher, "criterion": CRITERION, "loss_balancer": balancer}
    return mtd.convert(prepare(Net()), mode=[("kd_loss", config)])


def trained(model, optimizer, steps):
    """The total loss of each step, as ModelOpt's users train; and what the balancer says after each."""
    totals = {}
    for step in steps:
        x, labels = batch(step)
        total = model.compute_kd_loss(student_loss=F.cross_entropy(model(x), labels))
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        if isinstance(model.loss_balancer, ours.DistillationLossBalancer):
            model.loss_balancer.step()
        totals[str(step)] = total.detach()
    return totals


@pytest.mark.parametrize("name", ALL)
def test_it_is_a_balancer_of_modelopt_and_otherwise_what_it_was(name):
    balancer, plain = as_modelopt(ALL[name]()), ALL[name]()
    assert isinstance(balancer, mtd.DistillationLossBalancer)
    assert isinstance(balancer, type(plain))
    assert as_modelopt(balancer) is balancer
    assert repr(balancer) == repr(plain)
    assert list(balancer.state_dict()) == list(plain.state_dict())
    assert type(as_modelopt(ALL[name]())) is type(balancer)
    losses = dict(zip(NAMES, torch.tensor([0.3, 0.7, 1.1]).unbind(), strict=True))
    for _ in range(2):
        assert_same({"total": balancer(losses)}, {"total": plain(losses)})
        balancer.step()
        plain.step()
    assert_same(balancer.state_dict(), plain.state_dict())


@pytest.mark.parametrize("how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("name", ALL)
def test_a_copy_is_one_too_and_goes_on_by_itself(name, how):
    balancer = as_modelopt(ALL[name]())
    losses = dict(zip(NAMES, torch.tensor([0.3, 0.7, 1.1]).unbind(), strict=True))
    balancer(losses)
    balancer.step()
    copied = how(balancer)
    assert type(copied) is type(balancer)
    assert isinstance(copied, mtd.DistillationLossBalancer)
    assert_same(copied.state_dict(), balancer.state_dict())
    before = {name: x.clone() for name, x in balancer.state_dict().items()}
    copied(losses)
    copied.step()
    assert_same(balancer.state_dict(), before)


@pytest.mark.parametrize("name", ["ours", "ModelOpt's"])
def test_a_converted_model_is_copied_but_not_pickled(name, tmp_path):
    """With ModelOpt's own balancer it cannot be pickled either. If this fails, the page says less than is true."""
    model = converted(as_modelopt(ALL["ema"]()) if name == "ours" else mtd.StaticLossBalancer([0.5, 0.5]))
    assert type(copy.deepcopy(model).loss_balancer) is type(model.loss_balancer)
    with pytest.raises(pickle.PicklingError, match=r"modelopt\.torch\.opt\.dynamic"):
        torch.save(model, tmp_path / "model.pt")


def test_a_balancer_of_your_own():
    class Half(ours.DistillationLossBalancer):
        def forward(self, loss):
            losses = self.canonical(loss)
            return ours.functional.weighted_sum(list(losses.values()), [1 / len(losses)] * len(losses))

    model = converted(as_modelopt(Half()))
    trained(model, torch.optim.SGD(model.parameters(), lr=0.1), range(2))
    assert type(copy.deepcopy(model).loss_balancer) is type(model.loss_balancer)


@pytest.mark.parametrize("wrong", [None, 0.5, StaticLossBalancer, nn.Identity()], ids=["None", "number", "class", "module"])
def test_what_is_not_a_balancer_is_refused(wrong):
    with pytest.raises(
        TypeError, match=r"^`balancer` must be a balancer of `loss_balancers.torch`. Received .* Pass an instance, such as"
    ):
        as_modelopt(wrong)


@pytest.mark.parametrize("name", ALL)
def test_convert_train_and_export(name):
    with pytest.raises(ValueError, match="DistillationLossBalancer"):  # ModelOpt's own check, which no other library can reword
        converted(ALL[name]())
    balancer = as_modelopt(ALL[name]())
    model = converted(balancer)
    assert model.loss_balancer is balancer
    totals = trained(model, torch.optim.SGD(model.parameters(), lr=0.1), range(5))
    assert all(x.isfinite() for x in totals.values())
    if name != "static":
        assert balancer.steps == 5
    student = mtd.export(model)
    assert type(student) is Net
    assert list(student.state_dict()) == list(Net().state_dict())


def test_the_curve_of_a_static_balancer_is_modelopts_own_to_the_bit():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`StaticLossBalancer` weights do not sum to 1.0")
        theirs = mtd.StaticLossBalancer([0.3, 0.45])
    runs = []
    for balancer in (as_modelopt(StaticLossBalancer([0.3, 0.45])), theirs):
        model = converted(balancer)
        totals = trained(model, torch.optim.Adam(model.parameters(), lr=1e-2), range(200))
        runs.append(totals | dict(mtd.export(model).named_parameters()))
    assert len(runs[0]) == 204
    assert runs[0]["199"] < 0.8 * runs[0]["0"]  # it learned something
    assert_same(*runs)


class Columns(nn.Module):
    """A student whose losses are the rows of the batch: the first column is the student's, each other that of a layer."""

    def __init__(self):
        super().__init__()
        self.rows, self.first, self.second = Rows(), nn.Identity(), nn.Identity()

    def forward(self, rows):
        student, first, second = self.rows(rows).unbind(1)
        self.first(first), self.second(second)
        return student


class Zeros(Columns):
    """Its teacher, from which the distance is the value itself."""

    def forward(self, rows):
        return super().forward(rows * 0)


def with_exact_losses(balancer):
    """Student and teacher; ModelOpt names the losses L1Loss_0 and L1Loss_1."""
    criterion = {(name, name): nn.L1Loss(reduction="none") for name in ("first", "second")}
    return mtd.convert(Columns(), mode=[("kd_loss", {"teacher_model": Zeros(), "criterion": criterion, "loss_balancer": balancer})])


@pytest.mark.parametrize("amounts", ["means", "shares"])
def test_weights_do_not_depend_on_how_a_batch_is_accumulated(amounts, exact_losses, state_of):
    names = ("L1Loss_0", "L1Loss_1", "student_loss")
    seen = {}
    for parts in (1, 4, 16):
        balancer = as_modelopt(EMANormalizedLossBalancer(names, lagged=True))
        model = with_exact_losses(balancer)
        seen[parts] = []
        for step in range(6):
            whole = rows_of(exact_losses(16, step))
            for rows in whole.chunk(parts):
                output = model(rows)
                if amounts == "means":
                    total = model.compute_kd_loss(student_loss=output.mean(), loss_reduction_fn=torch.mean) / parts
                else:
                    losses = model.compute_kd_loss(
                        student_loss=output.sum() / 16, loss_reduction_fn=lambda x: x.sum() / 16, skip_balancer=True
                    )
                    total = balancer(losses, share=len(rows) / 16)
                total.backward()
            balancer.step()
            probe = {name: torch.ones(()) for name in names}
            seen[parts].append((state_of(balancer), {name: x.numpy().tobytes() for name, x in balancer.weights(probe).items()}))
    assert len({bytes(w["L1Loss_1"]) for _, w in seen[1]}) > 1  # weights that move
    assert seen[1] == seen[4] == seen[16]


def test_auto_step_commits_after_so_many_forwards(exact_losses, state_of):
    names = ("L1Loss_0", "L1Loss_1", "student_loss")
    by_itself, by_hand = (as_modelopt(EMANormalizedLossBalancer(names, lagged=True, auto_step=n)) for n in (4, None))
    models = [with_exact_losses(balancer) for balancer in (by_itself, by_hand)]
    for step in range(6):
        for rows in rows_of(exact_losses(16, step)).chunk(4):
            for model in models:
                model.compute_kd_loss(student_loss=model(rows).mean(), loss_reduction_fn=torch.mean).backward()
        by_hand.step()
    assert by_itself.steps == 5  # the sixth comes with the next forward
    by_itself.step()
    assert state_of(by_itself) == state_of(by_hand)


@pytest.mark.parametrize("kind", KINDS)
def test_validation_during_training_is_not_observed(kind, state_of):
    model = converted(as_modelopt(make(kind, NAMES)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trained(model, optimizer, range(3))
    x, labels = batch(3)
    model.compute_kd_loss(student_loss=F.cross_entropy(model(x), labels))  # something is pending
    before = state_of(model.loss_balancer)
    model.eval()
    for step in range(100, 105):
        x, labels = batch(step)
        model.compute_kd_loss(student_loss=F.cross_entropy(model(x), labels))
    model.train()
    assert state_of(model.loss_balancer) == before
    assert model.loss_balancer.training


def restored(file, balancer, prepare=lambda model: model):
    """What docs/hosts/modelopt_kd.md shows: ModelOpt's modes, then `mtd.convert`, then the weights and the balancer's state."""
    saved = torch.load(file)
    again = converted(balancer, seed=7, prepare=lambda model: mto.restore_from_modelopt_state(model, saved["modelopt_state"]))
    again.load_state_dict(saved["model_state_dict"])
    return again


def quantized(model):
    """A student that ModelOpt has quantized: distillation of such a one is a mode on top of another."""
    return mtq.quantize(model, mtq.INT8_DEFAULT_CFG, lambda model: model(batch(99)[0]))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("prepare", [lambda model: model, quantized], ids=["plain", "quantized"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_saved_and_restored_goes_on_to_the_bit(kind, prepare, tmp_path, state_of):
    stop = random.Random(f"{kind} of ModelOpt").randrange(1, 12)
    model = converted(as_modelopt(make(kind, NAMES)), prepare=prepare)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    trained(model, optimizer, range(stop))
    mto.save(model, tmp_path / "model.pt")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    totals = trained(model, optimizer, range(stop, 12))

    again = restored(tmp_path / "model.pt", as_modelopt(make(kind, NAMES)))
    optimizer = torch.optim.Adam(again.parameters(), lr=1e-2)
    optimizer.load_state_dict(torch.load(tmp_path / "optimizer.pt"))
    assert_same(trained(again, optimizer, range(stop, 12)), totals)
    assert_same(again.state_dict(), model.state_dict())
    probe = {name: torch.ones(()) for name in NAMES}
    assert_same(again.loss_balancer.weights(probe), model.loss_balancer.weights(probe))
    assert state_of(again.loss_balancer) == state_of(model.loss_balancer)
    student = mtd.export(again)
    assert not [name for name in student.state_dict() if "balancer" in name]


def test_restore_alone_has_no_place_for_the_state(tmp_path):
    """`mto.restore` leaves out the mode of distillation, so the student is a plain one, which has no balancer."""
    model = converted(as_modelopt(make("ema", NAMES)))
    mto.save(model, tmp_path / "model.pt")
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict: \"_loss_balancer.steps\""):
        mto.restore(Net(), tmp_path / "model.pt")
    mto.save(mtd.export(model), tmp_path / "student.pt")
    assert type(mto.restore(Net(), tmp_path / "student.pt")) is Net


#: Of the tests below, which hold the table on the page: what ModelOpt 0.47 does, and what we do.
LOSSES = {"student_loss": torch.tensor(1.0), "MSELoss_0": torch.tensor(2.0), "MSELoss_1": torch.tensor(4.0)}


def test_2488_weights_whose_sum_is_1():
    losses = LOSSES | {"MSELoss_2": torch.tensor(8.0)}
    with pytest.warns(UserWarning, match="do not sum to 1"):
        mtd.StaticLossBalancer([0.7, 0.2, 0.1])
    del losses["student_loss"]
    assert StaticLossBalancer([0.7, 0.2, 0.1])(losses).isclose(torch.tensor(3.0))  # a warning would be an error here
    with pytest.raises(TypeError):
        mtd.StaticLossBalancer({"MSELoss_0": 0.7, "student_loss": 0.3})
    named = StaticLossBalancer({"MSELoss_0": 0.7, "student_loss": 0.3})
    assert named({"MSELoss_0": torch.tensor(2.0), "student_loss": torch.tensor(1.0)}).isclose(torch.tensor(1.7))


def test_2488_a_warning_comes_where_a_weight_is_dropped():
    with pytest.warns(UserWarning, match="do not sum to 1"):
        theirs = mtd.StaticLossBalancer([0.25, 0.5])
    balancer, losses = StaticLossBalancer([0.25, 0.5]), dict(LOSSES)
    balancer(losses)
    del losses["student_loss"]
    theirs(losses)  # says nothing now
    with pytest.warns(UserWarning, match="student_loss"):
        balancer(losses)


def test_2343_an_int():
    with pytest.raises(TypeError, match="'int' object is not iterable"):
        mtd.StaticLossBalancer(1)
    assert StaticLossBalancer(1)({"MSELoss_0": torch.tensor(2.0)}) == 2.0


def test_2343_a_negative_weight():
    with pytest.warns(UserWarning, match="do not sum to 1"):
        mtd.StaticLossBalancer([-0.5, 1.0])
    with pytest.raises(ValueError, match=r"-0\.5"):
        StaticLossBalancer([-0.5, 1.0])


def test_1924_the_base_class():
    mtd.DistillationLossBalancer()  # is made, and fails at its first call
    with pytest.raises(TypeError, match="abstract"):
        ours.DistillationLossBalancer()


def test_639_a_loss_of_zero():
    losses = {"student_loss": torch.tensor(0.0), "LogitsDistillationLoss_0": torch.tensor(0.0), "MSELoss_1": torch.tensor(0.0)}
    assert LogitsAndIntermediatesLossBalancer()(losses) == 0.0


def test_712_the_labels_loss():
    model = converted(as_modelopt(StaticLossBalancer([0.25, 0.5])))
    x, labels = batch(0)
    losses = model.compute_kd_loss(student_loss=F.cross_entropy(model(x), labels), skip_balancer=True)
    parts = model.loss_balancer.breakdown(losses)
    assert parts["student_loss/weight"] == 0.25


def test_one_weight_for_several_kd_losses():
    with pytest.warns(UserWarning, match="do not sum to 1"):
        theirs = mtd.StaticLossBalancer(0.5)
    with pytest.raises(AssertionError):
        theirs(LOSSES)
    assert StaticLossBalancer(0.5)(LOSSES) == 3.5


def test_order_of_the_dict():
    with pytest.warns(UserWarning, match="do not sum to 1"):
        theirs = mtd.StaticLossBalancer([0.25, 0.5])
    reordered = {name: LOSSES[name] for name in sorted(LOSSES, reverse=True)}
    assert theirs(LOSSES) != theirs(reordered)
    balancer = StaticLossBalancer([0.25, 0.5])
    assert balancer(LOSSES) == balancer(reordered) == theirs(LOSSES)


def test_the_page_runs(run_page):
    run_page("modelopt_kd")


def test_the_example_runs(run_example):
    assert "of the labels" in run_example("modelopt_kd")
