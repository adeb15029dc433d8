"""The mapping network, and truncation towards the mean latent; generators without one stay what they were."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from maxgan.checkpoint import export_model
from maxgan.config import ClassSheetConfig
from maxgan.explore.common import open_subject
from maxgan.models import HiTGenerator, MaxViTGenerator, ResidualGenerator
from maxgan.models.latent import LatentGenerator
from maxgan.models.network import load_model
from maxgan.nn.mapping import Mapping
from maxgan.sampling import generate, latents_of
from maxgan.truncation import MEAN_LATENTS, MEAN_SEED, TruncatedGenerator, told

FIXTURE = Path(__file__).parent / "fixtures" / "maxvit_gan_8.safetensors"
SMALL: dict[str, Any] = {"latent_dim": 8, "latent_tokens": 3}
MAXVIT: dict[str, Any] = {**SMALL, "width": 16, "head_dim": 8}
HIT: dict[str, Any] = {**SMALL, "widths": (16, 16, 8), "depths": (1, 1, 1), "heads": (4, 2, 2)}
# Of weights drawn by seed 0 before there was a mapping; torch draws other numbers from version to version.
DRAWN = {
    "2.15": ("988c4002f19daf66", "7def22e6384bdf89", "68aae3b281b85838"),
    "2.11": ("0846e2484f9af3cd", "c24b1b4b79da74b1", "cfa46f29f06c0fcd"),
}


def digest(model: torch.nn.Module) -> str:
    """A hash of names, shapes and bits of all weights."""
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        found.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


@pytest.mark.skipif(torch.__version__[:4] not in DRAWN, reason="what this version of torch draws isn't known")
def test_without_a_mapping_a_seed_draws_the_weights_of_before() -> None:
    found = []
    for network, arguments, settings in (
        (MaxViTGenerator, (16, 3, 4), MAXVIT),
        (MaxViTGenerator, (16, 1), {**MAXVIT, "norm": "none", "zero_init": True, "conditioning": "modulation"}),
        (HiTGenerator, (32, 3, 4), HIT),
    ):
        if settings.get("norm") == "none":
            settings = {**settings, "positions": True}
        torch.manual_seed(0)
        found.append(digest(network(*arguments, **settings)))
    assert tuple(found) == DRAWN[torch.__version__[:4]]


def test_an_export_of_before_has_the_same_weights_and_images() -> None:
    model = load_model(FIXTURE, expect=MaxViTGenerator)
    assert model.config.mapping_layers == 0
    with safe_open(FIXTURE, framework="pt") as file:
        assert sorted(file.keys()) == sorted(model.state_dict())
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, file.get_tensor(name).to(tensor.dtype)), name
    with torch.no_grad():
        images = model(torch.linspace(-1.5, 1.5, 8).view(2, 4), torch.tensor([0, 2]))
    truth = torch.tensor(model.info["images"])
    assert truth.std() > 0.1
    torch.testing.assert_close(images, truth, rtol=1e-5, atol=1e-5)


def mapped(network: type[LatentGenerator] = MaxViTGenerator, num_classes: int = 3) -> LatentGenerator:
    torch.manual_seed(0)
    settings = MAXVIT if network is MaxViTGenerator else {"latent_dim": 8, "width": 12}
    model = network(8, 1, num_classes, mapping_layers=2, **settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
        model.first_map.weight.normal_(std=1.0)
    return model


def test_a_mapping_is_a_perceptron_of_normalised_inputs() -> None:
    torch.manual_seed(0)
    mapping = Mapping(8, inputs=2, layers=3).double()
    x = 5 * torch.randn(4, 16).double()
    y = x.numpy().reshape(4, 2, 8)
    y = (y / np.sqrt((y**2).mean(2, keepdims=True))).reshape(4, 16)
    for layer in mapping.layers:
        y = np.sqrt(2) * (y @ layer.weight.detach().numpy().T / np.sqrt(y.shape[1]) + layer.bias.detach().numpy())
        y = np.maximum(y, 0.2 * y)
    assert y.shape == (4, 8)
    np.testing.assert_allclose(mapping(x).detach().numpy(), y, rtol=1e-6)
    # However many layers there are, w starts at the scale of z, and its length doesn't matter.
    deep = Mapping(64, inputs=1, layers=8)
    z = torch.randn(256, 64)
    assert 0.5 < deep(z).square().mean() < 2
    torch.testing.assert_close(deep(3 * z), deep(z), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("network", [MaxViTGenerator, ResidualGenerator])
def test_the_image_hangs_on_w_alone(network: type[LatentGenerator]) -> None:
    model = mapped(network)
    z, labels = torch.randn(4, 8), torch.tensor([0, 1, 2, 0])
    w = model.style(z, labels)
    assert w.shape == (4, 8) and model.first_map.in_features == 8
    torch.testing.assert_close(model.synthesise(w), model(z, labels))
    assert not torch.allclose(model.style(z, labels.roll(1)), w)
    torch.testing.assert_close(model.style(2 * z, labels), w)  # z is normalised
    with pytest.raises(ValueError, match=r"mapping_layers must be 0 or more, not -1"):
        network(8, mapping_layers=-1)
    # As many layers of w's size to itself as are asked for, the first from z and class.
    sizes = [(layer.in_features, layer.out_features) for layer in model.mapping.layers]
    assert sizes == [(16, 8), (8, 8)]


def naive_mean(model: LatentGenerator, label: int | None) -> Tensor:
    z = torch.randn(MEAN_LATENTS, 8, generator=torch.Generator().manual_seed(MEAN_SEED), dtype=torch.float64).float()
    total = torch.zeros(8, dtype=torch.float64)
    with torch.no_grad():
        for part in z.split(500):
            total += model.style(part, None if label is None else torch.full((len(part),), label)).double().sum(0)
    return (total / MEAN_LATENTS).float()


@pytest.mark.parametrize("num_classes", [0, 3])
def test_latents_come_nearer_to_the_mean_of_their_class(num_classes: int) -> None:
    model = mapped(num_classes=num_classes)
    seeds = range(5, 11)
    z, labels = latents_of(seeds, 8, num_classes)
    w = model.style(z, labels)
    means = [naive_mean(model, label) for label in range(num_classes)] or [naive_mean(model, None)]
    mean = torch.stack([means[label] for label in (labels.tolist() if labels is not None else [0] * 6)])
    for psi in (0.0, 0.6, 1.0):
        expected = model.synthesise(mean + psi * (w - mean)).detach()
        assert expected.std() > 0.1
        batches = list(generate(model, seeds, 4, "cpu", truncation=psi, quantise=False))
        images = torch.cat([batch.images for batch in batches])
        torch.testing.assert_close(images, expected.clamp(-1, 1), rtol=1e-4, atol=1e-4)
    whole = next(generate(model, seeds, 6, "cpu", quantise=False)).images
    torch.testing.assert_close(images, whole, rtol=1e-4, atol=1e-4)  # of a factor of 1


def test_the_mean_is_the_same_whatever_else_is_drawn() -> None:
    model = mapped()
    one, two = TruncatedGenerator(model, 0.5), TruncatedGenerator(model.fuse(), 0.9)
    torch.manual_seed(123)
    one(torch.randn(3, 8), torch.tensor([2, 0, 2]))
    for label in (1, 2, 0):
        two(torch.randn(1, 8), torch.tensor([label]))
    assert all(torch.equal(one.mean(label), two.mean(label)) for label in range(3))
    assert not torch.equal(one.mean(0), one.mean(1))
    # Kept for the run: the weights are not looked at again.
    kept = one.mean(0)
    with torch.no_grad():
        model.mapping.layers[0].weight.zero_()
    assert one.mean(0) is kept


def test_truncation_does_not_hang_on_the_batch_size() -> None:
    model = mapped()
    whole = next(generate(model, range(9), 9, "cpu", truncation=0.5))
    for size in (1, 4):
        parts = list(generate(model, range(9), size, "cpu", truncation=0.5))
        images, labels = (torch.cat([getattr(part, name) for part in parts]) for name in ("images", "labels"))
        assert torch.equal(labels, whole.labels)
        assert (images.int() - whole.images.int()).abs().max() <= 1


def test_truncation_below_zero_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"towards the mean latent must be 0 or more, not -0\.5"):
        next(generate(mapped(), range(2), 2, "cpu", truncation=-0.5))


def test_a_record_tells_which_truncation_it_was() -> None:
    assert told(mapped(), 0.7) == "0.7 towards the mean latent"
    assert told(mapped(), None) is None
    assert told(load_model(FIXTURE), 0.7) == 0.7


def test_pictures_are_truncated_alike(tmp_path: Path) -> None:
    model = mapped()
    export_model(model, tmp_path / "g.safetensors", {})
    config = ClassSheetConfig(model=str(tmp_path / "g.safetensors"), cpu=True, threads=1, truncation=0.5)
    subject = open_subject(config, config.truncation)
    assert subject.cut is None
    z, labels = latents_of(range(6), 8, 3)
    images = next(generate(model, range(6), 6, "cpu", truncation=0.5)).images
    assert (subject.draw(z, labels, 2).int() - images.int()).abs().max() <= 1
    # Without a mapping it is z that is cut.
    assert open_subject(ClassSheetConfig(model=str(FIXTURE), cpu=True, threads=1), 0.5).cut == 0.5
