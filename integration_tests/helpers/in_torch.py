"""What the tests of hosts in PyTorch share: three kinds of balancers, a student whose losses are data, and bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loss_balancers.parity.bits import assert_same_bits
from loss_balancers.spec import schedules
from loss_balancers.torch import EMANormalizedLossBalancer, ScheduledLossBalancer, StaticLossBalancer

#: The losses of `Pair`.
TAUGHT = ("KLDivLoss_0", "MSELoss_1", "student_loss")
#: Of each kind: no state, counters alone, running means.
KINDS = ("static", "scheduled", "ema")


def make(kind: str, names: tuple[str, ...], **options: Any) -> Any:
    """A balancer of a kind for two KD losses and the student's."""
    if kind == "static":
        return StaticLossBalancer([0.25, 0.5])
    if kind == "scheduled":
        return ScheduledLossBalancer([schedules.linear(0.0, 0.75, 9), 0.125], names, **options)
    return EMANormalizedLossBalancer(names, beta=0.75, lagged=True, **options)


class Rows(nn.Module):
    """A student whose losses are its input, ``(items, losses)``, to the bit. Its parameter is there for an optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, rows: Tensor) -> Tensor:
        return rows + (self.scale - self.scale)


class Net(nn.Module):
    """A classifier with a hidden layer."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.hidden = nn.Linear(6, width)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x).relu())


def losses_of(output: Tensor, target: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Those of a classifier and its teacher, named `TAUGHT`."""
    return {
        "student_loss": F.cross_entropy(output, labels),
        "KLDivLoss_0": F.kl_div(output.log_softmax(-1), target.softmax(-1), reduction="batchmean"),
        "MSELoss_1": F.mse_loss(output, target),
    }


class Pair(nn.Module):
    """A student, its teacher, and a balancer if it is to be a part of the model."""

    def __init__(self, balancer: Any, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(1000)
        self.teacher = Net().requires_grad_(False)
        torch.manual_seed(seed)
        self.student = Net()
        self.balancer = balancer

    def losses(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return losses_of(self.student(x), self.teacher(x), labels)


def rows_of(losses: dict[str, np.ndarray]) -> Tensor:
    """Losses of items as ``(items, losses)``, in the order of their names."""
    return torch.from_numpy(np.stack(list(losses.values()), 1))


def exact_rows(step: int, losses: int = 3) -> Tensor:
    """Losses of 16 items whose sums are exact, as ``(items, losses)``; for programs of several processes."""
    rng = np.random.default_rng(step)
    return torch.tensor(np.stack([rng.integers(1, 64 << 3 * i, 16) / 64 for i in range(losses)], 1), dtype=torch.float32)


def batch(step: int, items: int = 16) -> tuple[Tensor, Tensor]:
    """Inputs and labels for `Net`, the same for a step whoever asks."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(items, 6, generator=generator), torch.randint(4, (items,), generator=generator)


def assert_same(actual: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Fails unless two mappings have the same names in the same order and, for each, the same bits."""
    assert list(actual) == list(expected)
    for name in actual:
        try:
            assert_same_bits(*(x if isinstance(x, Tensor) else np.asarray(x) for x in (actual[name], expected[name])))
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None
