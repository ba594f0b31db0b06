"""One thread and one seed for every test; nobody leaves parameters in Pyro's global store; figures are closed."""

import sys
from collections.abc import Iterator

import pyro
import pytest
import torch
from hypothesis import settings

settings.register_profile("probq", deadline=None, derandomize=True)
settings.load_profile("probq")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    assert not pyro.get_param_store().keys()
    if "matplotlib.pyplot" in sys.modules:  # for those that follow in this process
        sys.modules["matplotlib.pyplot"].close("all")
