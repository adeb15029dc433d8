"""The scripts as a user starts them: real processes, one or two, killed and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from cluster import PATIENCE, ends, start_each

from maxgan.training.run import read_metrics

ROOT = Path(__file__).parents[1]
TINY = [
    "--generator.latent_dim=8", "--generator.width=16", "--generator.head_dim=8", "--generator.latent_tokens=4",
    "--generator.norm=layer", "--discriminator.max_width=16", "--training.batch_size=16", "--run.tracker=none",
    "--run.log_every=16", "--run.threads=1", "--loss.r2_gamma=0.1",
]  # fmt: skip
TWO = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--"]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]
pytestmark = pytest.mark.slow


def run(command: list[str], folder: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert not check or result.returncode == 0, result.stdout + result.stderr
    return result


def test_two_processes_train_sample_and_evaluate(tmp_path: Path) -> None:
    train = [str(ROOT / "train_gan.py"), *TINY, "--training.images=64", "--evaluation.images=50"]
    train.append("--generator.mapping_layers=1")
    output = run([*TWO, *train, "--run.directory=two"], tmp_path).stdout
    assert output.count("finished: ") == output.count("ratio of the two") == 1, output
    run([*LAUNCH, *train, "--run.directory=one"], tmp_path)
    # Latents, labels and data of an update don't depend on the number of processes; sums do, in their last bits.
    one, two = (read_metrics(tmp_path / name / "metrics.jsonl")[0] for name in ("one", "two"))
    for name in ("loss_discriminator", "loss_generator", "r1", "r2", "real_logit", "fake_logit"):
        assert two[name] == pytest.approx(one[name], rel=1e-3, abs=1e-4), name

    model = "--model=two/generator.safetensors"
    sample = [str(ROOT / "sample.py"), model, "--n=21", "--threads=1", "--truncation=0.5"]
    run([*TWO, *sample, "--output=two.npz"], tmp_path)
    run([sys.executable, *sample, "--output=one.npz", "--batch_size=5"], tmp_path)
    with np.load(tmp_path / "one.npz") as a, np.load(tmp_path / "two.npz") as b:
        assert np.array_equal(a["labels"], b["labels"])
        assert np.abs(a["arr_0"].astype(int) - b["arr_0"].astype(int)).max() <= 1

    score = [str(ROOT / "evaluate.py"), "--fakes=two/generator.safetensors", "--n=50", "--threads=1"]
    run([*TWO, *score, "--output=two.json"], tmp_path)
    run([sys.executable, *score, "--output=one.json"], tmp_path)
    first, second = (json.loads((tmp_path / name).read_text())["metrics"] for name in ("one.json", "two.json"))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert second[name] == pytest.approx(value, rel=1e-2, abs=1e-3), name


def test_two_processes_train_hits_way_as_one_does(tmp_path: Path) -> None:
    options = [
        "--data.resolution=32", "--networks.generator=hit", "--networks.discriminator=maxvit", "--hit.latent_dim=8",
        "--hit.latent_tokens=4", "--hit.widths=[16, 16, 8]", "--hit.heads=[4, 2, 2]", "--hit.norm_group=4",
        "--maxvit_discriminator.width=8", "--maxvit_discriminator.head_dim=4", "--maxvit_discriminator.depth=1",
        "--optim.updates=simultaneous", "--loss.bcr_real=1", "--loss.bcr_fake=1", "--loss.r2_gamma=1",
        "--loss.penalty=finite_difference", "--augment.policy=ada,color", "--augment.target=-0.9",
        "--augment.adapt_images=200", "--training.batch_size=16", "--training.accumulation=2", "--training.images=96",
        "--run.tracker=none", "--run.log_every=16",
        "--run.threads=1", "--evaluation.enabled=false",
    ]  # fmt: skip
    train = [str(ROOT / "train_gan.py"), *options]
    run([*TWO, *train, "--run.directory=two"], tmp_path)
    run([sys.executable, *train, "--run.directory=one"], tmp_path)
    one, two = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert len(one) == len(two) == 6
    assert [line["augment_probability"] for line in two] == pytest.approx([0, 0, 0, 0, 0.32, 0.32])
    for a, b in zip(one, two, strict=True):
        for name in ("loss_discriminator", "loss_generator", "r1", "r2", "bcr_real", "bcr_fake", "real_logit"):
            assert b[name] == pytest.approx(a[name], rel=1e-2, abs=1e-3), name


SCORE = """
import sys
from accelerate import Accelerator
from torch import nn
from maxgan.config import DataConfig
from maxgan.evaluation.evaluate import Scorer
from maxgan.evaluation.extractors import ClassifierExtractor
from maxgan.evaluation.protocols import customised, feature_protocol

class Pixels(nn.Module):
    # Features and logits that hang on nothing but their own image, to the last bit.
    resolution, channels, num_classes = 8, 1, 10
    def pooled(self, x):
        return x.flatten(1)
    def classify(self, pooled):
        return pooled[:, 20:30] * 3

extractor = ClassifierExtractor(Pixels(), "pixels", spatial=lambda x: (x.flatten(1), x[:, 0, :4].flatten(1)))
metrics = ("frechet", "spatial_frechet", "half_split", "inception_score", "kernel", "precision_recall",
           "density_coverage", "class_frechet", "accuracy")
