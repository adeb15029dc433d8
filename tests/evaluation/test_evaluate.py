"""From generators and folders to scores, with the embedded extractor."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from tqdm import tqdm

import evaluate
import sample
from maxgan.checkpoint import export_model
from maxgan.config import DataConfig, PackConfig, ScoreConfig
from maxgan.data.loader import ImageDataset, evaluation_batches
from maxgan.data.pack import pack
from maxgan.evaluation import evaluate as evaluation
from maxgan.evaluation.catalogue import load_extractor
from maxgan.evaluation.comparison import Scores
from maxgan.evaluation.evaluate import Scorer, make_scorer, matched_labels
from maxgan.evaluation.extractors import ClassifierExtractor
from maxgan.evaluation.protocols import PROTOCOLS, feature_protocol
from maxgan.evaluation.reference import save_reference
from maxgan.evaluation.scores import frechet_distance
from maxgan.models import MaxViTGenerator
from maxgan.runtime import share_of
from maxgan.writers import Batch, write_images


class Replay(nn.Module):
    """A "generator" that gives, for a label, training digits of that class one after another."""

    latent_dim, num_classes, resolution, channels = 4, 10, 16, 1

    def __init__(self) -> None:
        super().__init__()
        dataset = ImageDataset(DataConfig(source="digits-train"))
        batches = list(evaluation_batches(dataset, 512, range(len(dataset))))
        images = torch.cat([images for images, _ in batches]).float() / 127.5 - 1
        labels = torch.cat([labels for _, labels in batches])
        self.members = [images[labels == label] for label in range(10)]
        self.next = [0] * 10
        self.eval()

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        out = []
        for label in labels.tolist():
            out.append(self.members[label][self.next[label] % len(self.members[label])])
            self.next[label] += 1
        return torch.stack(out)


def digits_scorer(**settings: Any) -> Scorer:
    return make_scorer(ScoreConfig(**settings), "digits", Accelerator(cpu=True), "digits")


def without_times(scores: Scores) -> Scores:
    return replace(scores, seconds=0)


def test_real_digits_score_as_real_digits() -> None:
    scores = digits_scorer().score_generator(Replay(), "replay")
    assert (scores.num_fakes, scores.num_reals) == (1797, 1797)
    assert scores.metrics["fd_ratio"] < 0.25
    assert scores.metrics["accuracy"] > 0.99
    assert scores.metrics["precision"] > 0.99
    assert scores.metrics["recall"] > 0.95
    assert scores.protocol.frechet == "FD-digits"


@pytest.mark.parametrize("count", [7, 360, 1797, 5000])
def test_matched_labels_have_the_frequencies_of_the_reference(count: int) -> None:
    labels = load_digits().target
    drawn = np.bincount(matched_labels(labels, count, 10), minlength=10)
    assert drawn.sum() == count
    assert np.abs(drawn - np.bincount(labels) / len(labels) * count).max() < 1
    assert matched_labels(labels, count, 10) == matched_labels(labels, count, 10)


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [0, 1, 4, 1797])
def test_shares_of_processes_are_the_whole(processes: int, count: int) -> None:
    class Process:
        def __init__(self, rank: int) -> None:
            self.process_index, self.num_processes = rank, processes

    shares = [list(share_of(count, Process(rank))) for rank in range(processes)]  # type: ignore[arg-type]
    assert [index for share in shares for index in share] == list(range(count))


def test_a_folder_of_reals_against_reals_and_the_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = ImageDataset(DataConfig(source="digits-test"))
    batches = [Batch(range(len(dataset)), *next(evaluation_batches(dataset, 360, range(360))))]
    write_images(batches, tmp_path / "fakes.zip")
    evaluate.main([f"--fakes={tmp_path}/fakes.zip", f"--output={tmp_path}/scores.json", "--cpu=true", "--threads=1"])
    written = json.loads((tmp_path / "scores.json").read_text())["metrics"]
    direct = digits_scorer().score_images("digits-test").metrics
    assert written == pytest.approx(dict(direct), rel=1e-5)
    assert written["accuracy"] > 0.98
    assert "FD-digits of 10 real half-splits" in capsys.readouterr().out


def test_the_scripts_take_the_newest_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = MaxViTGenerator(16, 1, 10, width=16, head_dim=8, latent_dim=8, latent_tokens=4, norm="layer")
    for name in ("old", "new"):
        export_model(generator, tmp_path / "runs" / name / "generator.safetensors", {"source": "digits-train"})
    monkeypatch.chdir(tmp_path)
    sample.main(["--n=12", "--grid=grid.png", "--cpu=true", "--threads=1"])
    assert "runs/new/generator.safetensors" in capsys.readouterr().out
    assert len(list((tmp_path / "samples" / "new").glob("*/*.png"))) == 12
    evaluate.main(["--n=80", "--cpu=true", "--threads=1"])
    output = capsys.readouterr().out
    assert "80 images of runs/new/generator.safetensors against 1797 of digits" in output


def test_the_script_names_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (there := tmp_path / "there.npz").touch()
    for arguments, words in (
        (["--fakes=nowhere"], "fakes can't be used: data.source nowhere does not exist"),
        (["--fakes=digits-test", "--reference=nowhere"], "set extractor (cifar10, digits, or the file"),
        (
            ["--fakes=digits-test", "--reference=nowhere", "--extractor=digits"],
            "reference can't be used: data.source now",
        ),
        *(
            (["--fakes=digits-test", option], "how to draw from a generator, and digits-test is none")
            for option in ("--n=12", "--truncation=1", "--seed=3", "--labels=uniform")
        ),
        ([f"--fakes={tmp_path}", "--extractor=inception", "--reference=digits"], "there is no extractor inception"),
        (
            [f"--fakes={tmp_path}", "--extractor=cifar10"],
            "scores by cifar10 need images to compare with: set reference",
        ),
        ([f"--fakes={tmp_path}", "--protocol=hit-val50k"], "compares with the 50,000 ImageNet validation images: name"),
        (["--fakes=digits-test", f"--output={tmp_path}"], "is a folder: name a .json file in it"),
        (
            ["--fakes=digits-test", "--metrics=[fid]"],
            "like [frechet, spatial_frechet], of frechet, spatial_frechet, half_split",
        ),
        (["--fakes=digits-test", f"--save_reference={there}"], "there.npz exists: name another file, or remove"),
        (["--n=1"], "n must be at least 2"),
    ):
        with pytest.raises(SystemExit) as stop:
            evaluate.main([*arguments, "--cpu=true", "--threads=1"])
        assert stop.value.code in (1, 2)
        assert words in capsys.readouterr().err


def test_a_generator_of_other_images_is_not_judged_by_digits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = MaxViTGenerator(16, 3, 0, width=16, head_dim=8, latent_dim=8, latent_tokens=4)
    export_model(generator, tmp_path / "run" / "generator.safetensors", {"source": "photos.zip"})
    with pytest.raises(SystemExit):
        evaluate.main([f"--fakes={tmp_path}/run", "--cpu=true", "--threads=1"])
    said = capsys.readouterr().err
    assert "there is no embedded extractor for photos.zip: set extractor (cifar10, digits" in said
    assert "and in reference" not in said  # that is what it was trained on
    # What it was trained on is no reference of a protocol that has another.
    for protocol, reference in (
        ("hit-val50k", "the 50,000 ImageNet validation images"),
        ("adm-train-npz", "means and covariances that ADM published"),
    ):
        with pytest.raises(SystemExit):
            evaluate.main([f"--fakes={tmp_path}/run", f"--protocol={protocol}", "--cpu=true", "--threads=1"])
        assert f"compares with {reference}: name them in reference" in capsys.readouterr().err


def test_an_output_of_no_known_format_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = MaxViTGenerator(8, 1, 0, width=16, head_dim=8, latent_dim=8, latent_tokens=4)
    export_model(generator, tmp_path / "run" / "generator.safetensors", {})
    with pytest.raises(SystemExit):
        sample.main([f"--model={tmp_path}/run", f"--output={tmp_path}/x.jpg", "--cpu=true", "--threads=1"])
    assert "unknown ending: name a folder, a .zip or an .npz" in capsys.readouterr().err
    for option in ("--refresh=true", "--resamples=3", "--metrics=[frechet]", "--scores=s.json", "--extractor=digits"):
        with pytest.raises(SystemExit):
            sample.main([f"--model={tmp_path}/run", option, "--cpu=true", "--threads=1"])
        name = option[2:].partition("=")[0]
        assert f"set reference, or leave {name} out" in capsys.readouterr().err
    sample.main([f"--model={tmp_path}/run", "--n=3", f"--output={tmp_path}/x", "--cpu=true", "--threads=1"])
    assert len(list((tmp_path / "x").glob("*.png"))) == 3


# Kept references


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sources that were extracted, one after another."""
    found: list[str] = []
    extract = Scorer._extract

    def counted(self: Scorer, dataset: ImageDataset, kept: Any) -> Any:
        found.append(dataset.config.source)
        return extract(self, dataset, kept)

    monkeypatch.setattr(Scorer, "_extract", counted)
    return found


