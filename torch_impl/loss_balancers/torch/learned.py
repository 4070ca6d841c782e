"""Balancers with a parameter, which the user's optimizer trains."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.nn import Parameter

from loss_balancers import spec
from loss_balancers.torch.carried import as_integers
from loss_balancers.torch.functions import entered, finished, summed
from loss_balancers.torch.host import as_text, number, numbers
from loss_balancers.torch.moving import MovesState
from loss_balancers.torch.observing import Inputs, State
from loss_balancers.torch.portable import flushed, rmul
from loss_balancers.torch.rounding import FLOAT
from loss_balancers.torch.transforms import under_torch_func
from loss_balancers.torch.weighed import WeighedLossBalancer

#: After how many training forwards without a `step()` a balancer looks whether its parameter has changed: more than make a step.
_PATIENCE = 1000


class LearnedLossBalancer(MovesState, WeighedLossBalancer):
    """What the balancers with a parameter share: it is in the aggregate, and the user's optimizer trains it with the student.

    The aggregate is ``sum(a * w_k * L_k + b * z_k)``, where the weight ``w_k`` and the penalty ``z_k`` follow from the parameter of
    the loss. Both have derivatives by the losses and by the parameter.

    Give the parameter to the optimizer, without weight decay. In a distributed run its gradient must be averaged over the ranks
    as all others are: make the balancer a part of the model that DistributedDataParallel wraps.

    If the first training step leaves the parameter as it is, a warning comes once: at the `step()` of the balancer, or after
    1,000 training forwards. PyTorch counts what is written to the parameter. Only where it has counted nothing, as with fused
    optimizers, are the values compared, once, which waits for the device. Compiled code does not look.

    State:
        None that `step()` commits. The parameter, float32 ``(K,)``, in canonical order, stays float32 whatever `half()` does to the
        model.
    """

    _scalars = True

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        (entry,) = settings.learned
        self._parts, self._factor, self._start = as_text(settings.parts), settings.factor.hex(), as_text(entry.start)
        self.register_parameter(entry.name, Parameter(torch.tensor(entry.start, dtype=FLOAT)))
        self._make_lasting()
        #: Training forwards since the last `step()`; -1 once it is known whether something trains the parameter.
        self._forwards = 0
        #: The parameter's version at the first of them, its class, and its values.
        self._first: tuple[int, type, Tensor] | None = None

    @property
    def parameter(self) -> Parameter:
        """The parameter, whatever its name is."""
        return getattr(self, self._settings.parameter)

    def forward(self, loss: Mapping[str, Float[Tensor, ""]], *, count: Any = None, share: Any = None) -> Float[Tensor, ""]:
        """The aggregate of ``loss``: a mapping from name to loss, the student's named ``student_loss``.

        Args:
            loss: The losses.
            count: The number of items that each loss is the mean of, as balancers with state take it: a number, or a mapping from
                name to number. Here only 0 matters: a loss with the count 0 is absent, and neither it nor its parameter has a part
                in the aggregate.
            share: The part of the step's mean that each loss is, in the same forms; 0 says the same.

        Raises:
            TypeError: Both ``count`` and ``share`` are given, or one is not made of numbers. Else: see `canonical`.
            ValueError: A number is negative or not finite, or the names are not those of the losses. Else: see `canonical`.
        """
        inputs = self._inputs(loss, count, share)
        if self.training and torch.is_grad_enabled() and not is_dynamo_compiling() and not under_torch_func():
            self._watch()
        return self._aggregate(self._values(), inputs)

    def step(self) -> None:
        """Looks whether the parameter has changed since the last call, and warns once if it has not. Else it does nothing."""
        if not is_dynamo_compiling():
            self._warn_if_unchanged(stacklevel=3)

    def discard(self) -> None:
        """For an optimizer step that is not taken: the parameter need not have changed."""
        if not is_dynamo_compiling():
            self._forwards, self._first = min(self._forwards, 0), None

    def is_optimized_by(self, optimizer: Any) -> bool:
        """Whether an optimizer has the parameter in one of its groups.

        Args:
            optimizer: A `torch.optim.Optimizer`, or what has ``param_groups`` as it does.

        Raises:
            TypeError: ``optimizer`` has no ``param_groups``.
        """
        groups = getattr(optimizer, "param_groups", None)
        if groups is None:
            raise spec.errors.optimizer_unknown(optimizer, "a `torch.optim.Optimizer`")
        return any(x is self.parameter for group in groups for x in group["params"])

    @staticmethod
    def _weight_and_penalty(settings: Any, s: Tensor) -> tuple[Tensor, Tensor]:
        """The weight of each loss, and the penalty of its parameter. Every balancer has its own."""
        raise NotImplementedError

    def _aggregate(self, state: State, inputs: Inputs) -> Tensor:
        s = state[self._settings.parameter]
        losses, present = entered(inputs), inputs.present
        (a, b), count = numbers(self._parts), len(inputs.names)
        s = flushed(s)  # and in a backward the sum of the gradients of both ways
        s = s if present is None else torch.where(present, s, self._settings.neutral)
        weight, penalty = self._weight_and_penalty(self._settings, s)
        terms = torch.cat([rmul(losses, weight), penalty])
        parts: Any = (a,) * count + (b,) * count
        if present is not None:
            parts = torch.cat([torch.where(present, torch.full_like(s, part), 0.0) for part in (a, b)])
        return finished(summed(terms, parts), number(self._factor), inputs)

    def _weights(self, state: State, inputs: Inputs) -> dict[str, Tensor]:
        return super()._weights({name: value.detach() for name, value in state.items()}, inputs)

    def _inputs(self, loss: Mapping[str, Any], count: Any, share: Any) -> Inputs:
        inputs = super()._inputs(loss, count, share)
        if inputs.terms[0].device != self.parameter.device:
            raise spec.errors.state_device(self.parameter.device, inputs.terms[0].device)
        return inputs

    def _values(self) -> State:
        """The parameter by its name.

        Raises:
            RuntimeError: Something has converted it, so that its bits are lost, or it is sharded.
        """
        name, parameter = self._settings.parameter, self.parameter
        if hasattr(parameter, "device_mesh"):
            raise spec.errors.parameter_sharded(name)
        if parameter.dtype is not FLOAT:
            raise spec.errors.parameter_converted(name, FLOAT, parameter.dtype)
        return {name: parameter}

    def _watch(self) -> None:
        """Counts a training forward."""
        parameter = self.parameter
        # `functional_call` puts other tensors there, which the optimizer of whoever calls it need not write to.
        if self._forwards < 0 or not (isinstance(parameter, Parameter) and parameter.requires_grad) or not _can_look(parameter):
            return
        if self._first is None:
            self._first = _seen(parameter)
        self._forwards += 1
        if self._forwards > _PATIENCE:
            self._warn_if_unchanged(stacklevel=6)  # past two frames of nn.Module

    def _warn_if_unchanged(self, stacklevel: int) -> None:
        if self._first is None or not _can_look(self.parameter):
            return
        (version, kind, values), (now, kind_now, here) = self._first, _seen(self.parameter)
        if kind is not kind_now or here.shape != values.shape:  # FSDP2: it is whole in a forward, in parts between. Look again
            self._first = now, kind_now, here
            return
        moved = (here.device, here.dtype) != (values.device, values.dtype)
        written = now != version or moved or here.numel() == 0 or not torch.equal(here, values)
        self._forwards, self._first = -1, None
        if not written:
            warnings.warn(spec.errors.never_learned(self._settings.parameter), UserWarning, stacklevel=stacklevel)

    def _make_lasting(self) -> None:
        """Replaces a parameter that was made in inference mode: training could not write it later."""
        parameter = self.parameter
        if parameter.is_inference():
            with torch.inference_mode(False):
                setattr(self, self._settings.parameter, Parameter(parameter.detach().clone(), parameter.requires_grad))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied: Any = type(self).__new__(type(self))
        memo[id(self)] = copied
        vars(copied).update(deepcopy(vars(self), memo))
        copied._make_lasting()
        return copied

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        start = numbers(self._start)
        super()._apply(as_integers(fn, lambda y: y.copy_(torch.tensor(start, device=y.device))), recurse)
        self._make_lasting()
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        parameter = self.parameter
        if parameter.dtype is not FLOAT:  # ``assign=True`` accepts any dtype
            setattr(self, self._settings.parameter, Parameter(parameter.detach().to(FLOAT), parameter.requires_grad))
        self._make_lasting()


def _can_look(parameter: Tensor) -> bool:
    """Whether it has values, and no mode such as FakeTensorMode stands in for them."""
    return not parameter.is_meta and not torch._C._len_torch_dispatch_stack()


def _seen(parameter: Any) -> tuple[int, type, Tensor]:
    """The version of a parameter, the class of its data, and a copy of its values, of a sharded one those of this rank."""
    x = parameter.detach()
    return parameter._version, type(x), (x.to_local() if hasattr(x, "to_local") else x).clone()
