"""What all tests share: one thread a process, a fresh accelerate state for each test, and cases computed by official
TensorFlow models, with weights that a formula gives."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

FIXTURES = Path(__file__).parent / "fixtures"

# Beside another busy process, two threads wait for each other most of the time.
torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """References that tests score against are kept in a folder of theirs; processes that they start inherit it."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def fresh_accelerate_state() -> Iterator[None]:
    """accelerate keeps its state in class attributes; without a reset a test would see the settings of the one
    before."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState._reset_state()


class OfficialCase(NamedTuple):
    """Variables of one model in TensorFlow's names, order and layout, and the inputs and outputs of its case."""

    variables: dict[str, np.ndarray]
    arrays: dict[str, np.ndarray]


def formula(name: str, shape: tuple[int, ...], index: int, gain: float) -> np.ndarray:
    """Return the variable that stands at `index` of its model's list."""
    noise = np.random.default_rng(1000 + index).standard_normal(shape).astype(np.float32)
    leaf = name.rsplit("/", 1)[-1]
    if leaf == "moving_variance":
        return (1 + 0.2 * np.abs(noise)).astype(np.float32)
    if leaf == "gamma":
        return (1 + 0.1 * noise).astype(np.float32)
    if leaf in ("kernel", "weight", "depthwise_kernel") and len(shape) >= 2:
        if leaf == "depthwise_kernel":
            fan_in = 9
        elif name.split("/")[-2] in ("o", "out") or len(shape) == 4:
            fan_in = int(np.prod(shape[:-1]))
        else:
            fan_in = shape[0]
        return (gain * noise / np.sqrt(fan_in)).astype(np.float32)
    return (0.1 * noise).astype(np.float32)


@pytest.fixture(scope="session")
def official() -> Callable[[str, str], OfficialCase]:
    """Return a function from the names of a case and of one of its models to that case."""

    def load(case: str, model: str) -> OfficialCase:
        listing = json.loads((FIXTURES / f"{case}.json").read_text())[model]
        with np.load(FIXTURES / f"{case}.npz", allow_pickle=False) as file:
            stored = {name: file[name] for name in file.files}
        variables = {}
        for index, (name, shape) in enumerate(listing["variables"]):
            key = f"stored/{model}/{name}"
            variables[name] = stored[key] if key in stored else formula(name, tuple(shape), index, listing["gain"])
        arrays = {name: array for name, array in stored.items() if not name.startswith("stored/")}
        return OfficialCase(variables, arrays)

    return load
