"""What every test file shares: the settings of the machine put back after each test, and the instruction sets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from convscan import _native

settings.register_profile("project", derandomize=True, deadline=None, max_examples=25, database=None)
settings.load_profile("project")


@pytest.fixture(autouse=True)
def same_settings() -> Iterator[None]:
    """Threads and instruction set are process-wide: a test that changes them leaves them as they were."""
    threads, isa = torch.get_num_threads(), _native.isa()
    yield
    torch.set_num_threads(threads)
    assert _native.set_isa(isa)


@pytest.fixture(params=_native.isa_names())
def isa(request: pytest.FixtureRequest) -> str:
    """Each instruction set that this build has and this processor runs, in use for the length of the test."""
    assert _native.set_isa(request.param)
    return str(request.param)