def digits_zip(path: Path, changed: int | None = None, labels: bool = True) -> str:
    dataset = ImageDataset(DataConfig(source="digits-test"))
    images, classes = next(evaluation_batches(dataset, 100, range(100)))
    if changed is not None:
        images[changed, 0, 0, 0] ^= 1
    write_images([Batch(range(100), images, classes if labels else None)], path, overwrite=True)
    return str(path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*singular")
def test_a_kept_reference_gives_bit_identical_scores_and_never_stands_for_another(
    tmp_path: Path, passes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reals, cache = digits_zip(tmp_path / "reals.zip"), str(tmp_path / "cache")
    fakes = digits_zip(tmp_path / "fakes.zip", changed=3)

    def score(**settings: Any) -> Scores:
        passes.clear()
        return without_times(digits_scorer(reference=reals, cache=cache, **settings).score_images(fakes))

    first = score()
    assert passes == [reals, fakes]
    assert score() == first
    assert passes == [fakes]
    assert score(refresh=True) == first
    assert passes == [reals, fakes]
    assert score(metrics=("frechet",)).metrics["fd"] == first.metrics["fd"]
    assert passes == [reals, fakes]  # without features it is kept apart

    digits_zip(tmp_path / "reals.zip", changed=7)
    changed = score()
    assert passes == [reals, fakes]
    assert changed.metrics["fd"] != first.metrics["fd"]
    assert changed.reference_digest != first.reference_digest
    digits_zip(tmp_path / "reals.zip", labels=False)
    assert score().reference_digest not in (first.reference_digest, changed.reference_digest)
    assert passes[0] == reals
    digits_zip(tmp_path / "reals.zip")
    assert score() == first
    assert passes == [fakes]

    monkeypatch.setattr("maxgan.evaluation.reference.code_version", lambda: "another")
    score()
    assert passes == [reals, fakes]
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"can't be read .* or set refresh"):
        score()
    assert score(refresh=True).metrics == first.metrics
    passes.clear()
    digits_scorer(reference=reals, cache="off").score_images(fakes)
    assert passes == [reals, fakes]


@pytest.mark.filterwarnings("ignore:.*singular")
def test_scores_do_not_hang_on_a_place_to_keep_the_reference(
    tmp_path: Path, passes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reals = digits_zip(tmp_path / "reals.zip")
    settings = {"reference": reals, "metrics": ("frechet",)}
    kept = digits_scorer(cache=str(tmp_path / "cache"), **settings).score_images(reals)
    assert passes == [reals, reals]
    # A file where the folder should be stands for a folder that nothing can be written to.
    with pytest.warns(UserWarning, match=r"statistics of .*reals.zip are not kept \(.*set cache to another folder"):
        found = digits_scorer(cache=reals, **settings).score_images(reals)
    assert without_times(found) == without_times(kept)
    # A machine that lacks the file must not leave those that have it waiting: all extract.
    passes.clear()
    monkeypatch.setattr(evaluation, "gather_object", lambda found: [*found, False])
    digits_scorer(cache=str(tmp_path / "cache"), **settings).score_images(reals)
    assert passes == [reals, reals]


def test_another_protocol_never_finds_a_reference(tmp_path: Path, classifier: Any, passes: list[str]) -> None:
    # Two extractors that differ in their weights alone, and one resize of the same weights.
    for seed, resize in ((0, "clean"), (1, "clean"), (0, "tf1")):
        torch.manual_seed(seed)
        module = classifier(resolution=8)
        nn.init.normal_(module.head.weight)
        extractor = ClassifierExtractor(module, "pixels", resize=resize)
        data = DataConfig(source="digits-test", resolution=16, channels=1)
        scorer = Scorer(feature_protocol(extractor), extractor, data, Accelerator(cpu=True), cache=tmp_path)
        assert scorer.real.count == 360
    assert passes == ["digits-test"] * 3
    assert len(list(tmp_path.iterdir())) == 3


def test_a_reference_is_shared_as_one_file(tmp_path: Path, classifier: Any) -> None:
    scorer = digits_scorer()
    expected = scorer.score_images("digits-test")
    file = tmp_path / "digits.npz"
    save_reference(file, scorer.real, scorer.extractor.resize)
    shared = make_scorer(ScoreConfig(reference=str(file)), "digits", Accelerator(cpu=True), "digits-test").score_images(
        "digits-test"
    )
    assert without_times(shared) == without_times(expected)
    with np.load(file) as content:  # without pickle, as ADM and clean-fid name things
        np.testing.assert_array_equal(content["sigma"], scorer.real.covariance)
        assert content["mu"].shape == (scorer.real.dim,)
        assert content["feats"].shape == (1797, scorer.real.dim)
    other = ClassifierExtractor(classifier(resolution=16), "pixels")
    with pytest.raises(ValueError, match=r"was made by extractor digits .* not pixels"):
        Scorer(feature_protocol(other), other, DataConfig(source=str(file)), Accelerator(cpu=True))


def test_statistics_of_other_tools_are_taken_at_their_word(tmp_path: Path, passes: list[str]) -> None:
    scorer = digits_scorer()
    expected = scorer.score_images("digits-test").metrics["fd"]
    np.savez(tmp_path / "adm.npz", mu=scorer.real.mean, sigma=scorer.real.covariance)
    settings = {"reference": str(tmp_path / "adm.npz"), "metrics": ("frechet",)}
    found = digits_scorer(**settings).score_images("digits-test")
    assert found.metrics["fd"] == expected
    assert found.num_reals is None
    passes.clear()
    for metric in ("kernel", "half_split"):
        with pytest.raises(ValueError, match=r"reference .*adm.npz is not enough: .* holds no features"):
            digits_scorer(reference=str(tmp_path / "adm.npz"), metrics=(metric,)).score_images("digits-test")
    assert passes == []  # the fakes were spared
    np.savez(tmp_path / "feats.npz", mu=scorer.real.mean, sigma=scorer.real.covariance, feats=scorer.real.features)
    assert (
        digits_scorer(reference=str(tmp_path / "feats.npz"), metrics=("frechet",))
        .score_images("digits-test")
        .metrics["fd"]
        == expected
    )
    np.savez(tmp_path / "bad.npz", mu=np.zeros(3), sigma=np.eye(4))
    with pytest.raises(ValueError, match=r"not \(3,\) and \(4, 4\)"):
        digits_scorer(reference=str(tmp_path / "bad.npz"))
    np.savez(tmp_path / "evil.npz", mu=np.array([print], dtype=object), sigma=np.eye(1))
    with pytest.raises(ValueError, match="pickled objects"):
        digits_scorer(reference=str(tmp_path / "evil.npz"))


@pytest.mark.filterwarnings("ignore:.*singular")
def test_one_bar_counts_up_to_all_images_that_are_extracted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float, float | None]] = []

    class Recording(tqdm):
        def update(self, n: float | None = 1) -> bool | None:
            result = super().update(n)
            seen.append((self.n, self.total))
            return result

    monkeypatch.setattr(evaluation, "tqdm", Recording)
    settings = {"reference": digits_zip(tmp_path / "reals.zip"), "cache": str(tmp_path), "metrics": ("frechet",)}
    for expected in (100 + 360, 360):  # the second time the reference is kept
        seen.clear()
        scorer = digits_scorer(**settings)
        with scorer.showing("scores"):
            scorer.score_images("digits-test")
        assert {total for _, total in seen} == {expected}  # from the first batch on
        assert seen[-1][0] == expected
    seen.clear()
    with scorer.showing():
        scorer.score_generator(Constant(), "constant", 50)
    scorer.score_generator(Constant(), "constant", 50)  # nothing is shown
    assert seen == [(50, 50)]
    monkeypatch.setattr(scorer, "accelerator", SimpleNamespace(is_main_process=True, num_processes=3))
    with scorer.showing():
        scorer._expect(9)
        scorer._advance(2)
    assert seen[-1] == (6, 9)


