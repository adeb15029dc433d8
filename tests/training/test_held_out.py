"""What the discriminator says of images that it has not seen, beside naive loops."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from maxgan.config import DataConfig, EvaluationConfig
from maxgan.data.loader import ImageDataset
from maxgan.models import MaxViTGenerator, ResidualDiscriminator
from maxgan.sampling import latents_of
from maxgan.training import held_out
from maxgan.training.held_out import HeldOut, default_held_out, same_classes

ROOT = Path(__file__).parents[2]
TRAINING, HELD_OUT = "discriminator_accuracy_training", "discriminator_accuracy_held_out"


def networks(**settings: object) -> tuple[MaxViTGenerator, ResidualDiscriminator]:
    torch.manual_seed(0)
    generator = MaxViTGenerator(16, 1, 10, latent_dim=8, width=8, head_dim=8, latent_tokens=4).eval()
    discriminator = ResidualDiscriminator(16, 1, 10, channel_multiplier=1 / 128, max_width=8, **settings)
    return generator, discriminator


def floats(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels)[None].float() / 127.5 - 1


def test_accuracies_are_shares_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_out, "MOST", 30)
    monkeypatch.setattr(held_out, "BATCH_SIZE", 8)
    training, others = ImageDataset(DataConfig()), ImageDataset(DataConfig("digits-test"))
    generator, discriminator = networks()
    before = torch.get_rng_state()
    found = HeldOut(training, "digits-test", Accelerator(cpu=True)).measure(discriminator, generator)
    assert torch.equal(torch.get_rng_state(), before)

    chosen = [12 * i for i in range(30)]  # of 360
    labels = [others.label(i) for i in chosen]
    logits: dict[str, list[float]] = {TRAINING: [], HELD_OUT: []}
    fakes = []
    with torch.no_grad():
        for i, label in zip(chosen, labels, strict=True):
            logits[HELD_OUT].append(discriminator(floats(others.read(i)), torch.tensor([label])).item())
        for i in same_classes(np.array(labels), training, 30):
            logits[TRAINING].append(discriminator(floats(training.read(i)), torch.tensor([training.label(i)])).item())
        for seed, label in enumerate(labels):
            image = generator(latents_of([seed], 8, 10)[0], torch.tensor([label]))
            levels = (image * 127.5 + 127.5).round().clamp(0, 255)
            fakes.append(discriminator(levels / 127.5 - 1, torch.tensor([label])).item())
    for name, reals in logits.items():
        pairs = [real > fake for real in reals for fake in fakes]
        assert found[name] == pytest.approx(sum(pairs) / 900, abs=2 / 900), name  # ties within rounding
    assert found[TRAINING] != found[HELD_OUT]
    assert found["training_logit"] == pytest.approx(np.mean(logits[TRAINING]), abs=1e-5)
    assert found["held_out_logit"] == pytest.approx(np.mean(logits[HELD_OUT]), abs=1e-5)
    assert found["sample_logit"] == pytest.approx(np.mean(fakes), abs=1e-5)


class Memory(nn.Module):
    """Gives 1 for the images that it knows, 0 for samples of the constant generator, -1 for others."""

    def __init__(self, known: ImageDataset) -> None:
        super().__init__()
        self.known = {known.read(i).tobytes() for i in range(len(known))}

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        levels = ((images + 1) * 127.5).round().to(torch.uint8).contiguous().numpy()
        return torch.tensor([1.0 if x.tobytes() in self.known else 0.0 if x.std() == 0 else -1.0 for x in levels])


class Constant(nn.Module):
    latent_dim, num_classes, resolution, channels = 2, 10, 16, 1

    def forward(self, z: Tensor, labels: Tensor | None) -> Tensor:
        return torch.zeros(len(z), 1, 16, 16)


def test_a_discriminator_that_knows_its_images_by_heart_is_found_out() -> None:
    training = ImageDataset(DataConfig())
    data = HeldOut(training, "digits-test", Accelerator(cpu=True))
    assert data.count == 360
    found = data.measure(Memory(training), Constant().eval())
    assert found.pop("sample_logit") == 0
    assert found == {TRAINING: 1.0, HELD_OUT: 0.0, "training_logit": 1.0, "held_out_logit": -1.0}


def test_training_images_have_the_classes_of_the_others_and_none_comes_twice() -> None:
    training, others = ImageDataset(DataConfig()), ImageDataset(DataConfig("digits-test"))
    assert others.labels is not None
    assert training.labels is not None
    indices = same_classes(others.labels, training, len(others))
    assert training.labels[indices].tolist() == others.labels.tolist()
    assert len(set(indices.tolist())) == 360
    plain = same_classes(None, training, 100)
    assert len(set(plain.tolist())) == 100
    assert plain.max() > 1400


def test_groups_of_minibatch_deviation_are_whole() -> None:
    data = HeldOut(ImageDataset(DataConfig()), "digits-test", Accelerator(cpu=True), group=7)
    assert data.count == 357
    assert data.batch_size == 63
    generator, discriminator = networks(minibatch_deviation=True, minibatch_group=7)
    found = data.measure(discriminator, generator)
    assert all(0 <= found[name] <= 1 for name in (TRAINING, HELD_OUT))
    with pytest.raises(ValueError, match=r"has 360 images, fewer than discriminator\.minibatch_group 400: name more"):
        HeldOut(ImageDataset(DataConfig()), "digits-test", Accelerator(cpu=True), group=400)


def test_images_that_do_not_belong_to_the_training_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("L", (16, 16)).save(tmp_path / name / "0.png")
    training = ImageDataset(DataConfig())
    with pytest.raises(ValueError, match=r"evaluation\.held_out .* has 2 classes and digits-train has 10, .*: give"):
        HeldOut(training, str(tmp_path), Accelerator(cpu=True))
    with pytest.raises(ValueError, match=r"evaluation\.held_out can't be used: .*nowhere"):
        HeldOut(training, "nowhere", Accelerator(cpu=True))
    with pytest.raises(ValueError, match=r"evaluation\.held_out x .*: set evaluation\.enabled, or leave it out"):
        EvaluationConfig(enabled=False, held_out="x")
    assert default_held_out("digits-train") == "digits-test"
    assert default_held_out("digits") is default_held_out("photos.zip") is None


PROCESSES = """
import sys
from accelerate import Accelerator
from maxgan.config import DataConfig
from maxgan.data.loader import ImageDataset
from maxgan.training.held_out import HeldOut

sys.path.insert(0, sys.argv[1])
from test_held_out import networks

accelerator = Accelerator(cpu=True)
generator, discriminator = networks()
data = HeldOut(ImageDataset(DataConfig()), "digits-test", accelerator)
with open(f"{sys.argv[2]}/{accelerator.num_processes}.{accelerator.process_index}", "w") as file:
    print(*(value.hex() for value in data.measure(discriminator, generator).values()), file=file)
accelerator.end_training()
"""


@pytest.mark.slow
def test_it_is_the_same_over_processes_bit_for_bit(tmp_path: Path) -> None:
    (script := tmp_path / "look.py").write_text(PROCESSES)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    (told := tmp_path / "told").mkdir()  # a file each: what two processes print into one pipe can run together
    for launcher in ([], ["-m", "torch.distributed.run", "--nproc_per_node=2", "--"]):
        command = [sys.executable, *launcher, str(script), str(Path(__file__).parent), str(told)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
    numbers = {file.name: file.read_text().split() for file in told.iterdir()}
    assert sorted(numbers) == ["1.0", "2.0", "2.1"]
    assert numbers["1.0"] == numbers["2.0"] == numbers["2.1"]
    assert len(numbers["1.0"]) == 5
