"""The folder that the documentation's commands share."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.docs.sandbox import Sandbox


@pytest.fixture(scope="session")
def sandbox(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """One for all commands, so that each finds what those before it have left; kept where a test failed."""
    folder = tmp_path_factory.mktemp("docs") / "lift_det"
    yield Sandbox(folder)
    if not request.session.testsfailed:
        shutil.rmtree(folder)
