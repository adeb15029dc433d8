from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from maxgan.evaluation.aesthetics import aesthetics_scores, emd_loss
from maxgan.models import MaxViT
from maxgan.models.aesthetics import MaxViTAesthetics, mean_score
from maxgan.models.network import export_model, load_model


def test_a_distribution_is_the_softmax_of_the_classifiers_logits() -> None:
    torch.manual_seed(0)
    model = MaxViTAesthetics(16, 1).eval()
    classifier = MaxViT(16, 1, 10, model.config).eval()
    classifier.load_state_dict(model.state_dict())
    x = torch.randn(3, 1, 16, 16)
    with torch.no_grad():
        shares = model(x)
        logits = classifier(x).double()
    torch.testing.assert_close(shares.double(), logits.exp() / logits.exp().sum(1, keepdim=True))
    torch.testing.assert_close(model.distribution(model.pooled(x)), shares)


def test_shares_keep_float32_in_mixed_precision() -> None:
    model = MaxViTAesthetics(16, 1).eval().bfloat16()
    shares = model(torch.randn(2, 1, 16, 16, dtype=torch.bfloat16))
    assert shares.dtype == torch.float32
    torch.testing.assert_close(shares.sum(1), torch.ones(2))


def test_a_classifier_gives_all_weights_but_the_last_layer() -> None:
    classifier = MaxViT(16, 1, 7)
    model = MaxViTAesthetics.from_classifier(classifier)
    ours, theirs = model.state_dict(), classifier.state_dict()
    assert ours.keys() == theirs.keys()
    assert {n for n in ours if ours[n].shape != theirs[n].shape} == {"head.logits.weight", "head.logits.bias"}
    assert all(torch.equal(ours[n], theirs[n]) for n in ours if not n.startswith("head.logits"))
    with torch.no_grad():
        model.stem.conv1.weight.zero_()
    assert classifier.stem.conv1.weight.abs().sum() > 0
    assert (model.num_classes, model.head.logits.out_features) == (10, 10)
    # As many classes as scores: the last layer is still a new one.
    classifier = MaxViT(16, 1, 10)
    assert not torch.equal(
        MaxViTAesthetics.from_classifier(classifier).head.logits.weight, classifier.head.logits.weight
    )


def test_the_papers_sizes_have_ten_scores() -> None:
    with torch.device("meta"):
        assert MaxViTAesthetics.from_name("tiny")(torch.empty(2, 3, 224, 224)).shape == (2, 10)


def test_a_file_gives_the_same_model_again(tmp_path: Path) -> None:
    model = MaxViTAesthetics(16, 1).eval()
    export_model(model, tmp_path / "judge.safetensors", {})
    again = load_model(tmp_path / "judge.safetensors")
    assert type(again) is MaxViTAesthetics
    x = torch.randn(2, 1, 16, 16)
    assert torch.equal(again(x), model(x))


def test_mean_score_counts_from_one() -> None:
    shares = torch.eye(10)
    assert mean_score(shares).tolist() == list(range(1, 11))
    assert mean_score(torch.full((1, 10), 0.1)).item() == pytest.approx(5.5)


def toy(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noise whose contrast is its quality, and scores spread (binomially) around that quality."""
    generator = torch.Generator().manual_seed(seed)
    quality = torch.rand(n, 1, generator=generator) * 0.8 + 0.1
    images = torch.randn(n, 1, 16, 16, generator=generator) * quality[:, :, None, None]
    k = torch.arange(10.0)
    choose = torch.tensor([1.0, 9, 36, 84, 126, 126, 84, 36, 9, 1])
    return images, choose * quality**k * (1 - quality) ** (9 - k)


@pytest.mark.slow
def test_it_learns_the_quality_of_toy_images() -> None:
    torch.manual_seed(0)
    model = MaxViTAesthetics(16, 1, stem_width=8, widths=(16,), depths=(1,), window_size=4)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.1  # a few dozen updates are too few for the official 0.01
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    images, shares = toy(3072, 0)
    for batch in torch.arange(3072).split(32):
        loss = emd_loss(model(images[batch]), shares[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    images, target = toy(256, 1)
    with torch.no_grad():
        predicted = model.eval()(images)
    scores = aesthetics_scores(predicted, target)
    constant = emd_loss(shares.mean(0).expand(256, 10), target)
    assert scores["plcc"] > 0.95
    assert scores["srcc"] > 0.95
    assert emd_loss(predicted, target) < constant / 2
