"""What is not installed, or too old."""

from __future__ import annotations


def missing_package(what: str, package: str, extra: str) -> str:
    return f"{what} {package}, which is not installed. {with_extra(extra)}"


def with_extra(extra: str) -> str:
    # An installed package does not know where it came from. These words are right for a checkout, a wheel and an index.
    return f"Install loss-balancers with its extra `[{extra}]`, in a checkout by `pip install '.[{extra}]'`."


def missing_framework(part: str, package: str, extra: str) -> str:
    return missing_package(f"`loss_balancers.{part}` needs", package, extra)


def keras_backend(received: str) -> ImportError:
    return ImportError(
        f'`loss_balancers.keras` needs Keras with the backend "torch" or "jax". Received the backend {received!r}. Set the '
        "variable KERAS_BACKEND to one of the two before Keras is imported."
    )


def framework_too_old(part: str, package: str, found: str, oldest: str, beside: str | None = None) -> ImportError:
    kept = "" if beside is None else f" '{beside}'"
    return ImportError(
        f"`loss_balancers.{part}` needs {package} {oldest} or newer. Found {package} {found}. "
        f"Run `pip install '{package}>={oldest}'{kept}`.",
        name=package,
    )


def framework_broken(part: str, error: Exception) -> str:
    first = next(iter(str(error).strip().splitlines()), "")
    return f"`loss_balancers.{part}` cannot be imported: {type(error).__name__}: {first}"
