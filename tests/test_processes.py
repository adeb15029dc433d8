"""The scripts as a user starts them: real processes, one or two, killed and started again."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

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
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert not check or result.returncode == 0, result.stdout + result.stderr
    return result


def test_two_processes_train_sample_and_evaluate(tmp_path: Path) -> None:
    train = [str(ROOT / "train_gan.py"), *TINY, "--training.images=64", "--evaluation.images=50"]
    output = run([*TWO, *train, "--run.directory=two"], tmp_path).stdout
    assert output.count("finished: ") == output.count("ratio of the two") == 1, output
    run([*LAUNCH, *train, "--run.directory=one"], tmp_path)
    # Latents, labels and data of an update don't depend on the number of processes; sums do, in their last bits.
    one, two = (read_metrics(tmp_path / name / "metrics.jsonl")[0] for name in ("one", "two"))
    for name in ("loss_discriminator", "loss_generator", "r1", "r2", "real_logit", "fake_logit"):
        assert two[name] == pytest.approx(one[name], rel=1e-3, abs=1e-4), name

    model = "--model=two/generator.safetensors"
    sample = [str(ROOT / "sample.py"), model, "--n=21", "--threads=1"]
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
        "--optim.updates=simultaneous", "--loss.bcr_real=1", "--loss.bcr_fake=1", "--training.batch_size=16",
        "--training.accumulation=2", "--training.images=48", "--run.tracker=none", "--run.log_every=16",
        "--run.threads=1", "--evaluation.enabled=false",
    ]  # fmt: skip
    train = [str(ROOT / "train_gan.py"), *options]
    run([*TWO, *train, "--run.directory=two"], tmp_path)
    run([sys.executable, *train, "--run.directory=one"], tmp_path)
    one, two = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert len(one) == len(two) == 3
    for a, b in zip(one, two, strict=True):
        for name in ("loss_discriminator", "loss_generator", "r1", "bcr_real", "bcr_fake", "real_logit", "fake_logit"):
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

extractor = ClassifierExtractor(Pixels(), "pixels")
metrics = ("frechet", "half_split", "inception_score", "kernel", "precision_recall", "density_coverage",
           "class_frechet", "accuracy")
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
    assert len(found[0]) == 17
    for other in found[1:]:
        # A Fréchet distance is a small difference of traces, whose sums are of another order: 8e-10 was seen.
        assert other == pytest.approx(found[0], rel=1e-8)


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
    process.wait(60)
    _wait_for(lambda: any((tmp_path / "run" / "checkpoints").glob("images-*/manifest.json")))
    seen = max(int(path.name.split("-")[1]) for path in (tmp_path / "run" / "checkpoints").glob("images-*"))
    again = subprocess.Popen(
        [*command, "--training.images=400000"], cwd=tmp_path, env=environment, start_new_session=True,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert again.stdout is not None
    lines = [again.stdout.readline() for _ in range(3)]
    os.killpg(again.pid, signal.SIGKILL)
    again.wait()
    again.stdout.close()
    assert f"going on from run/checkpoints/images-{seen:09d}" in "".join(lines)


def test_killed_at_random_moments_a_run_ends_as_if_it_never_was(tmp_path: Path) -> None:
    options = ["--training.images=960", "--run.checkpoint_every=32", "--run.keep=2", "--evaluation.enabled=false"]
    command = [sys.executable, str(ROOT / "train_gan.py"), *TINY, *options]
    run([*command, "--run.directory=whole"], tmp_path)
    killed = [*command, "--run.directory=killed"]
    dice = random.Random(0)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    kills = 0
    for _ in range(3):
        process = subprocess.Popen(
            killed, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        before = len(read_metrics(tmp_path / "killed" / "metrics.jsonl"))
        _wait_for(lambda p=process, n=before: p.poll() is not None or _lines(tmp_path) > n + 2)  # type: ignore[misc]
        time.sleep(dice.random() * 0.3)
        if process.poll() is None:
            process.kill()
            kills += 1
        process.wait()
    assert kills
    run(killed, tmp_path)
    last = "checkpoints/images-000000960"
    for file in ("model.safetensors", "model_1.safetensors", "tensors.safetensors"):
        one, two = (load_file(tmp_path / name / last / file) for name in ("whole", "killed"))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)
    timed = {"seconds", "images_per_second"}
    logs = [
        [{k: v for k, v in line.items() if k not in timed} for line in read_metrics(tmp_path / name / "metrics.jsonl")]
        for name in ("whole", "killed")
    ]
    assert logs[0] == logs[1]


def test_the_launcher_does_not_cost_a_core() -> None:
    code = "import torch; from maxgan.runtime import start; start(); print(torch.get_num_threads())"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert int(result.stdout.split()[-1]) == len(os.sched_getaffinity(0))


def _lines(folder: Path) -> int:
    return len(read_metrics(folder / "killed" / "metrics.jsonl"))


def _wait_for(condition: object, seconds: float = 120) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
