"""What every unit test starts from."""

import pytest
import torch
from browsing import browser, serve, this_site, visits, wide_book  # noqa: F401

from aevb import training


@pytest.fixture(autouse=True)
def seeded():
    """The same random numbers for a test, whatever ran before it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def has_bfloat16(monkeypatch):
    """A function that says whether the processor has matrix products in bfloat16."""

    def say(answer: bool) -> None:
        training._has_bfloat16.cache_clear()
        monkeypatch.setattr(
            torch.cpu, "get_capabilities", lambda: {"bf16": answer}, raising=False
        )

    yield say
    training._has_bfloat16.cache_clear()