protocol = customised(feature_protocol(extractor), metrics, 3, 4)
data = DataConfig(source="digits", resolution=8, channels=1)
scorer = Scorer(protocol, extractor, data, Accelerator(cpu=True), batch_size=int(sys.argv[2]))
scores = scorer.score_images("digits-test")
if scorer.accelerator.is_main_process:
    open(sys.argv[1], "w").write(scores.to_json())
scorer.accelerator.end_training()
"""


def test_the_same_features_have_the_same_scores_on_any_number_of_processes(tmp_path: Path) -> None:
    (script := tmp_path / "score.py").write_text(SCORE)
    found = []
    for processes, batch_size in ((1, 128), (1, 7), (2, 128), (3, 50)):
        launch = (
            [*TWO[:3], f"--nproc_per_node={processes}", "--", str(script)] if processes > 1 else [TWO[0], str(script)]
        )
        run([*launch, "scores.json", str(batch_size)], tmp_path)
        found.append(json.loads((tmp_path / "scores.json").read_text())["metrics"])
    assert len(found[0]) == 18
    for other in found[1:]:
        # What is left is eigenvalues by another number of threads, and the order of the Inception Score's sums.
        assert other == pytest.approx(found[0], rel=1e-10)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_launcher_saves_and_the_same_command_goes_on(tmp_path: Path, number: int) -> None:
    command = [*LAUNCH, str(ROOT / "train_gan.py"), *TINY, "--evaluation.enabled=false", "--run.directory=run"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [*command, "--training.images=400000"], cwd=tmp_path, env=environment, start_new_session=True
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    _wait_for(lambda: len(read_metrics(metrics)) >= 3)
    if number == signal.SIGINT:  # Ctrl-C reaches the whole foreground group
        os.killpg(process.pid, number)
    else:  # `kill` reaches the launcher alone, which passes nothing on
        process.send_signal(number)
    process.wait(PATIENCE)
    _wait_for(lambda: any((tmp_path / "run" / "checkpoints").glob("images-*/manifest.json")))
    seen = max(int(path.name.split("-")[1]) for path in (tmp_path / "run" / "checkpoints").glob("images-*"))
    again = subprocess.Popen(
        [*command, "--training.images=400000"], cwd=tmp_path, env=environment, start_new_session=True,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert again.stdout is not None
    # Before it may stand that the first is still at its end.
    told = next((line for line in again.stdout if "going on from" in line), "")
    os.killpg(again.pid, signal.SIGKILL)
    again.wait()
    again.stdout.close()
    assert f"going on from run/checkpoints/images-{seen:09d}" in told


TRAIN = [str(ROOT / "train_gan.py"), *TINY, "--evaluation.enabled=false"]


def test_a_signal_to_one_process_stops_all_at_one_update_and_another_number_of_them_goes_on(tmp_path: Path) -> None:
    options = ["--training.images=100000", "--run.checkpoint_every=100000", "--run.directory=run"]
    running = start_each(tmp_path, 2, *TRAIN, *options)
    metrics = tmp_path / "run" / "metrics.jsonl"
    _wait_for(lambda: len(read_metrics(metrics)) >= 3)
    running[1].send_signal(signal.SIGUSR1)
    (code, said, errors), (other, _, other_errors) = ends(running)
    assert (code, other) == (75, 75), errors + other_errors
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    seen = int(saved.name.split("-")[1])
    assert read_metrics(metrics)[-1]["images"] == seen
    assert f"stopped by a signal at {seen} images, all saved" in said

    (alone,) = start_each(tmp_path, 1, *TRAIN, *options)
    _wait_for(lambda: read_metrics(metrics)[-1]["images"] > seen)
    alone.send_signal(signal.SIGTERM)
    ((code, said, errors),) = ends([alone])
    assert code == 75, errors
    assert f"{saved.relative_to(tmp_path)} was saved by 2 processes and goes on with 1" in said
    assert "not bit for bit the same" in said


def test_every_process_of_a_training_gets_the_signal_of_a_cluster(tmp_path: Path) -> None:
    """Its decoding workers are no exception."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 3, 16, 16), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", noise.transpose(0, 2, 3, 1))
    options = [
        "--data.source=images.npz", "--data.resolution=8", "--data.crop=random", "--data.crop_fraction=0.9",
        "--data.workers=2", "--training.images=100000", "--run.directory=run", "--run.checkpoint_every=100000",
    ]  # fmt: skip
    command = [sys.executable, str(ROOT / "train_gan.py"), *TINY, *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True)
    _wait_for(lambda: len(read_metrics(tmp_path / "run" / "metrics.jsonl")) >= 3)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(PATIENCE) == 75
    assert any((tmp_path / "run" / "checkpoints").glob("images-*/manifest.json"))


def test_the_launcher_does_not_cost_a_core() -> None:
    code = "import torch; from maxgan.runtime import start; start(); print(torch.get_num_threads())"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert int(result.stdout.split()[-1]) == len(os.sched_getaffinity(0))


def _wait_for(condition: object, seconds: float = PATIENCE) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
