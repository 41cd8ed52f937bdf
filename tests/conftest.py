"""What the tests share: where the real data is, and which tests need what a machine may lack."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture
def shared() -> Path:
    """The folder of real images and weights beside the project; tests that need it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("needs the real data in ../shared, which is not here")
    return SHARED
