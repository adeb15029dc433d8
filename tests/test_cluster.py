"""What users of clusters start: the SLURM script under stand-ins for SLURM, and the configs of accelerate."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from cluster import PATIENCE, free_port

ROOT = Path(__file__).parents[1]

SRUN = """#!/usr/bin/env bash
# Two nodes of two tasks; gives the highest exit code, as srun does.
echo "srun ${*:1:2}, $SRUN_CPUS_PER_TASK cores a task" >> calls
shift 2
tasks=() highest=0
for rank in 0 1 2 3; do
    SLURM_PROCID=$rank SLURM_LOCALID=$((rank % 2)) "$@" &
    tasks+=($!)
done
for task in "${tasks[@]}"; do
    wait "$task"
    code=$?
    if [ $code -gt $highest ]; then highest=$code; fi
done
exit $highest
"""
SCONTROL = """#!/usr/bin/env bash
echo "scontrol $*" >> calls
if [ "$1" = show ]; then printf 'node7\\nnode8\\n'; fi
"""
PYTHON = """#!/usr/bin/env bash
echo "$RANK/$WORLD_SIZE $LOCAL_RANK/$LOCAL_WORLD_SIZE $MASTER_ADDR:$MASTER_PORT $1 $2" > "task-$RANK"
if [ "$RANK" = 2 ]; then exit $CODE; fi
"""


@pytest.mark.parametrize("code", [0, 1, 75])
def test_the_slurm_script_starts_every_task_and_queues_again_what_was_preempted(tmp_path: Path, code: int) -> None:
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("python", PYTHON)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    slurm = {
        "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_ID": "100003", "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_CPUS_PER_TASK": "6",
    }  # fmt: skip
    environment = {
        **os.environ, **slurm, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": str(tmp_path / "python"),
        "CODE": str(code),
    }  # fmt: skip
    command = ["bash", str(ROOT / "scripts" / "train.sbatch"), "train_gan.py", "--run.name=two words"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (code, "")
    for rank in range(4):
        told = (tmp_path / f"task-{rank}").read_text().strip()
        assert told == f"{rank}/4 {rank % 2}/2 node7:20003 train_gan.py --run.name=two words"
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[:2] == ["scontrol show hostnames node[7-8]", "srun --kill-on-bad-exit=0 --wait=60, 6 cores a task"]
    assert calls[2:] == (["scontrol requeue 100003"] if code == 75 else [])


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "accelerate").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_configs_are_accelerates(file: Path) -> None:
    config = load_config_from_file(str(file))  # an unknown key is an error
    assert config.distributed_type == "MULTI_GPU"
    assert config.num_processes % config.num_machines == 0
    assert yaml.safe_load(file.read_text())["mixed_precision"] == "no"


@pytest.mark.slow
def test_two_machines_train_together(tmp_path: Path) -> None:
    """The documented command, once for each machine; here both are this one, without GPUs."""
    train = [
        str(ROOT / "train_gan.py"), "--generator.latent_dim=8", "--generator.width=8", "--generator.head_dim=8",
        "--discriminator.max_width=8", "--training.images=16", "--training.batch_size=8", "--run.tracker=none",
        "--run.threads=1", "--evaluation.enabled=false", "--run.directory=run",
    ]  # fmt: skip
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    launch += [str(ROOT / "configs" / "accelerate" / "multi_node.yaml"), "--num_processes", "2"]
    launch += ["--main_process_ip", "127.0.0.1", "--main_process_port", str(free_port())]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    machines = [
        subprocess.Popen(
            [*launch, "--machine_rank", str(rank), *train], cwd=tmp_path, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    outputs = [machine.communicate(timeout=PATIENCE)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    manifest = yaml.safe_load((tmp_path / "run/checkpoints/images-000000016/manifest.json").read_text())
    assert manifest["processes"] == 2
