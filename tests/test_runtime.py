from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from maxgan.runtime import start

PROGRAM = """
import resource
import torch
from maxgan.runtime import start

start(threads=1, cpu=True)
faults = []
for _ in range(40):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sum(count >= 32 for count in faults))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is told to keep memory")
def test_large_tensors_take_memory_that_the_process_has() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    # 64 MB anew are 16,384 pages, or 32 huge ones: each of the 40 times without our settings, with them only until the
    # heap has settled, which takes two to four, by what else the process has allocated.
    assert int(done.stdout) < 10


@pytest.mark.parametrize("name", ["FSDP", "DeepSpeed", "Megatron-LM"])
def test_what_divides_the_weights_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name.upper().replace('-', '_')}", "true")
    with pytest.raises(ValueError, match=f"^{name} divides the weights .*: set distributed_type to MULTI_GPU"):
        start(threads=1, cpu=True)
