"""DINOv2 against a plain vision transformer written from the paper, with the official names of weights."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from maxgan.evaluation.catalogue import load_extractor
from maxgan.evaluation.dinov2 import DinoV2, load_dinov2, resize_positions

pytest.importorskip("timm")
WIDTH, DEPTH, HEADS = 384, 12, 6


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Random weights of the small model by the official names."""
    shapes = {
        "cls_token": (1, 1, WIDTH), "pos_embed": (1, 1 + 37 * 37, WIDTH), "mask_token": (1, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, 14, 14), "patch_embed.proj.bias": (WIDTH,),
        "norm.weight": (WIDTH,), "norm.bias": (WIDTH,),
    }  # fmt: skip
    for i in range(DEPTH):
        for name, rows, columns in (("attn.qkv", 3, 1), ("attn.proj", 1, 1), ("mlp.fc1", 4, 1), ("mlp.fc2", 1, 4)):
            shapes[f"blocks.{i}.{name}.weight"] = (rows * WIDTH, columns * WIDTH)
            shapes[f"blocks.{i}.{name}.bias"] = (rows * WIDTH,)
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma"):
            shapes[f"blocks.{i}.{name}"] = (WIDTH,)
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator) / (math.prod(shape[1:]) ** 0.5 if "proj.w" in name else 1 / 0.05)
        for name, shape in shapes.items()
    }


def cubic(distance: float) -> float:
    """Keys' cubic kernel with a = -0.75, as PyTorch's bicubic has it."""
    d, a = abs(distance), -0.75
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


def official_grid(grid: np.ndarray, side: int) -> np.ndarray:
    """Resize `(S, S, D)` from the definition: centres of half pixels, a side that counts as `side` + 0.1."""
    given = len(grid)
    matrix = np.zeros((side, given))
    for i in range(side):
        place = (i + 0.5) * given / (side + 0.1) - 0.5
        for k in range(math.floor(place) - 1, math.floor(place) + 3):
            matrix[i, min(max(k, 0), given - 1)] += cubic(place - k)
    return np.einsum("ia,jb,abd->ijd", matrix, matrix, grid)


def plain_transformer(weights: dict[str, Tensor], images: Tensor) -> Tensor:
    def layer(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    n = len(images)
    patches = images.reshape(n, 3, 16, 14, 16, 14).permute(0, 2, 4, 1, 3, 5).reshape(n, 256, -1)
    kernel = weights["patch_embed.proj.weight"].flatten(1)
    x = patches @ kernel.T + weights["patch_embed.proj.bias"]
    grid = official_grid(weights["pos_embed"][0, 1:].reshape(37, 37, WIDTH).double().numpy(), 16)
    x = x + torch.from_numpy(grid).float().reshape(1, 256, WIDTH)
    x = torch.cat([(weights["cls_token"] + weights["pos_embed"][:, :1]).expand(n, -1, -1), x], 1)
    for i in range(DEPTH):
        q, k, v = layer(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv").reshape(n, 257, 3, HEADS, -1).unbind(2)
        attention = (torch.einsum("nqhd,nkhd->nhqk", q, k) / q.shape[-1] ** 0.5).softmax(-1)
        seen = torch.einsum("nhqk,nkhd->nqhd", attention, v).flatten(2)
        x = x + weights[f"blocks.{i}.ls1.gamma"] * layer(seen, f"blocks.{i}.attn.proj")
        hidden = layer(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1")
        x = x + weights[f"blocks.{i}.ls2.gamma"] * layer(F.gelu(hidden), f"blocks.{i}.mlp.fc2")
    return norm(x[:, 0], "norm")


@torch.no_grad()
def test_features_are_the_class_token_of_the_official_network(
    weights: dict[str, Tensor], photos: Tensor, tmp_path: Path
) -> None:
    images = photos[:1, :, 30:254, 30:254]
    shown = (images / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    # The weights of the layers count here, so the layer scale is made larger than the published 1e-5.
    weights = {n: w + 1 if n.endswith(("norm.weight", "gamma")) or ".norm" in n else w for n, w in weights.items()}
    expected = plain_transformer(weights, shown)
    torch.save(weights, tmp_path / "official.pth")
    save_file({n: w for n, w in weights.items() if n != "mask_token"}, tmp_path / "timm.safetensors")
    digests = set()
    for name in ("official.pth", "timm.safetensors"):
        extractor = load_extractor("dinov2", weights=tmp_path / name)
        found = extractor(images)
        assert float((found.features - expected).abs().max() / expected.std()) < 1e-3
        assert found.logits is None
        assert (extractor.name, extractor.resize, extractor.resolution) == ("dinov2-small", "clean", 224)
        digests.add(extractor.digest)
    assert len(digests) == 2


def test_positions_are_resized_as_in_the_official_code(weights: dict[str, Tensor]) -> None:
    positions = weights["pos_embed"]
    found = resize_positions(positions, 16)
    assert torch.equal(found[:, 0], positions[:, 0])
    expected = official_grid(positions[0, 1:].reshape(37, 37, WIDTH).double().numpy(), 16)
    np.testing.assert_allclose(found[0, 1:].reshape(16, 16, WIDTH), expected, atol=1e-5)
    assert resize_positions(positions, 37) is positions


def test_the_giants_layers_are_renamed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with torch.device("meta"):
        giant = DinoV2("giant").network.state_dict()
    assert giant["blocks.39.mlp.fc1.weight"].shape == (8192, 1536)
    official = {n.replace(".mlp.fc1.", ".mlp.w12.").replace(".mlp.fc2.", ".mlp.w3."): w for n, w in giant.items()}
    official["pos_embed"] = torch.zeros(1, 1 + 16 * 16, 1536)
    monkeypatch.setattr("maxgan.evaluation.dinov2.read_weights", lambda path: official)
    assert load_dinov2(tmp_path / "giant.pth").size == "giant"


def test_other_weights_are_refused(weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    cases = {
        "holds no weights of DINOv2": {"weight": torch.zeros(2)},
        "with registers": {**weights, "register_tokens": torch.zeros(1, 4, WIDTH)},
        "Missing key.*blocks.3.ls1.gamma": {n: w for n, w in weights.items() if n != "blocks.3.ls1.gamma"},
        "Unexpected key.*head.weight": {**weights, "head.weight": torch.zeros(1)},
        "size mismatch for norm.bias": {**weights, "norm.bias": torch.zeros(1)},
    }
    for message, changed in cases.items():
        monkeypatch.setattr("maxgan.evaluation.dinov2.read_weights", lambda path, changed=changed: changed)
        with pytest.raises(ValueError, match=message):
            load_dinov2("changed.pth")