# Classes


def test_classes_are_compared_by_name(tmp_path: Path) -> None:
    dataset = ImageDataset(DataConfig(source="digits-test"))
    images, labels = next(evaluation_batches(dataset, 360, range(360)))

    def folder(name: str, classes: dict[str, int], first: int) -> str:
        for called, digit in classes.items():
            (tmp_path / name / called).mkdir(parents=True)
            for i, image in enumerate(images[labels == digit][first : first + 6]):
                Image.fromarray(image[0].numpy()).save(tmp_path / name / called / f"{i}.png")
        return str(tmp_path / name)

    def score(reals: str, fakes: str) -> Scores:
        settings = ScoreConfig(extractor="digits", reference=reals, metrics=("class_frechet",), cache="off")
        return make_scorer(settings, "", Accelerator(cpu=True), fakes).score_images(fakes)

    reals = folder("reals", {"one": 1, "seven": 7, "two": 2}, 0)
    with pytest.warns(UserWarning, match="singular"):
        whole = score(reals, folder("whole", {"one": 1, "seven": 7, "two": 2}, 6)).class_fd
        # Without the first class, each other has the number of the one before it.
        part = score(reals, folder("part", {"seven": 7, "two": 2}, 6)).class_fd
    assert list(whole) == [0, 1, 2]
    assert part == pytest.approx({1: whole[1], 2: whole[2]}, rel=1e-5)
    with pytest.raises(ValueError, match=r"'deux' is none of the classes one, seven, two: call them alike"):
        score(reals, folder("others", {"deux": 2, "seven": 7}, 6))


