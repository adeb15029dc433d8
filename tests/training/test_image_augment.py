"""Augmentation against torchvision, numpy and the formulas of MixUp and CutMix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import affine

from maxgan.config import AffineConfig, MixConfig
from maxgan.training.image_augment import Mix, RandAugment, change_affine

LABELS = torch.tensor([0, 1, 2, 3, 4, 5])


def test_affine_changes_are_torchvisions() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(5, 2, 16, 16, generator=generator) * 2 - 1
    change = torch.rand(5, 4, generator=generator) * 2 - 1
    config = AffineConfig(rotate=40, scale=0.3, shift=0.2)
    found = change_affine(images, change, config)
    for image, row, result in zip(images, change.tolist(), found, strict=True):
        angle, scale = row[0] * 40, 1 + row[1] * 0.3
        shift = [row[2] * 0.2 * 16, row[3] * 0.2 * 16]
        # With padding by 0 to all sides, which is black here, there is no edge to what torchvision looks at.
        padded = nn.functional.pad(image + 1, (16, 16, 16, 16))
        expected = affine(padded, angle, shift, scale, [0.0], v2.InterpolationMode.BILINEAR)[:, 16:-16, 16:-16] - 1
        torch.testing.assert_close(result, expected, atol=1e-4, rtol=0)
    assert found.min() == -1  # corners have come in, black


@pytest.mark.parametrize(("border", "pad"), [("mirror", "symmetric"), ("black", "constant")])
def test_shifts_alone_are_whole_pixels_equally_likely(border: str, pad: str) -> None:
    most, count = 2, 1000  # 0.17 of 16 pixels is 2.72
    steps = 2 * (np.arange(count) + 0.5) / count - 1
    change = np.zeros((count, 4), dtype=np.float32)
    change[:, 2], change[:, 3] = steps, np.roll(steps, 300)
    image = np.random.default_rng(0).uniform(-1, 1, (3, 16, 16)).astype(np.float32)
    found = change_affine(
        torch.from_numpy(image).expand(count, -1, -1, -1),
        torch.from_numpy(change),
        AffineConfig(rotate=0, scale=0, shift=0.17, border=border),  # type: ignore[arg-type]
    )
    spread = ((0, 0), (most, most), (most, most))
    padded = np.pad(image + 1, spread, mode=pad) - 1  # type: ignore[call-overload]
    counts = np.zeros((2, 2 * most + 1), dtype=int)
    for row, result in zip(change, found.numpy(), strict=True):
        x, y = (int(np.floor((value + 1) / 2 * (2 * most + 1))) for value in row[2:])
        counts[0, x] += 1
        counts[1, y] += 1
        # x - most pixels to the right, y - most down
        expected = padded[:, 2 * most - y :, 2 * most - x :][:, :16, :16]
        np.testing.assert_allclose(result, expected, atol=2e-5)
    assert (counts == count // 5).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_randaugment_is_torchvisions_and_repeatable(channels: int) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (channels, 24, 24), dtype=np.uint8)
    augment = RandAugment(MixConfig(randaugment_ops=2, randaugment_magnitude=15))
    before = torch.get_rng_state()
    results = [augment(pixels, np.random.default_rng(seed)) for seed in range(40)]
    assert torch.equal(torch.get_rng_state(), before)
    official = v2.RandAugment(2, 15, interpolation=v2.InterpolationMode.BILINEAR, fill=128)
    for seed, result in enumerate(results):
        assert result.dtype == np.uint8
        assert np.array_equal(result, augment(pixels, np.random.default_rng(seed)))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(np.random.default_rng(seed).integers(1 << 63)))
            assert np.array_equal(result, official(torch.from_numpy(pixels)).numpy())
    assert len({result.tobytes() for result in results}) > 20


def mixed(config: MixConfig, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    images = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(7)) * 2 - 1
    before = torch.get_rng_state()
    result, target = Mix(config, 6)(images, LABELS, seed)
    assert torch.equal(torch.get_rng_state(), before)
    again, target_again = Mix(config, 6)(images, LABELS, seed)
    assert torch.equal(result, again)
    assert torch.equal(target, target_again)
    return images, result, target


def check_shares(target: Tensor) -> float:
    """Return the share of the image itself, after a check that its partner, the one before, has the rest."""
    share = float(target[0, 0])
    own = torch.eye(6)
    torch.testing.assert_close(target, share * own + (1 - share) * own.roll(1, 0))
    return share


def test_mixup_is_the_formula() -> None:
    shares = []
    for seed in range(200):
        images, result, target = mixed(MixConfig(mixup=0.8), seed)
        shares.append(check_shares(target))
        torch.testing.assert_close(result, shares[-1] * images + (1 - shares[-1]) * images.roll(1, 0))
    # Beta(0.8, 0.8): mean 1/2, variance 1 / (4 * (2 * 0.8 + 1))
    assert np.mean(shares) == pytest.approx(0.5, abs=0.08)
    assert np.var(shares) == pytest.approx(1 / (4 * 2.6), abs=0.02)


def test_cutmix_is_the_formula() -> None:
    for seed in range(20):
        images, result, target = mixed(MixConfig(cutmix=1.0), seed)
        kept = (result == images).all(1)
        assert torch.equal(result, torch.where(kept[:, None], images, images.roll(1, 0)))
        assert torch.equal(kept, kept[:1].expand(6, -1, -1))  # one rectangle
        rows, columns = (~kept[0]).any(1), (~kept[0]).any(0)
        assert torch.equal(~kept[0], rows[:, None] & columns)
        assert check_shares(target) == pytest.approx(float(kept[0].float().mean()))


def test_with_both_each_is_taken() -> None:
    taken = set()
    for seed in range(20):
        images, result, _ = mixed(MixConfig(mixup=0.8, cutmix=1.0), seed)
        cut = ((result == images) | (result == images.roll(1, 0))).all()
        taken.add("cutmix" if cut else "mixup")
    assert taken == {"cutmix", "mixup"}
