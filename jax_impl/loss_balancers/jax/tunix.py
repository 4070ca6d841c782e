"""Tunix's distillation trainer with a balancer: in the student, so that Tunix carries its state, and in every checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
from flax import nnx
from jax import Array

from loss_balancers.jax.base import DistillationLossBalancer
from loss_balancers.jax.learned import LearnedLossBalancer
from loss_balancers.jax.stateful import StatefulLossBalancer
from loss_balancers.spec import errors

try:
    from tunix.distillation.distillation_trainer import DistillationTrainer  # type: ignore[reportMissingImports]
except ImportError as error:
    raise ImportError(errors.missing_package("`loss_balancers.jax.tunix` needs", "Tunix", "tunix")) from error

#: From the name of a loss to what Tunix's `LogitStrategy` calls it among its metrics.
LOGIT_LOSSES = {"student_loss": "distill/hard_loss", "KLDivLoss_0": "distill/soft_loss"}


class BalancedTrainer(DistillationTrainer):
    """Tunix's `DistillationTrainer`, whose training loss is what a balancer makes of a strategy's losses.

    The student gets the balancer as its attribute ``balancer`` until `close`. So Tunix passes the state through its jitted step,
    and saves and restores it with the model. Checkpoints of a LoRA model hold LoRA parameters alone; there the state is in the
    checkpoint's metadata. Evaluation is the strategy's own, and observes nothing.

    Args:
        student_model: As in Tunix, like all that is not listed here.
        balancer: A balancer. Where it has state, its ``auto_step`` is the ``gradient_accumulation_steps`` of the training
            configuration, or 1: Tunix has no place for a `step()`.
        losses: From the name of each loss to its name among the metrics that the strategy's ``compute_loss`` returns. Default:
            ``student_loss`` and ``KLDivLoss_0``, of `LogitStrategy`.
        count: The name of a metric that is the balancer's ``count``: how many items the losses are means of. Default: none.
        share: The name of a metric that is the balancer's ``share``. Default: none.

    Raises:
        ValueError: ``auto_step`` is not what is accumulated; LoRA and a learned balancer; at the first step, a metric is missing.

    Reference:
        Tunix 0.1.7, ``tunix.distillation.distillation_trainer`` and ``tunix.sft.peft_trainer``.
    """

    def __init__(
        self,
        student_model: nnx.Module,
        *args: Any,
        balancer: DistillationLossBalancer,
        losses: Mapping[str, str] | None = None,
        count: str | None = None,
        share: str | None = None,
        **kwargs: Any,
    ) -> None:
        self._student: Any = student_model
        self._losses = dict(LOGIT_LOSSES if losses is None else losses)
        self._amounts = {name: metric for name, metric in (("count", count), ("share", share)) if metric is not None}
        self._student.balancer = balancer
        stateful = isinstance(balancer, StatefulLossBalancer)
        with _without_table(balancer) if stateful else nullcontext():  # Tunix restores here
            super().__init__(student_model, *args, **kwargs)
        accumulated = self.config.get_with_default("gradient_accumulation_steps", 1)
        if self._lora_enabled and isinstance(balancer, LearnedLossBalancer):
            raise errors.tunix_lora_parameter(balancer._settings.parameter)
        if stateful and balancer._auto_step != accumulated:
            raise errors.tunix_auto_step(accumulated, balancer._auto_step)
        if stateful and self._lora_enabled:
            self._keep_in_metadata(balancer)
        elif stateful:
            self.checkpoint_manager.save = _without_table(balancer)(self.checkpoint_manager.save)

    def get_train_loss(self, model: nnx.Module, teacher_output: Any, inputs: dict[str, Any]) -> tuple[Array, dict[str, Any]]:
        """The balanced loss, and the strategy's metrics. XLA leaves out the strategy's own sum, which nothing uses."""
        _, metrics = super().get_train_loss(model, teacher_output, inputs)
        missing = [metric for metric in (*self._losses.values(), *self._amounts.values()) if metric not in metrics]
        if missing:
            raise errors.tunix_metrics(missing, list(metrics))
        (balancer,) = (node for _, node in nnx.iter_graph(model) if isinstance(node, DistillationLossBalancer))
        given, amounts = ({name: metrics[metric] for name, metric in of.items()} for of in (self._losses, self._amounts))
        return balancer(given, **amounts), metrics

    def close(self) -> None:
        """Closes as Tunix does, and gives the student back without the balancer."""
        super().close()
        if hasattr(self._student, "balancer"):
            del self._student.balancer

    def _keep_in_metadata(self, balancer: StatefulLossBalancer) -> None:
        """Restores the state from a checkpoint's metadata, and makes every later checkpoint hold it there."""
        if found := self._restored_custom_metadata.get("balancer"):
            entries = {entry.name: np.array(found["state"][entry.name], entry.dtype) for entry in balancer._settings.state}
            balancer.load_state({**found, "state": entries})
        manager = self.checkpoint_manager
        save = manager.save

        def save_with_state(step: int, *args: Any, force: bool = False, custom_metadata: Any = None, **kwargs: Any) -> bool:
            if manager._checkpoint_manager is None or not (force or manager._checkpoint_manager.should_save(step)):
                return False
            state = balancer.export_state()  # waits for the device, as the checkpoint itself does
            state["state"] = {name: x.tolist() for name, x in state["state"].items()}
            metadata = {**(custom_metadata or {}), "balancer": state}
            return save(step, *args, force=force, custom_metadata=metadata, **kwargs)

        manager.save = save_with_state


@contextmanager
def _without_table(balancer: StatefulLossBalancer) -> Iterator[None]:
    """Hides the table of a schedule from what Tunix saves and restores: it follows from the settings."""
    table, balancer._table = balancer._table, None
    try:
        yield
    finally:
        balancer._table = table
