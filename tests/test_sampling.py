from __future__ import annotations

import errno
import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image
from torch import Tensor, nn

from maxgan import writers
from maxgan.checkpoint import export_model
from maxgan.data.sources import open_source
from maxgan.models.network import Network
from maxgan.sampling import (
    drawn_at_once,
    generate,
    image_grid,
    latents_of,
    load_generator,
    newest_export,
    truncate,
    write_images,
)
from maxgan.writers import Batch

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class ToyConfig:
    latent_dim: int = 12


class ToyGenerator(Network):
    """Linear map, convolution and BatchNorm; images reach beyond [-1, 1]."""

    config_class = ToyConfig
    config: ToyConfig

    def __init__(
        self,
        resolution: int,
        channels: int = 3,
        num_classes: int = 0,
        config: ToyConfig | None = None,
        **settings: object,
    ) -> None:
        super().__init__(resolution, channels, num_classes, config, **settings)
        self.embedding = nn.Embedding(num_classes, self.latent_dim) if num_classes else None
        self.linear = nn.Linear(self.latent_dim, 16 * resolution**2)
        self.norm = nn.BatchNorm2d(16)
        self.conv = nn.Conv2d(16, channels, 3, padding=1)

    @property
    def latent_dim(self) -> int:
        return self.config.latent_dim

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.embedding is not None:
            z = z + self.embedding(labels)
        x = self.linear(z).unflatten(1, (16, self.resolution, self.resolution))
        return self.conv(self.norm(x))


class ToyClassifier(Network):
    config_class = ToyConfig

    def __init__(
        self,
        resolution: int,
        channels: int = 3,
        num_classes: int = 2,
        config: ToyConfig | None = None,
        **settings: object,
    ) -> None:
        super().__init__(resolution, channels, num_classes, config, **settings)


def toy(channels: int = 3, num_classes: int = 0, resolution: int = 8) -> ToyGenerator:
    torch.manual_seed(0)
    return ToyGenerator(resolution, channels, num_classes).eval()


def drawn(generator: ToyGenerator, seeds: list[int] | range, batch_size: int = 4, **options: object) -> Batch:
    batches = list(generate(generator, seeds, batch_size, "cpu", **options))
    labels = [batch.labels for batch in batches if batch.labels is not None]
    images = torch.cat([batch.images for batch in batches])
    return Batch([s for batch in batches for s in batch.seeds], images, torch.cat(labels) if labels else None)


