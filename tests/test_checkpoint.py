from __future__ import annotations

import errno
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from maxgan import files
from maxgan.checkpoint import (
    atomic_folder,
    atomic_path,
    find_run_state,
    load_run_state,
    remove_leftovers,
    save_run_state,
    together,
)

ROOT = Path(__file__).parents[1]


def fill_disk() -> None:
    """Write to a device that is always full."""
    with open("/dev/full", "wb", buffering=0) as stream:
        stream.write(b"x")


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_atomic_path_keeps_suffix_and_mode(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.npz"
    with atomic_path(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.suffix == ".npz"
        temporary.unlink(missing_ok=True)
        temporary.touch(mode=0o600)
        temporary.write_text("x")
        assert not path.exists()
    assert path.read_text() == "x"
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode
    assert names(path.parent) == ["a.npz"]


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt(), OSError(errno.EACCES, "no")])
def test_atomic_path_leaves_the_old_file_after_an_error(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(type(error)) as caught, atomic_path(path) as temporary:
        temporary.write_text("half")
        raise error
    assert caught.value is error
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("context", [atomic_path, atomic_folder])
def test_full_disk_is_said_in_one_sentence(tmp_path: Path, context: type) -> None:
    with pytest.raises(OSError, match=r"no space left .* to write .*/a: .* intact") as caught, context(tmp_path / "a"):
        fill_disk()
    assert caught.value.errno == errno.ENOSPC
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


def test_full_disk_is_seen_behind_messages_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # torch.save on a full disk: RuntimeError "unexpected pos 576 vs 534".
    with pytest.raises(RuntimeError, match="unexpected pos"), atomic_path(tmp_path / "a"):
        raise RuntimeError("unexpected pos 576 vs 534")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(OSError, match="no space left"), atomic_path(tmp_path / "a"):
        raise RuntimeError("unexpected pos 576 vs 534")


def test_atomic_folder_appears_whole_and_replaces_only_if_told(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with atomic_folder(folder) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "a").write_text("1")
        assert not folder.exists()
    assert (folder / "sub" / "a").read_text() == "1"
    with pytest.raises(ValueError, match=r"out exists and is not empty"), atomic_folder(folder):
        raise AssertionError
    with pytest.raises(RuntimeError), atomic_folder(folder, overwrite=True):
        raise RuntimeError
    assert (folder / "sub" / "a").read_text() == "1"
    with atomic_folder(folder, overwrite=True) as temporary:
        (temporary / "b").write_text("2")
    assert names(folder) == ["b"]
    (tmp_path / "empty").mkdir()
    with atomic_folder(tmp_path / "empty") as temporary:
        (temporary / "c").write_text("3")
    assert names(tmp_path / "empty") == ["c"]
    assert names(tmp_path) == ["empty", "out"]


def test_leftovers_of_killed_processes_are_removed(tmp_path: Path) -> None:
    program = (
        "import os, sys, signal; from maxgan.files import atomic_folder, atomic_path\n"
        "with atomic_path(sys.argv[1] + '/a') as t, atomic_folder(sys.argv[1] + '/b') as f:\n"
        "    t.write_text('x'); (f / 'x').write_text('x'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, check=False)
    (tmp_path / "kept").touch()
    assert len(names(tmp_path)) == 3
    remove_leftovers(tmp_path, tmp_path / "absent")
    assert names(tmp_path) == ["kept"]


class Run:
    """A small training: model with channels_last convolution and BatchNorm, Adam, schedule, EMA-like tensors."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.accelerator = Accelerator(cpu=True)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
        model.to(memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
        self.model, self.optimizer, self.schedule = self.accelerator.prepare(model, optimizer, schedule)
        self.accelerator.print = lambda *_: None

    def step(self, count: int) -> None:
        for _ in range(count):
            x = torch.randn(5, 3, 4, 4) + random.random() + float(np.random.rand())
            self.accelerator.backward(self.model(x).square().mean())
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.schedule.step()

    def state(self) -> dict[str, Tensor]:
        tensors = dict(self.model.state_dict())
        for i, (name, _) in enumerate(self.model.named_parameters()):
            for key, value in self.optimizer.optimizer.state_dict()["state"][i].items():
                tensors[f"{name}/{key}"] = value
        tensors["lr"] = torch.tensor(self.schedule.get_last_lr())
        return tensors


def test_a_resumed_run_is_bit_identical(tmp_path: Path) -> None:
    run = Run(0)
    run.step(3)
    extra = {"count": 3, "loss": 0.1, "text": "ü", "none": None}
    tensors = {"ema": torch.randn(4).double(), "n": torch.tensor(3), "image": torch.randn(1, 3, 4, 4).mT}
    folder = save_run_state(run.accelerator, tmp_path / "checkpoints", 12800, extra, tensors)
    assert folder == tmp_path / "checkpoints" / "images-000012800"
    run.step(3)

    other = Run(1)
    other.step(1)
    found = find_run_state(tmp_path / "checkpoints")
    assert found == folder
    got_extra, got_tensors = load_run_state(other.accelerator, found)
    assert got_extra == {"images_seen": 12800, **extra}
    assert got_tensors.keys() == tensors.keys()
    assert all(torch.equal(got_tensors[name], tensors[name]) for name in tensors)
    other.step(3)
    expected = run.state()
    assert len(expected) > 15
    for name, tensor in other.state().items():
        assert torch.equal(tensor, expected[name]), name


def test_rotation_keeps_the_newest_and_drops_an_abandoned_course(tmp_path: Path) -> None:
    run = Run(0)
    for images in (100, 200, 300, 1_000_000_000):
        save_run_state(run.accelerator, tmp_path, images, {}, {})
    assert names(tmp_path) == ["images-000000300", "images-1000000000"]
    (tmp_path / "images-1000000000" / "extra.json").write_text("[")
    # Going on from 300 and saving at 300 again replaces it; the damaged later one goes.
    (tmp_path / "images-other").mkdir()
    save_run_state(run.accelerator, tmp_path, 300, {"again": True}, {}, keep=1)
    assert names(tmp_path) == ["images-000000300", "images-other"]
    assert load_run_state(run.accelerator, tmp_path / "images-000000300")[0]["again"]


def test_rotation_keeps_the_best(tmp_path: Path) -> None:
    run = Run(0)
    for images in (100, 200, 300, 400):
        save_run_state(run.accelerator, tmp_path, images, {}, {}, keep=1, best=200 if images >= 200 else None)
    assert names(tmp_path) == ["images-000000200", "images-000000400"]
    # Going on from the best, all that came after it is given up.
    save_run_state(run.accelerator, tmp_path, 300, {}, {}, keep=1, best=200)
    assert names(tmp_path) == ["images-000000200", "images-000000300"]
    save_run_state(run.accelerator, tmp_path, 400, {}, {}, keep=1, best=400)
    assert names(tmp_path) == ["images-000000400"]


def damage_by_truncating(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as stream:
        stream.truncate(10)


def damage_by_flipping_a_bit(folder: Path) -> None:
    content = bytearray((folder / "optimizer.bin").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "optimizer.bin").write_bytes(content)


def test_damaged_checkpoints_are_passed_over(tmp_path: Path) -> None:
    run = Run(0)
    run.step(1)
    assert find_run_state(tmp_path / "absent") is None
    said: list[str] = []
    damages = [
        (damage_by_truncating, "model.safetensors has 10 bytes in place of"),
        (damage_by_flipping_a_bit, "optimizer.bin has changed since it was written"),
        (lambda folder: (folder / "random_states_0.pkl").unlink(), "random_states_0.pkl is missing"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json is missing or unreadable"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing or unreadable"),
    ]
    good = save_run_state(run.accelerator, tmp_path, 1, {}, {}, keep=9)
    for i, (damage, message) in enumerate(damages, start=2):
        folder = save_run_state(run.accelerator, tmp_path, i, {}, {}, keep=9)
        assert find_run_state(tmp_path, said.append) == folder
        assert said == []
        damage(folder)
        assert find_run_state(tmp_path, said.append) == good
        assert len(said) == 1
        assert str(folder) in said[0]
        assert message in said[0]
        said.clear()
        with pytest.raises(ValueError, match=message):
            load_run_state(run.accelerator, folder)
        shutil.rmtree(folder)
    damage_by_truncating(good)
    with pytest.raises(ValueError, match=r"every checkpoint in .* is damaged: .* remove them all to start anew$"):
        find_run_state(tmp_path, said.append)
    assert len(said) == 1


class Bomb:
    """Runs a command when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def retouch(folder: Path, name: str) -> None:
    """Make the manifest agree with a changed file, as an attacker would."""
    manifest = json.loads((folder / "manifest.json").read_text())
    file = folder / name
    manifest["files"][name] = {"size": file.stat().st_size, "crc32": zlib.crc32(file.read_bytes())}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("raw", [False, True], ids=["torch.save", "pickle"])
@pytest.mark.parametrize(
    "name",
    [
        "optimizer.bin",
        "scheduler.bin",
        "random_states_0.pkl",
        "scaler.pt",
        "pytorch_model.bin",
        "custom_checkpoint_0.pkl",
    ],
)
def test_no_file_of_a_checkpoint_can_run_code(tmp_path: Path, name: str, raw: bool) -> None:
    run = Run(0)
    run.step(1)
    folder = save_run_state(run.accelerator, tmp_path / "c", 1, {}, {})
    bomb = Bomb(tmp_path / "exploded")
    with (folder / name).open("wb") as stream:
        (pickle if raw else torch).__dict__["dump" if raw else "save"](bomb, stream)
    retouch(folder, name)
    if name == "pytorch_model.bin":
        # accelerate falls back to it where the safetensors file is missing.
        (folder / "model.safetensors").unlink()
        manifest = json.loads((folder / "manifest.json").read_text())
        del manifest["files"]["model.safetensors"]
        (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=name):
        load_run_state(run.accelerator, folder)
    assert not (tmp_path / "exploded").exists()
    torch.load(folder / name, weights_only=False) if not raw else pickle.loads((folder / name).read_bytes())
    assert (tmp_path / "exploded").exists()  # so the bomb was live


def test_a_checkpoint_of_another_network_is_refused_in_one_sentence(tmp_path: Path) -> None:
    run = Run(0)
    folder = save_run_state(run.accelerator, tmp_path, 1, {}, {})
    other = Run(0)
    other.accelerator._models[0][3] = nn.Linear(16, 3)
    with pytest.raises(ValueError, match=r"doesn't fit this run \(.*size mismatch.*\): start another run") as caught:
        load_run_state(other.accelerator, folder)
    assert "\n" not in str(caught.value)


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(0)
    good = save_run_state(run.accelerator, tmp_path, 1, {}, {})
    (tmp_path / ".tmp-images-000000002").mkdir()  # of a killed run
    (tmp_path / ".tmp-images-000000002" / "junk").touch()

    def full(accelerator: Accelerator, folder: str, **_: object) -> None:
        assert names(Path(folder)) == []
        (Path(folder) / "model.safetensors").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Accelerator, "save_state", full)
    with pytest.raises(OSError, match=r"no space left on the disk to write .*images-000000002: .* intact"):
        save_run_state(run.accelerator, tmp_path, 2, {}, {}, keep=1)
    assert names(tmp_path) == ["images-000000001"]
    assert find_run_state(tmp_path) == good
    assert not run.accelerator._save_model_state_pre_hook


def test_pickling_strategies_are_refused(tmp_path: Path) -> None:
    class Stub:
        distributed_type = Accelerator(cpu=True).distributed_type.__class__("DEEPSPEED")

    with pytest.raises(ValueError, match="DEEPSPEED hold pickled objects"):
        save_run_state(Stub(), tmp_path, 1, {}, {})  # type: ignore[arg-type]


def test_together_passes_errors_on() -> None:
    with together():
        pass
    error = KeyError("x")
    with pytest.raises(KeyError) as caught, together():
        raise error
    assert caught.value is error


TWO_PROCESSES = """
import sys
from pathlib import Path
import torch
from accelerate import Accelerator
from maxgan.checkpoint import find_run_state, load_run_state, save_run_state, together
from test_checkpoint import Run

def check(root):
    run = Run(0)
    accelerator = run.accelerator
    assert accelerator.num_processes == 2
    torch.manual_seed(accelerator.process_index)
    run.step(1)
    weight = accelerator.unwrap_model(run.model)[3].weight
    save_run_state(accelerator, root / "c", 10, {"x": 1}, {"weight": weight})
    expected = torch.rand(3)
    torch.manual_seed(99)
    assert load_run_state(accelerator, find_run_state(root / "c"))[0] == {"images_seen": 10, "x": 1}
    assert torch.equal(torch.rand(3), expected)
    try:
        with together():
            if accelerator.process_index == 1:
                raise ValueError("only here")
    except ValueError as error:
        (root / f"error-{accelerator.process_index}").write_text(str(error))
    accelerator.free_memory()

check(Path(sys.argv[1]))
# Only when DDP has let go of the process group: one that is alive at exit aborts the process (gloo).
Accelerator(cpu=True).end_training()
"""


@pytest.mark.slow
def test_two_processes_save_and_one_goes_on(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(TWO_PROCESSES)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "localhost:0", str(tmp_path / "program.py"), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "error-0").read_text() == "another process failed: ValueError('only here')"
    assert (tmp_path / "error-1").read_text() == "only here"
    folder = find_run_state(tmp_path / "c")
    assert folder is not None
    assert {"random_states_0.pkl", "random_states_1.pkl"} <= set(names(folder))
    run = Run(1)
    said: list[str] = []
    run.accelerator.print = said.append
    _, tensors = load_run_state(run.accelerator, folder)
    assert "saved by 2 processes and goes on with 1" in said[0]
    assert torch.equal(run.model[3].weight, tensors["weight"])
