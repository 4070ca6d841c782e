"""The balancers as a layer of Keras 3, on the backends "torch" and "jax", with the same bits on both."""
# Keras is not installed where pyright runs, which takes this folder for it.
# pyright: reportAttributeAccessIssue=false

try:
    import keras as _keras  # type: ignore[reportMissingImports]
except ImportError as error:
    from loss_balancers.spec import missing_framework

    raise ImportError(missing_framework("keras", "Keras 3", "keras")) from error
else:
    if _keras.backend.backend() not in ("torch", "jax"):
        from loss_balancers.spec import errors

        raise errors.keras_backend(_keras.backend.backend())

from loss_balancers.keras.balancer import Balancer

__all__ = ["Balancer"]
