"""The oldest versions of NumPy and of the frameworks that the balancers run on."""

from __future__ import annotations

import re

from loss_balancers.spec import errors

#: From package to version. `pyproject.toml` has the same numbers; a test compares the two.
OLDEST = {"torch": "2.8", "jax": "0.6.2", "flax": "0.10.7", "numpy": "1.26"}


def check_version(part: str, package: str, found: str, *, beside: str | None = None) -> None:
    """Raises if a framework is older than the balancers can run on.

    Args:
        part: The part of this library that needs it: ``spec``, ``torch`` or ``jax``.
        package: The package, one of `OLDEST`.
        found: Its ``__version__``.
        beside: What pip must be told to leave as it is, such as ``jax==0.8.3``: a later Flax asks for a later JAX.

    Raises:
        ImportError: The framework is too old.
    """
    numbers = release(found)
    if numbers and numbers < release(OLDEST[package]):
        raise errors.framework_too_old(part, package, found, OLDEST[package], beside)


def check_installed(part: str, package: str, *, beside: str | None = None) -> None:
    """`check_version` of a package that cannot be imported: as what is installed it says its version all the same."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version(package)
    except PackageNotFoundError:
        return
    check_version(part, package, found, beside=beside)


def release(version: str) -> tuple[int, ...]:
    """The numbers of a release: (2, 9, 1) of "2.9.1+cu128". A pre-release counts as its release; without numbers: ()."""
    found = re.match(r"v?(\d+(?:\.\d+)*)", version)
    return tuple(map(int, found[1].split("."))) if found else ()
