"""What every unit test starts from."""

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded():
    """The same random numbers for a test, whatever ran before it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
