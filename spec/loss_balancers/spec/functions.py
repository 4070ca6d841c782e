"""What the balancers share whose aggregate is a function of the losses: how losses enter it, and how it leaves (spec G1, G2)."""

from __future__ import annotations

from collections.abc import Sequence

from loss_balancers.spec.call import Call
from loss_balancers.spec.formats import result_format
from loss_balancers.spec.ops import Value


def entered(call: Call) -> list[Value]:
    """The losses in float32; 1 for an absent one, so that what is made of it is finite."""
    losses = zip(call.values, call.formats, call.present, strict=True)
    return [call.ops.weighted_sum([x], [fmt], [1.0], "f32") if there else 1.0 for x, fmt, there in losses]


def to_losses(call: Call, gradients: Sequence[Value]) -> list[Value]:
    """The gradient to each loss, of those to what `entered` gave; +0 to an absent one."""
    losses = zip(gradients, call.formats, call.present, strict=True)
    return [call.ops.weighted_sum_gradient(g, [fmt], [1.0], "f32")[0] if there else 0.0 for g, fmt, there in losses]


def finished(call: Call, x: Value, factor: float) -> Value:
    """The aggregate: ``factor`` times a float32 number, in the result format; +0 if all losses are absent."""
    return call.ops.weighted_sum([x], ["f32"], [factor], result_format(call.formats)) if any(call.present) else 0.0


def to_finished(call: Call, cotangent: Value, factor: float) -> Value:
    """The gradient to what `finished` was given."""
    return call.ops.weighted_sum_gradient(cotangent, ["f32"], [factor], result_format(call.formats))[0]
