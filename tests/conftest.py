"""One thread and one seed for every test; nobody leaves parameters in Pyro's global store; figures are closed."""

import gc
import sys
from collections.abc import Iterator

import pyro
import pytest
import torch
from hypothesis import settings

settings.register_profile("probq", deadline=None, derandomize=True)
settings.load_profile("probq")
torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what was imported, and look less often: a tenth of the time goes there."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    assert not pyro.get_param_store().keys()
    if "matplotlib.pyplot" in sys.modules:  # for those that follow in this process
        sys.modules["matplotlib.pyplot"].close("all")