# Spatial features


def test_spatial_features_have_a_distance_of_their_own(tmp_path: Path, classifier: Any) -> None:
    model = classifier(resolution=8)
    extractor = ClassifierExtractor(model, "pixels", spatial=lambda x: (model.pooled(x), x[:, 0, :3].flatten(1)))
    protocol = replace(feature_protocol(extractor), metrics=("frechet", "spatial_frechet"))

    def score(reference: str) -> dict[str, float]:
        data = DataConfig(source=reference, resolution=8, channels=1)
        scorer = Scorer(protocol, extractor, data, Accelerator(cpu=True), cache=tmp_path / "cache")
        found = scorer.score_images("digits-test").metrics
        save_reference(tmp_path / "reference.npz", scorer.real, extractor.resize)
        return dict(found)

    first = score("digits-train")
    rows = []
    for source in ("digits-train", "digits-test"):
        dataset = ImageDataset(DataConfig(source=source, resolution=8, channels=1))
        images, _ = next(evaluation_batches(dataset, len(dataset), range(len(dataset))))
        rows.append((images[:, 0, :3].flatten(1).double() / 127.5 - 1).numpy())
    moments = [(x.mean(0), np.cov(x, rowvar=False)) for x in rows]
    # Float32 grey levels, whose covariance is nearly singular at the border.
    assert first["sfd"] == pytest.approx(frechet_distance(*moments[0], *moments[1]), rel=1e-4)
    assert abs(first["sfd"] / first["fd"] - 1) > 0.1
    assert score("digits-train") == first  # kept
    with np.load(tmp_path / "reference.npz") as file:
        arrays = {name: file[name] for name in ("mu", "sigma", "mu_s", "sigma_s")}
    np.testing.assert_allclose(arrays["mu_s"], moments[0][0], atol=1e-6)
    np.testing.assert_allclose(arrays["sigma_s"], moments[0][1], atol=1e-6)
    np.savez(tmp_path / "adm.npz", **arrays)
    assert score(str(tmp_path / "adm.npz")) == first
    np.savez(tmp_path / "plain.npz", mu=arrays["mu"], sigma=arrays["sigma"])
    with pytest.raises(ValueError, match=r"plain.npz holds no statistics of spatial features \(mu_s, sigma_s\)"):
        score(str(tmp_path / "plain.npz"))
    np.savez(tmp_path / "bad.npz", **{**arrays, "sigma_s": np.eye(2)})
    with pytest.raises(ValueError, match=r"mu_s and sigma_s of .* not \(24,\) and \(2, 2\)"):
        score(str(tmp_path / "bad.npz"))
    with pytest.raises(ValueError, match="extractor digits gives no spatial features"):
        digits_scorer(metrics=("spatial_frechet",), cache="off").score_images("digits-test")


