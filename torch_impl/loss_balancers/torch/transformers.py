"""A balancer in the `Trainer` of Hugging Face, and in those of TRL."""

from __future__ import annotations

import warnings
from typing import Any
from weakref import ref

import numpy as np
import torch
from torch import Tensor

from loss_balancers.spec import errors
from loss_balancers.torch.base import DistillationLossBalancer
from loss_balancers.torch.moving import MovesState
from loss_balancers.torch.transforms import under_torch_func

try:
    from transformers import TrainerCallback  # type: ignore[reportMissingImports]
    from transformers.trainer_callback import ExportableState  # type: ignore[reportMissingImports]
except ImportError as error:
    raise ImportError(errors.missing_framework("torch.transformers", "transformers", "transformers")) from error


class _Watch:
    """A hook before each call of a balancer: sets the model's mode, and keeps what the last training call was given."""

    def __init__(self) -> None:
        self.model: Any = lambda: None
        self.call: tuple[Any, Any] | None = None

    def __call__(self, balancer: DistillationLossBalancer, args: Any, kwargs: Any) -> None:
        model = self.model()
        if model is not None and balancer.training != model.training:
            balancer.train(model.training)
        if balancer.training and not torch.compiler.is_compiling() and not under_torch_func():
            self.call = args, kwargs

    def __reduce__(self) -> Any:
        return _Watch, ()  # a copy of the balancer, or a pickled one, does not belong to the Trainer


class BalancerCallback(TrainerCallback, ExportableState):
    """Commits a balancer of a `Trainer` once per optimizer step, puts its state into checkpoints and its `breakdown` into the logs.

    For a balancer that ``compute_loss`` calls, whether the Trainer holds it or the model (docs/hosts/hf_trainer.md). Its mode is
    the model's in both cases, so that nothing is observed in an evaluation. If a gradient scaler skips an update, what was
    observed is dropped. State is in ``trainer_state.json`` of a checkpoint, and ``resume_from_checkpoint`` restores it. The logs
    have the last micro-batch of a step, on rank 0, as ``balancer/{name}/weight`` and so on, unless the balancer is compiled.

    Args:
        balancer: The balancer. It is moved to the Trainer's device unless it is part of the model.

    Raises:
        TypeError: ``balancer`` is not a balancer.
        ValueError: When training begins: two callbacks have one class name, or the checkpoint is of another balancer.

    Reference:
        Hugging Face Transformers 5.24, `Trainer` and `TrainerCallback`.
    """

    def __init__(self, balancer: Any = None) -> None:
        if not isinstance(balancer, DistillationLossBalancer):
            raise errors.callback_without_balancer(balancer)
        self.balancer = balancer
        self._watch = _Watch()
        self._breakdown: dict[str, Tensor] | None = None
        balancer.register_forward_pre_hook(self._watch, with_kwargs=True)

    def state(self) -> dict[str, Any]:
        """What the Trainer puts into ``trainer_state.json``: the exported state as plain numbers, which JSON keeps to the bit."""
        if not isinstance(self.balancer, MovesState):
            return {"args": {}, "attributes": {}}
        exported = self.balancer.export_state()
        plain = {name: value.tolist() for name, value in exported["state"].items()}
        return {"args": {}, "attributes": {"exported": {**exported, "state": plain}}}

    def on_init_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Learns the model, whose mode the balancer follows."""
        if model is not None and all(module is not self.balancer for module in model.modules()):
            self._watch.model = ref(model)
            self.balancer.to(args.device)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Restores what the checkpoint has. Drops what an evaluation or an attempt without enough memory may have left."""
        self.on_init_end(args, state, control, model)
        saved = state.stateful_callbacks.setdefault(type(self).__name__, {})  # the Trainer needs an entry when it saves
        if isinstance(saved, list):
            raise errors.callbacks_of_one_name(type(self).__name__)
        exported = saved.get("attributes", {}).get("exported")
        if isinstance(self.balancer, MovesState) and exported is not None:
            dtypes = {entry.name: entry.dtype for entry in self.balancer._settings.entries}
            arrays = {name: np.asarray(value, dtypes.get(name)) for name, value in exported["state"].items()}
            self.balancer.load_state({**exported, "state": arrays})
        elif isinstance(self.balancer, MovesState):
            warnings.warn(errors.checkpoint_without_state(state.global_step), UserWarning, stacklevel=2)
        self.balancer.discard()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        """Commits what the micro-batches of this step showed, or drops it if the optimizer was not run."""
        breakdown = getattr(self.balancer, "breakdown", None)  # a balancer of one's own may have none
        if breakdown is not None and self._watch.call is not None and args.logging_strategy != "no":
            given, named = self._watch.call
            with torch.no_grad():
                self._breakdown = breakdown(*given, **named)  # before the commit: with the weights that were used
        self._watch.call = None  # it holds the graph of the last forward
        if getattr(optimizer, "step_was_skipped", False):  # the Trainer calls this event all the same
            self.balancer.discard()
        else:
            self.balancer.step()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Adds the breakdown to the logs of training: to the history, and for the callbacks that come after this one."""
        if self._breakdown is not None and logs is not None and "loss" in logs:
            values = torch.stack([value.float().mean() for value in self._breakdown.values()]).tolist()
            more = dict(zip((f"balancer/{name}" for name in self._breakdown), values, strict=True))
            logs.update(more)
            state.log_history[-1].update(more)
            self._breakdown = None