@pytest.fixture
def sample(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module; setting threads is left out, since it would outlast the test."""
    spec = importlib.util.spec_from_file_location("sample", ROOT / "sample.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "sample", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: setattr(module, "threads", count))
    return module


def test_latents_belong_to_their_seed() -> None:
    seeds = [0, 1, 5, 2**32 - 1, 3]
    z, labels = latents_of(seeds, 12, 10)
    assert (z.dtype, z.shape, labels.dtype, labels.shape) == (torch.float32, (5, 12), torch.int64, (5,))
    for i, seed in enumerate(seeds):
        alone = latents_of([seed], 12, 10)
        assert torch.equal(alone[0][0], z[i])
        assert alone[1][0] == labels[i]
    torch.manual_seed(1)
    assert torch.equal(latents_of(seeds, 12, 10)[0], z)
    assert len({tuple(row) for row in z.tolist()}) == 5
    # The class drawn has no say in z.
    assert torch.equal(latents_of(seeds, 12, 3, class_weights=[1, 2, 3])[0], z)
    unlabelled, none = latents_of(seeds, 12, 0)
    assert none is None
    assert torch.equal(unlabelled, z)


def test_large_images_are_drawn_few_at_once() -> None:
    found = [drawn_at_once(resolution, 100) for resolution in (8, 128, 256, 512, 1024)]
    assert found == [100, 100, 100, 25, 6] and drawn_at_once(1024, 8) == 1


def test_latents_are_normal_and_labels_follow_their_weights() -> None:
    z, labels = latents_of(range(4000), 5, 4)
    assert scipy.stats.kstest(z.flatten().numpy(), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(z.T.numpy())[np.triu_indices(5, 1)]).max() < 0.06
    assert scipy.stats.chisquare(np.bincount(labels, minlength=4)).pvalue > 1e-3
    _, labels = latents_of(range(4000), 5, 4, class_weights=[1, 0, 3, 0])
    counts = np.bincount(labels, minlength=4)
    assert counts[[1, 3]].tolist() == [0, 0]
    assert scipy.stats.chisquare(counts[[0, 2]], [1000, 3000]).pvalue > 1e-3


def test_classes_are_taken_in_turn() -> None:
    assert latents_of([0, 1, 2, 3, 4, 9], 2, 6, classes=[3, 5, 0])[1].tolist() == [3, 5, 0, 3, 5, 3]


@pytest.mark.parametrize("t", [1e-3, 0.5, 1.0, 3.0, 12.0])
def test_truncation_is_the_exact_cut_normal(t: float) -> None:
    z = torch.linspace(-9, 9, 1001, dtype=torch.float64)
    lower = z[z <= 0]  # where scipy keeps its digits; the upper half is the mirror image
    expected = scipy.stats.truncnorm.ppf(scipy.stats.norm.cdf(lower.numpy()), -t, t)
    np.testing.assert_allclose(truncate(lower, t).numpy(), expected, rtol=1e-6, atol=1e-9 * t)
    cut = truncate(z, t)
    assert torch.equal(cut, -truncate(-z, t))
    assert cut.abs().max() <= t
    assert (cut.diff() >= 0).all()
    assert (truncate(z, t * 1.001) - cut).abs().max() < 2e-3 * t


def test_truncation_of_a_seed_approaches_its_latent() -> None:
    z, _ = latents_of(range(50), 8, 0)
    assert torch.equal(latents_of(range(50), 8, 0, truncation=40.0)[0], z)
    small, _ = latents_of(range(50), 8, 0, truncation=0.5)
    assert small.abs().max() <= 0.5
    assert torch.equal(small.sign(), z.sign())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0, "classes": [1]}, "has no classes"),
        ({"num_classes": 3, "classes": [3]}, r"classes must be from 0 to 2, not \[3\]"),
        ({"num_classes": 3, "classes": []}, "classes must be from 0 to 2"),
        ({"num_classes": 3, "classes": [1], "class_weights": [1, 1, 1]}, "not both"),
        ({"num_classes": 3, "class_weights": [1, 1]}, "class_weights must be 3 numbers"),
        ({"num_classes": 3, "class_weights": [0, 0, 0]}, "class_weights must be 3 numbers"),
        ({"num_classes": 0, "truncation": 0.0}, "truncation must be positive, not 0.0"),
        ({"num_classes": 0, "truncation": float("nan")}, "truncation must be positive"),
        ({"num_classes": 0, "seeds": [-1]}, "seeds must be from 0"),
        ({"num_classes": 0, "seeds": [2**32]}, r"seeds must be from 0 to 2\*\*32 - 1, not 4294967296"),
    ],
)
def test_latents_refuse(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        latents_of(**{"seeds": [0], "latent_dim": 2, **options})


def test_images_do_not_depend_on_the_batch_size() -> None:
    generator = toy(3, 5, 16)
    whole = drawn(generator, range(10, 41), 31)
    z, labels = latents_of(range(10, 41), 12, 5)
    with torch.no_grad():
        expected = ((generator(z, labels).clamp(-1, 1) + 1) * 127.5).round()
    assert (whole.images.float() - expected).abs().max() == 0
    assert whole.images.shape == (31, 3, 16, 16)
    assert whole.images.dtype == torch.uint8
    assert whole.images.float().std() > 10
    for size in (1, 2, 7, 64):
        part = drawn(generator, range(10, 41), size)
        assert part.seeds == list(range(10, 41))
        assert torch.equal(part.labels, whole.labels)
        assert (part.images.int() - whole.images.int()).abs().max() <= 1
    assert [len(batch.seeds) for batch in generate(generator, range(31), 7, "cpu")] == [7, 7, 7, 7, 3]


def test_images_that_are_not_quantised_are_clipped_and_no_more() -> None:
    generator = toy(3, 5, 16)
    z, labels = latents_of(range(8), 12, 5)
    with torch.no_grad():
        expected = generator(z, labels)
    batch = next(generate(generator, range(8), 8, "cpu", quantise=False))
    assert batch.images.dtype == torch.float32
    assert expected.abs().max() > 1
    torch.testing.assert_close(batch.images, expected.clamp(-1, 1))


def test_generation_leaves_no_mode_behind() -> None:
    for batch in generate(toy(), range(4), 2, "cpu"):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        assert not batch.images.is_inference()


def test_generation_refuses() -> None:
    generator = toy()
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        next(generate(generator, range(4), 0, "cpu"))
    with pytest.raises(AssertionError, match="call eval"):
        next(generate(toy().train(), range(4), 2, "cpu"))
    with torch.no_grad():
        generator.conv.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN or infinity for seeds 3 to 4"):
        next(generate(generator, range(3, 7), 2, "cpu"))


def test_load_generator_and_newest_export(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no .*runs/\*/generator.safetensors: train a generator first"):
        newest_export(tmp_path / "runs")
    for i, name in enumerate(("b", "a")):
        export_model(toy(), tmp_path / "runs" / name / "generator.safetensors", {"name": name})
        os.utime(tmp_path / "runs" / name / "generator.safetensors", (i, i))
    newest = newest_export(tmp_path / "runs")
    assert newest.parent.name == "a"
    loaded = load_generator(newest)
    assert loaded.info == {"name": "a"}
    assert loaded.conv.weight.is_contiguous(memory_format=torch.channels_last)
    export_model(ToyClassifier(8), tmp_path / "c.safetensors", {})
    with pytest.raises(ValueError, match=r"c.safetensors holds a ToyClassifier, which is no generator"):
        load_generator(tmp_path / "c.safetensors")


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")])
@pytest.mark.parametrize("suffix", ["", ".zip", ".npz"])
@pytest.mark.parametrize("num_classes", [0, 11])
def test_written_images_are_read_back(tmp_path: Path, channels: int, mode: str, suffix: str, num_classes: int) -> None:
    output = tmp_path / "new" / f"samples{suffix}"
    seeds = range(997, 1003)
    expected = drawn(toy(channels, num_classes), seeds)
    write_images(generate(toy(channels, num_classes), seeds, 4, "cpu"), output)
    assert [file.name for file in output.parent.iterdir()] == [output.name]
    if suffix == ".npz":
        with np.load(output, allow_pickle=False) as arrays:
            assert set(arrays) == ({"arr_0", "labels"} if num_classes else {"arr_0"})
            assert np.array_equal(arrays["arr_0"], expected.images.permute(0, 2, 3, 1))
            if num_classes:
                assert arrays["labels"].dtype == np.int64
                assert arrays["labels"].tolist() == expected.labels.tolist()
        return
    source = open_source(str(output))
    assert len(source) == 6
    if num_classes:
        by_name = dict(json.loads((output / "dataset.json").read_text() if not suffix else zip_text(output))["labels"])
        names = list(by_name)
        assert list(by_name.values()) == expected.labels.tolist()
        assert sorted(source.labels.tolist()) == sorted(expected.labels.tolist())
    else:
        assert source.labels is None
        names = [f"00000/img00000{s}.png" if s < 1000 else f"00001/img0000{s}.png" for s in seeds] if suffix else []
        names = names or [f"{s:06d}.png" for s in seeds]
    if suffix == ".zip":
        with zipfile.ZipFile(output) as archive:
            assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
            assert archive.namelist() == [*names, "dataset.json"]
            pictures = [Image.open(archive.open(name)) for name in names]
    else:
        pictures = [Image.open(output / name) for name in names]
        assert not num_classes or names[0] == f"{expected.labels[0]}/000997.png"
    for picture, image in zip(pictures, expected.images, strict=True):
        assert picture.mode == mode
        assert np.array_equal(np.asarray(picture).reshape(8, 8, channels), image.permute(1, 2, 0))
        picture.close()


def zip_text(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        return archive.read("dataset.json").decode()


@pytest.mark.parametrize("suffix", ["", ".zip", ".npz"])
def test_output_is_whole_or_absent_and_never_lost(tmp_path: Path, suffix: str) -> None:
    output = tmp_path / f"out{suffix}"
    generator = toy()

    def failing(error: Exception) -> Iterator[Batch]:
        yield from generate(generator, range(3), 2, "cpu")
        raise error

    (tmp_path / f".tmp-out{suffix}").mkdir()  # of a killed run
    (tmp_path / f".tmp-out{suffix}" / "junk.png").touch()
    for error in (RuntimeError("x"), OSError(errno.ENOSPC, "full")):
        with pytest.raises(
            type(error), match="x" if isinstance(error, RuntimeError) else r"no space left .* to write .*/out"
        ):
            write_images(failing(error), output)
        assert list(tmp_path.iterdir()) == []
    write_images(generate(generator, range(300), 64, "cpu"), output)  # more than the queue holds
    first = sorted(file.name for file in output.iterdir()) if not suffix else output.read_bytes()
    assert suffix != "" or (len(first) == 301 and "junk.png" not in first)
    with pytest.raises(ValueError, match=r"exists.*overwrite"):
        write_images(generate(generator, range(3), 2, "cpu"), output)
    with pytest.raises(RuntimeError):
        write_images(failing(RuntimeError("x")), output, overwrite=True)
    assert first == (sorted(file.name for file in output.iterdir()) if not suffix else output.read_bytes())
    write_images(generate(generator, range(3), 2, "cpu"), output, overwrite=True)
    assert (len(list(output.iterdir())) == 4) if not suffix else (output.stat().st_size < len(first))
    assert [file.name for file in tmp_path.iterdir()] == [output.name]


def test_only_samples_are_overwritten(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "dataset.json").write_text('{"labels": null}')
    with pytest.raises(ValueError, match="holds something other than samples"):
        write_images(generate(toy(), range(3), 2, "cpu"), tmp_path / "precious", overwrite=True)
    assert (tmp_path / "precious" / "dataset.json").exists()


def test_errors_of_the_encoding_threads_surface(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(image: Tensor) -> bytes:
        raise RuntimeError("encoder")

    monkeypatch.setattr(writers, "_to_png", broken)
    with pytest.raises(RuntimeError, match="encoder"):
        write_images(generate(toy(), range(3), 2, "cpu"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_grid_places_every_image(channels: int) -> None:
    images = torch.randint(0, 256, (5, channels, 4, 4), dtype=torch.uint8)
    grid = np.asarray(image_grid(images, columns=3, gap=1, min_side=7)).reshape(2 * 8 + 1 + 2, 3 * 8 + 1 + 3, channels)
    rest = np.ones(grid.shape[:2], dtype=bool)
    for i in range(5):
        for y in range(8):
            for x in range(8):
                place = 1 + i // 3 * 9 + y, 1 + i % 3 * 9 + x
                assert grid[place].tolist() == images[i, :, y // 2, x // 2].tolist()
                rest[place] = False
    assert (grid[rest] == 255).all()
    assert image_grid(images[:2], columns=8, gap=0, min_side=4).size == (8, 4)


def test_script_samples_the_newest_run(
    sample: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    generator = toy(1, 6)
    export_model(generator, "runs/digits-1/generator.safetensors", {})
    sample.main(
        ["--n", "9", "--seed", "5", "--classes", "3,5", "--truncation", "0.7", "--grid", "g.png", "--grid_columns", "2"]
    )
    said = capsys.readouterr()
    assert "runs/digits-1/generator.safetensors to samples/digits-1" in said.out
    assert "9/9" in said.err
    assert sample.threads >= 1
    expected = drawn(generator, range(5, 14), classes=[3, 5], truncation=0.7)
    for seed, image, label in zip(expected.seeds, expected.images, expected.labels, strict=True):
        picture = np.asarray(Image.open(tmp_path / "samples" / "digits-1" / str(int(label)) / f"{seed:06d}.png"))
        assert abs(picture.astype(int) - image[0].numpy()).max() <= 1
    grid = np.asarray(Image.open("g.png"))
    assert grid.shape == (2 * 64 + 6, 2 * 64 + 6)
    assert abs(grid[2:66:8, 68:132:8].astype(int) - expected.images[1, 0].numpy()).max() <= 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--n", "0"], 2, "n must be at least 1, not 0"),
        (["--nn", "5"], 2, "nn"),
        (["--grid", "g.jpg"], 2, "grid must be a .png file"),
        (["--classes", "a"], 1, "classes must be numbers with commas"),
        (["--classes", "6"], 1, "classes must be from 0 to 5"),
        (["--model", "gone.safetensors"], 1, "there is no model file gone.safetensors"),
        (["--output", "taken"], 1, "taken exists and is not empty"),
    ],
)
def test_script_says_mistakes_in_one_sentence(
    sample: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
    arguments: list[str], code: int, message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    export_model(toy(1, 6), "runs/digits-1/generator.safetensors", {})
    Path("taken").mkdir()
    Path("taken/file").touch()
    with pytest.raises(SystemExit) as caught:
        sample.main(arguments)
    assert caught.value.code == code
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ")
    assert message in said
    assert not Path("samples").exists() or list(Path("samples").iterdir()) == []


PROGRAM = """
import sys
from accelerate import PartialState
import sample
from test_sampling import ToyGenerator
assert PartialState(cpu=True).num_processes == 2
end, PartialState.destroy_process_group = PartialState.destroy_process_group, lambda *_: None  # main runs often
for output in ("two", "two.zip", "two.npz"):
    sample.main(["--n", "7", "--batch_size", "2", "--output", output, "--grid", "two.png", "--grid_columns", "3"])
sample.main(["--n", "1", "--output", "one.npz"])
assert not any(name.startswith("maxgan.training") for name in sys.modules)
end(PartialState())
"""


@pytest.mark.slow
def test_two_processes_write_what_one_does(sample: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    export_model(toy(3, 6), "runs/toy/generator.safetensors", {})
    Path("program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "localhost:0", "program.py"]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("sampling 7 images") == 3  # by the main process alone
    for output in ("single", "single.zip", "single.npz"):
        sample.main(["--n", "7", "--output", output, "--grid", "single.png", "--grid_columns", "3"])
    with np.load("two.npz") as two, np.load("single.npz") as single:
        assert np.array_equal(two["labels"], single["labels"])
        assert abs(two["arr_0"].astype(int) - single["arr_0"]).max() <= 1
        with np.load("one.npz") as one:
            assert one["arr_0"].shape == (1, 8, 8, 3)
            assert abs(one["arr_0"].astype(int) - single["arr_0"][:1]).max() <= 1
    assert json.loads(Path("two/dataset.json").read_text()) == json.loads(Path("single/dataset.json").read_text())
    assert zip_text(Path("two.zip")) == zip_text(Path("single.zip"))
    for name, _ in json.loads(Path("two/dataset.json").read_text())["labels"]:
        a, b = (np.asarray(Image.open(Path(folder, name)), dtype=int) for folder in ("two", "single"))
        assert abs(a - b).max() <= 1
    a, b = (np.asarray(Image.open(f"{name}.png"), dtype=int) for name in ("two", "single"))
    assert a.shape == b.shape
    assert abs(a - b).max() <= 1