# Sources and settings


class Constant(nn.Module):
    """A "generator" of images between two grey levels, which remembers the classes it was asked for."""

    latent_dim, num_classes, resolution, channels = 4, 10, 16, 1

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []
        self.eval()

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        self.asked += labels.tolist()
        return z.mean(1).view(-1, 1, 1, 1).expand(-1, 1, 16, 16) * 0.1


def test_classes_follow_the_reference_or_are_uniform(tmp_path: Path) -> None:
    skewed = digits_zip(tmp_path / "reals.zip")
    reference = np.bincount(ImageDataset(DataConfig(source=skewed)).labels, minlength=10)
    generator = Constant()
    for how in ("reference", "uniform"):
        generator.asked.clear()
        scorer = make_scorer(
            ScoreConfig(reference=skewed, labels=how, metrics=("frechet",), cache="off"),
            "digits", Accelerator(cpu=True), generator,
        )  # fmt: skip
        found = scorer.score_generator(generator, "constant", 200, seed=3)
        assert len(generator.asked) == 200
        assert (np.bincount(generator.asked, minlength=10) == 2 * reference).all() == (how == "reference")
        expected = "as the reference" if how == "reference" else "uniform"
        assert found.sampling == {"seed": 3, "truncation": None, "labels": expected}


def test_a_generator_that_fails_on_one_process_stops_all(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = digits_scorer(metrics=("frechet",), reference="digits-test", cache="off")
    _ = scorer.real
    told: list[Any] = []
    monkeypatch.setattr("maxgan.checkpoint.gather_object", lambda found: told.extend(found) or found)
    generator = Constant()
    monkeypatch.setattr(generator, "forward", lambda z, labels: torch.full((len(z), 1, 16, 16), torch.nan))
    with pytest.raises(ValueError, match="gives NaN or infinity for seeds 0 to 19"):
        scorer.score_generator(generator, "broken", 20)
    assert [is_mistake for is_mistake, _ in told] == [True]


def test_a_gpu_is_fed_by_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maxgan.runtime.available_cores", lambda: 7)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    extractor = load_extractor("digits")
    for device, workers in (("cpu", 0), ("cuda", 3)):
        accelerator: Any = SimpleNamespace(device=torch.device(device), num_processes=2)
        scorer = Scorer(feature_protocol(extractor), extractor, DataConfig(source="digits-test"), accelerator)
        assert scorer.dataset is not None
        assert (scorer.reference.workers, scorer.dataset.config.workers) == (workers, workers)


def test_a_protocol_without_quantisation_shows_the_extractor_what_was_generated() -> None:
    seen: list[torch.dtype] = []

    class Watching(ClassifierExtractor):
        def __call__(self, images: Tensor) -> Any:
            seen.append(images.dtype)
            return super().__call__((images.float() * 127.5 + 128).byte() if images.is_floating_point() else images)

    extractor = load_extractor("digits")
    extractor.__class__ = Watching
    data = DataConfig(source="digits-test")
    for quantisation in ("uint8", "none"):
        seen.clear()
        protocol = replace(feature_protocol(extractor), quantisation=quantisation, metrics=("frechet",))
        scorer = Scorer(protocol, extractor, data, Accelerator(cpu=True))
        scorer.score_generator(Constant(), "constant", 20)
        assert seen[0] == torch.uint8  # of the reference
        assert seen[-1] == (torch.uint8 if quantisation == "uint8" else torch.float32)


@pytest.mark.slow
def test_images_in_an_npz_or_in_shards_score_as_the_same_in_a_zip(tmp_path: Path) -> None:
    archive, arrays = digits_zip(tmp_path / "a.zip"), digits_zip(tmp_path / "a.npz")
    settings = {"metrics": ("frechet", "accuracy")}
    shards = str(tmp_path / "shards")
    pack(PackConfig(source=archive, dest=shards, resolution=16, shard_images=40, workers=0))
    one, two, three = (digits_scorer(**settings).score_images(source) for source in (archive, arrays, shards))
    assert one.metrics == two.metrics == three.metrics
    assert one.metrics["accuracy"] > 0.9
    assert all(digits_scorer(reference=source, **settings).real.count == 100 for source in (arrays, shards))
    evaluate.main([f"--fakes={shards}/*.tar", f"--output={tmp_path}/s.json", "--metrics=[frechet,accuracy]",
                   "--cpu=true", "--threads=1"])  # fmt: skip
    assert json.loads((tmp_path / "s.json").read_text())["metrics"] == pytest.approx(one.metrics)


def test_sample_scores_what_it_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = MaxViTGenerator(16, 1, 10, width=16, head_dim=8, latent_dim=8, latent_tokens=4, norm="layer")
    export_model(generator, tmp_path / "g.safetensors", {"source": "digits-train"})
    common = [f"--reference={digits_zip(tmp_path / 'reals.zip')}", "--cpu=true", "--threads=1", "--seed=5"]
    metrics = "--metrics=[frechet,half_split,precision_recall,density_coverage,class_frechet]"
    sample.main([f"--model={tmp_path}/g.safetensors", f"--output={tmp_path}/fakes.npz", "--n=150", "--extractor=digits",
                 f"--scores={tmp_path}/one.json", metrics, *common])  # fmt: skip
    evaluate.main([f"--fakes={tmp_path}/g.safetensors", "--n=150", f"--output={tmp_path}/two.json",
                   f"--save_reference={tmp_path}/reference.npz", metrics, *common])  # fmt: skip
    evaluate.main([f"--fakes={tmp_path}/fakes.npz", f"--output={tmp_path}/three.json", metrics,
                   f"--reference={tmp_path}/reference.npz", "--extractor=digits", "--cpu=true",
                   "--threads=1"])  # fmt: skip
    one, two, three = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two", "three"))
    assert one["metrics"] == pytest.approx(two["metrics"], rel=1e-4)
    assert one["metrics"] == pytest.approx(three["metrics"], rel=1e-4)
    assert set(one["class_fd"]) == {str(digit) for digit in range(10)}
    assert (one["reference_digest"], one["fake_digest"]) == (two["reference_digest"], two["fake_digest"])
    assert one["sampling"] == {"seed": 5, "truncation": None, "labels": "as the reference"}
    assert three["reference_digest"] == one["reference_digest"]
    assert "FD-digits within a class" in capsys.readouterr().out

    def extract(*_: Any) -> None:
        raise AssertionError("the reference is extracted although the samples are there")

    monkeypatch.setattr(Scorer, "_extract", extract)
    for option, words in (
        (f"--output={tmp_path}/fakes.npz", "fakes.npz exists: name another file, or set overwrite"),
        (f"--scores={tmp_path}", "is a folder: name a .json file in it"),
    ):
        with pytest.raises(SystemExit):
            sample.main([f"--model={tmp_path}/g.safetensors", "--n=150", "--extractor=digits", "--cache=off",
                         f"--output={tmp_path}/others.npz", option, *common])  # fmt: skip
        assert words in capsys.readouterr().err


def test_images_of_mixed_sizes_are_named_by_a_published_protocol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "choose_protocol", lambda *_: (PROTOCOLS["hit-val50k"], load_extractor("digits")))
    for side in (16, 20):
        Image.new("L", (side, side)).save(tmp_path / f"{side}.png")
    settings = ScoreConfig(protocol="hit-val50k", reference="digits")
    with pytest.raises(ValueError, match=r"20.png has 20 x 20 pixels while .*16.png has 16 x 16"):
        make_scorer(settings, "", Accelerator(cpu=True), str(tmp_path))
    (tmp_path / "20.png").unlink()
    scorer = make_scorer(settings, "", Accelerator(cpu=True), str(tmp_path))
    assert (scorer.reference.resolution, scorer.reference.crop_fraction) == (16, 0.875)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="contains no images"):
        make_scorer(settings, "", Accelerator(cpu=True), str(empty))
