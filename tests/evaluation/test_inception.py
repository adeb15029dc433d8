"""Inception V3 against Keras' official outputs, and the weights it refuses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from maxgan.evaluation.inception import Inception, inception_2015, keras_inception
from maxgan.evaluation.published import weights_digest
from maxgan.nn.fuse import fuse_modules


def deviations(ours: Tensor, truth: Any) -> float:
    """Return the largest error in standard deviations of the truth."""
    truth = torch.as_tensor(truth).double()
    return float((ours - truth).abs().max() / truth.std(correction=0))


@pytest.fixture(scope="module")
def keras(official: Callable) -> Any:
    return official("keras_inception_v3", "model")


@pytest.fixture(scope="module")
def whole(keras: Any, published_names: Callable) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in published_names(keras.variables).items()}


@pytest.fixture(scope="module")
def model(whole: dict[str, Tensor]) -> Inception:
    return keras_inception(whole)


@torch.no_grad()
def test_equals_keras_in_float64(keras: Any, model: Inception) -> None:
    images = torch.from_numpy(keras.arrays["image"]).permute(0, 3, 1, 2).double() / 127.5 - 1
    exact = copy.deepcopy(model).double()
    fuse_modules(fused := copy.deepcopy(exact))
    for i, network in enumerate((exact, fused)):
        features = network.pooled(images[i : i + 1])
        assert features.shape == (1, 2048)
        assert deviations(features, keras.arrays["features"][i : i + 1]) < 1e-6
        assert deviations(network.classify(features), keras.arrays["logits"][i : i + 1]) < 1e-6


@torch.no_grad()
def test_pooling_by_maximum_in_the_last_block_is_another_network(keras: Any, model: Inception) -> None:
    images = torch.from_numpy(keras.arrays["image"][:1]).permute(0, 3, 1, 2) / 127.5 - 1
    other = Inception(1000, last_pool_is_max=True).eval()
    other.load_state_dict(model.state_dict())
    assert deviations(other.pooled(images), keras.arrays["features"][:1]) > 1e-2


@pytest.mark.parametrize("first", [0, 95])
def test_keras_file_is_read_whatever_number_its_layers_begin_with(
    first: int, keras: Any, model: Inception, published_names: Callable, tmp_path: Path
) -> None:
    # In the order of the alphabet, in which HDF5 lists them, layer 10 comes before layer 2.
    named = dict(sorted(published_names(keras.variables, first).items()))
    np.savez(tmp_path / "keras.npz", **named)
    assert weights_digest(keras_inception(tmp_path / "keras.npz")) == weights_digest(model)


def test_other_weights_than_keras_are_refused(whole: dict[str, Tensor]) -> None:
    cases = {
        "93 arrays conv2d_\\*/kernel in place of 94": {n: t for n, t in whole.items() if "conv2d_7/" not in n},
        "predictions/kernel is missing": {n: t for n, t in whole.items() if "predictions/kernel" not in n},
        "dense/kernel:0 is left over": {**whole, "dense/kernel:0": torch.zeros(1)},
        "conv2d_2/conv2d_2/bias:0 is left over": {**whole, "conv2d_2/conv2d_2/bias:0": torch.zeros(32)},
        r"conv2d_1/kernel:0 has the shape \(3, 32, 3, 3\) in place of \(32, 3, 3, 3\)": {
            **whole,
            "conv2d_1/conv2d_1/kernel:0": torch.zeros(3, 3, 32, 3),
        },
    }
    for message, weights in cases.items():
        with pytest.raises(ValueError, match=message):
            keras_inception(weights)


def test_other_weights_than_the_port_are_refused(port_weights: Path) -> None:
    whole = torch.load(port_weights, weights_only=True)
    cases = {
        "fc.bias is missing": {n: t for n, t in whole.items() if n != "fc.bias"},
        "AuxLogits.fc.bias is left over": {**whole, "AuxLogits.fc.bias": torch.zeros(1)},
        r"fc.weight has the shape \(1000, 2048\)": {**whole, "fc.weight": torch.zeros(1000, 2048)},
        "is missing; .* and 468 more": {},
    }
    for message, weights in cases.items():
        with pytest.raises(ValueError, match=message):
            inception_2015(weights)
