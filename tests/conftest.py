"""What all tests share: one thread a process, and a fresh accelerate state for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

# Beside another busy process, two threads wait for each other most of the time.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fresh_accelerate_state() -> Iterator[None]:
    """accelerate keeps its state in class attributes; without a reset a test would see the settings of the one
    before."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState._reset_state()
