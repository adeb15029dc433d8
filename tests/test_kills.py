"""A run that is killed (SIGKILL) at random moments, again and again: nothing is lost but the last interval.

`MAXGAN_KILLS=50 python -m pytest -m slow tests/test_kills.py -s` kills more often than the default of 10, and tells
where the kills fell.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

ROOT = Path(__file__).parents[1]
BATCH = 16
COMMAND = [
    "train_gan.py", "--generator.latent_dim=8", "--generator.width=16", "--generator.head_dim=8",
    "--generator.latent_tokens=4", "--generator.norm=layer", "--discriminator.max_width=16", "--loss.r2_gamma=0.1",
    f"--training.batch_size={BATCH}", "--training.images=400", "--run.tracker=none", "--run.threads=1",
    f"--run.log_every={BATCH}", f"--run.checkpoint_every={BATCH}", "--run.sample_every=160", "--evaluation.every=160",
    "--evaluation.images=20", "--evaluation.metrics=[frechet]", "--evaluation.reference=digits-test",
]  # fmt: skip
# Each life is a fork of a process that has imported everything: it starts at once, so that kills fall within the run.
PROGRAM = """
import json, os, random, signal, sys, time
from pathlib import Path
import matplotlib.backends.backend_agg, sklearn.datasets
import maxgan.training.gan_run
import train_gan
from maxgan.checkpoint import find_run_state
from maxgan.training.run import read_metrics

def start(directory):
    if pid := os.fork():
        return pid
    log = os.open("log", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(log, 1), os.dup2(log, 2)
    sys.argv = [*command, f"--run.directory={directory}"]
    code = 1
    try:
        code = train_gan.main()
    finally:
        sys.stdout.flush()
        os._exit(code)

def ended(pid):
    found, status = os.waitpid(pid, os.WNOHANG)
    if found:
        assert status == 0, Path("log").read_text()
    return found == pid

def finish(pid):
    while not ended(pid):
        time.sleep(0.005)

def look(directory):
    # Raises if every checkpoint is damaged; and no newest one may be, whatever was going on.
    state = find_run_state(directory / "checkpoints", sys.exit)
    logged = max([line["images"] for line in read_metrics(directory / "metrics.jsonl")], default=0)
    return state, logged - (int(state.name.split("-")[1]) if state else 0)

command, kills = json.loads(sys.argv[1]), int(sys.argv[2])
began = time.monotonic()
finish(start("whole/run"))
whole = time.monotonic() - began
dice = random.Random(int(sys.argv[3]))
course, lost, while_saving, went_on = 0, [], 0, 0
while len(lost) < kills:
    directory = Path(f"killed{course}/run")
    before = look(directory)[0]
    pid = start(directory)
    moment = time.monotonic() + dice.uniform(0, whole / 2)
    while not (over := ended(pid)) and time.monotonic() < moment:
        time.sleep(0.001)
    if over:
        course += 1
        continue
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    lost.append(look(directory)[1])
    while_saving += any((directory / "checkpoints").glob(".tmp-*"))
    said = Path("log").read_text()
    if "going on from" in said:
        assert f"going on from {before}" in said, (before, said)
        went_on += 1
finish(start(f"killed{course}/run"))
print(json.dumps({"lost": lost, "while_saving": while_saving, "went_on": went_on, "courses": course + 1}))
"""


@pytest.mark.slow
def test_a_run_killed_at_random_moments_loses_one_interval_at_most(tmp_path: Path) -> None:
    kills = int(os.environ.get("MAXGAN_KILLS", "10"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, json.dumps(COMMAND), str(kills), os.environ.get("MAXGAN_SEED", "0")]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=3600)
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    print(told)
    assert len(told["lost"]) == kills
    assert max(told["lost"]) <= BATCH
    assert told["went_on"] > 0
    whole, killed = tmp_path / "whole" / "run", sorted(tmp_path.glob("killed*/run"))
    assert len(killed) == told["courses"]
    last = "checkpoints/images-000000400"
    files = ["model.safetensors", "model_1.safetensors", "tensors.safetensors", "optimizer.bin", "optimizer_1.bin"]
    for directory in killed:
        for name in [*(f"{last}/{file}" for file in files), "samples/000000320.png"]:
            assert (directory / name).read_bytes() == (whole / name).read_bytes(), (directory, name)
        for name in ("generator.safetensors", "best.safetensors"):
            assert _exported(directory / name) == _exported(whole / name), (directory, name)
        assert without_times(directory) == without_times(whole)
        assert _fd(directory) == _fd(whole)
        assert not list(directory.rglob(".tmp-*"))


def without_times(directory: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in {"seconds", "images_per_second"}} for line in lines]


def _exported(path: Path) -> tuple[dict[str, str], dict[str, bytes]]:
    """Metadata, whose order in the file is random, and weights."""
    with safe_open(path, "numpy") as file:
        return dict(file.metadata()), {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118


def _fd(directory: Path) -> list[float]:
    files = [directory / "scores.json", *sorted((directory / "scores").iterdir())]
    return [json.loads(file.read_text())["metrics"]["fd"] for file in files]
