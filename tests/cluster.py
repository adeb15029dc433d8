"""Processes of one program, started as a cluster does: each by itself, without a launcher that would end the others."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# For what takes seconds on an idle machine, and minutes beside much other work.
PATIENCE = 900


def free_port() -> int:
    """Return a port of this machine that nobody uses."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def start_each(folder: Path, processes: int, *command: str) -> list[subprocess.Popen[str]]:
    """Start Python with the arguments `command` in as many processes that find each other."""
    port = free_port()
    started = []
    for rank in range(processes):
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port), "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
            "RANK": str(rank), "LOCAL_RANK": str(rank),
        }  # fmt: skip
        started.append(
            subprocess.Popen(
                [sys.executable, *command], cwd=folder, env=environment, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
    return started


def ends(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Return exit code, output and errors of each."""
    told = [process.communicate(timeout=PATIENCE) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, told, strict=True)]
