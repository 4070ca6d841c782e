"""The oldest versions: what counts as older, and what is said of it."""

import pytest

from loss_balancers.spec.versions import OLDEST, check_version, release

VERSIONS = {
    "2.9.1": (2, 9, 1),
    "2.9.1+cu128": (2, 9, 1),
    "2.13.0+cpu": (2, 13, 0),
    "2.8.0a0+git1a2b3c4": (2, 8, 0),
    "2.10.0.dev20260101+cu130": (2, 10, 0),
    "0.10.0rc1": (0, 10, 0),
    "0.7.0.dev0": (0, 7, 0),
    "v2.8": (2, 8),
    "2": (2,),
    "git-1a2b3c4": (),
    "": (),
}


@pytest.mark.parametrize(("version", "numbers"), VERSIONS.items(), ids=VERSIONS)
def test_the_numbers_of_a_version(version, numbers):
    assert release(version) == numbers


@pytest.mark.parametrize(
    ("package", "found"),
    [
        *OLDEST.items(),
        ("torch", "2.8.0"),
        ("torch", "2.9.1+cu128"),
        ("torch", "2.10.0"),  # as text it would be less than 2.8
        ("torch", "10.0"),
        ("torch", "2.8.0rc2"),
        ("torch", "2.8.0a0+git1a2b3c4"),
        ("jax", "0.6.2.dev20250601"),
        ("jax", "0.10.2"),
        ("jax", "1.0"),
        ("flax", "0.12.8"),
        ("numpy", "2.5.5"),
        ("torch", "a build that does not say"),
    ],
)
def test_taken(package, found):
    check_version("torch", package, found)


@pytest.mark.parametrize(
    ("part", "package", "found"),
    [
        ("spec", "numpy", "1.25.2"),
        ("torch", "torch", "2.7.1"),
        ("torch", "torch", "2.7.1+cu126"),
        ("torch", "torch", "2.7.0a0+git1a2b3c4"),
        ("torch", "torch", "1.13.1"),
        ("torch", "torch", "2"),
        ("jax", "jax", "0.6.1"),
        ("jax", "jax", "0.6"),
        ("jax", "jax", "0.5.3"),
        ("jax", "flax", "0.10.6"),
        ("jax", "flax", "0.9.0"),
    ],
)
def test_too_old(part, package, found):
    with pytest.raises(ImportError) as raised:
        check_version(part, package, found)
    oldest = OLDEST[package]
    assert str(raised.value) == (
        f"`loss_balancers.{part}` needs {package} {oldest} or newer. Found {package} {found}. "
        f"Run `pip install '{package}>={oldest}'`."
    )
    assert raised.value.name == package
