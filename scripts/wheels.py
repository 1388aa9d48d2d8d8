"""Wheels for another machine: what to tell pip, and what the wheels ask of the C library there."""

import re
from pathlib import Path

_OLDEST, _NEWEST = 17, 36
"""Minor versions of glibc 2 that a wheel may ask for: from the oldest with ARM wheels to Debian 12's."""


def target_options(machine: str, python: str) -> list[str]:
    """Options with which pip takes the wheels of that machine, and nothing that it would have to compile.

    Args:
        machine: As ``uname -m`` prints it.
        python: Two numbers, such as 3.11.
    """
    tag = f"cp{python.replace('.', '')}"
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(_NEWEST, _OLDEST - 1, -1)]
    options = ["--only-binary", ":all:", "--python-version", python, "--implementation", "cp"]
    for platform in (*platforms, f"manylinux2014_{machine}"):
        options += ["--platform", platform]
    for abi in (tag, "abi3", "none"):
        options += ["--abi", abi]
    return options


def needed_libc(packages: Path) -> str:
    """The lowest version of glibc that all installed wheels agree with, for example ``2.34``.

    Args:
        packages: A ``site-packages`` directory.
    """
    needed = 0
    for path in packages.glob("*.dist-info/WHEEL"):
        # A wheel has one tag for each version that it agrees with; manylinux2014 is 2.17.
        versions = [int(minor) for minor in re.findall(r"manylinux_2_(\d+)", path.read_text())]
        needed = max(needed, min(versions, default=_OLDEST))
    return f"2.{needed}"
