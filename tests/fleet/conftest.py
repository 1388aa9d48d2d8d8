"""Fixtures of the fleet's tests; the rig and the simulated device are modules beside this one."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeops.signing import SigningKey

sys.path.insert(0, str(Path(__file__).parent))  # The folder is no package, and these modules are only for its tests.

from fleet_rig import Rig


@pytest.fixture
def rig(tmp_path: Path, release_key: SigningKey) -> Iterator[Rig]:
    made = Rig(tmp_path / "server", release_key)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def shared_rig(tmp_path_factory: pytest.TempPathFactory, release_key: SigningKey) -> Iterator[Rig]:
    """One server for the requests of a module that change nothing."""
    made = Rig(tmp_path_factory.mktemp("shared") / "server", release_key)
    yield made
    made.stop()


@pytest.fixture
def make_rig(tmp_path: Path, release_key: SigningKey) -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def make(**settings: Any) -> Rig:
        made.append(Rig(tmp_path / f"server{len(made)}", release_key, **settings))
        return made[-1]

    yield make
    for each in made:
        each.stop()
