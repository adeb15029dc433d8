"""Run states that appear whole or not at all and load without pickled code; exported models are `models.network`'s."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from accelerate.utils.other import load as load_restricted
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from maxgan.files import (
    TEMPORARY_PREFIX,
    atomic_folder,
    atomic_path,
    naming_full_disk,
    remove,
    remove_leftovers,
    replace_folder,
)
from maxgan.models.network import export_model, load_model

__all__ = [
    "atomic_folder",
    "atomic_path",
    "export_model",
    "find_run_state",
    "load_model",
    "load_run_state",
    "remove_leftovers",
    "save_run_state",
    "together",
]

MANIFEST = "manifest.json"
EXTRA = "extra.json"
TENSORS = "tensors.safetensors"
# accelerate's names: what it writes with torch.save, and the one kind of file it reads with weights_only=False.
PICKLES = {".bin", ".pt", ".pkl"}
UNRESTRICTED = "custom_checkpoint_"


@contextmanager
def together() -> Iterator[None]:
    """Run the block on every process and wait for all; if it fails on one, all raise.

    Without it the others would wait for ever for a process that has stopped, for instance on a full disk.

    Raises:
        ValueError, RuntimeError: if another process failed, by a user's mistake (ValueError, OSError) or otherwise.
    """
    error = None
    try:
        yield
    except Exception as caught:
        error = caught
    failures = gather_object([None if error is None else (isinstance(error, ValueError | OSError), repr(error))])
    if error is not None:
        raise error
    for failure in failures:
        if failure is not None:
            mistake, text = failure
            raise (ValueError if mistake else RuntimeError)(f"another process failed: {text}")


def save_run_state(
    accelerator: Accelerator,
    root: str | Path,
    images_seen: int,
    extra: dict[str, Any],
    tensors: dict[str, Tensor],
    keep: int = 2,
    best: int | None = None,
) -> Path:
    """Save all that `accelerator` prepared, and random states, to `root/images-<images_seen>`; all processes call it.

    Only when the folder is whole do the oldest go, so that `keep` stay, and the best. Those with more images go too:
    they are of a course that was given up for an older checkpoint.

    Args:
        root: folder of the checkpoints, on a file system that all nodes share.
        images_seen: real images seen so far.
        extra: further state, fit for JSON.
        tensors: further tensors, such as the EMA weights.
        keep: number of checkpoints to keep, at least 1.
        best: images seen at the checkpoint that is kept beside those; None for none.

    Raises:
        ValueError: under FSDP, DeepSpeed or Megatron, whose checkpoints hold pickled objects.
        OSError: if the disk is full; the checkpoints that were there are intact.
    """
    _refuse_pickling_strategies(accelerator)
    assert keep >= 1, keep
    # accelerate would reload these with weights_only=False.
    assert not accelerator._custom_objects, "use extra and tensors, not register_for_checkpointing"
    root = Path(root)
    folder = root / f"images-{images_seen:09d}"
    # Not unique, as in atomic_folder: all processes must find it.
    temporary = folder.with_name(f"{TEMPORARY_PREFIX}{folder.name}")
    is_main = accelerator.is_main_process
    try:
        with together(), naming_full_disk(folder):
            if is_main:
                root.mkdir(parents=True, exist_ok=True)
                remove(temporary)
                temporary.mkdir()
        with together(), naming_full_disk(folder):
            _save_accelerate_state(accelerator, temporary)
            if is_main:
                (temporary / EXTRA).write_text(json.dumps({"images_seen": images_seen, **extra}))
                save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, temporary / TENSORS)
        with together(), naming_full_disk(folder):
            if is_main:
                _write_manifest(temporary, accelerator.num_processes)
                replace_folder(temporary, folder)
                states = _states(root)
                kept = [number for number in states if number <= images_seen][:keep]
                for number, old in states.items():
                    if number not in kept and number != best:
                        remove(old)
    except BaseException:
        if is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    return folder


def find_run_state(root: str | Path, report: Callable[[str], None] = print, most: int | None = None) -> Path | None:
    """Return the newest whole checkpoint below `root`, or None.

    Args:
        report: called with one sentence for each damaged checkpoint that is passed over.
        most: images that it may have seen; None for any number.

    Raises:
        ValueError: if there are checkpoints, of any number of images, and none of them is whole: to start anew would
            end what may be mended.
    """
    states = _states(Path(root))
    for number, folder in states.items():
        if most is not None and number > most:
            continue
        damage = _damage(folder)
        if damage is None:
            return folder
        report(f"passing over the checkpoint {folder}: {damage}")
    if states and most is None:
        raise ValueError(f"every checkpoint in {root} is damaged: mend one, or remove them all to start anew")
    return None


def load_run_state(accelerator: Accelerator, folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Restore what `save_run_state` saved, on every process; return `extra` (with images_seen) and `tensors` (on CPU).

    With another number of processes than at saving, all is restored but the random states of processes that are new.

    Raises:
        ValueError: if the folder is damaged, holds pickled code, or doesn't fit what `accelerator` prepared.
    """
    _refuse_pickling_strategies(accelerator)
    folder = Path(folder)
    damage = _damage(folder)
    if damage is not None:
        raise ValueError(f"the checkpoint {folder} is damaged, {damage}: remove it to go on from the one before")
    refuse_pickled_code(folder)
    processes = json.loads((folder / MANIFEST).read_text())["processes"]
    if processes != accelerator.num_processes:
        accelerator.print(
            f"the checkpoint {folder} was saved by {processes} processes and goes on with {accelerator.num_processes}: "
            "images and latents stay the same, but sums round in another order, BatchNorm sees other shares of "
            "a batch and dropout draws other numbers, so that the run is sound and not bit for bit the same"
        )
    hook = accelerator.register_load_state_pre_hook(
        lambda models, _: models.__setitem__(slice(None), [_bare(accelerator, model) for model in models])
    )
    try:
        accelerator.load_state(str(folder))
        extra = json.loads((folder / EXTRA).read_text())
        tensors = load_file(folder / TENSORS)
    except (RuntimeError, ValueError, KeyError, OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the checkpoint {folder} doesn't fit this run ({reason}): start another run") from error
    finally:
        hook.remove()
    return extra, tensors


def refuse_pickled_code(folder: Path) -> None:
    """Raise ValueError if a file that accelerate may unpickle holds more than tensors, arrays and plain values.

    accelerate itself loads them with weights_only=True, but passes in silence over random states it can't load, and
    loads the state of registered objects without any restriction.
    """
    for file in sorted(folder.iterdir()):
        if file.name.startswith(UNRESTRICTED):
            raise ValueError(
                f"{file} would be unpickled without restriction, and maxgan writes no such file: remove the checkpoint"
            )
        if file.suffix in PICKLES:
            try:
                load_restricted(str(file), map_location="cpu", mmap=True)
            except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise ValueError(
                    f"{file} holds more than tensors, or is no torch file ({reason}): remove the checkpoint"
                ) from error


def _save_accelerate_state(accelerator: Accelerator, folder: Path) -> None:
    # Without the wrappers' prefixes in the names, a run may go on with another number of processes.
    hook = accelerator.register_save_state_pre_hook(
        lambda models, weights, _: weights.__setitem__(
            slice(None), [_bare(accelerator, m).state_dict() for m in models]
        )
    )
    try:
        accelerator.save_state(str(folder))
    finally:
        hook.remove()


def _bare(accelerator: Accelerator, model: nn.Module) -> nn.Module:
    bare: nn.Module = accelerator.unwrap_model(model, keep_torch_compile=False)
    return bare


def _refuse_pickling_strategies(accelerator: Accelerator) -> None:
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ValueError(
            f"checkpoints of {accelerator.distributed_type.value} hold pickled objects, which maxgan never loads: "
            "set distributed_type to MULTI_GPU or NO in the accelerate config"
        )


def _states(root: Path) -> dict[int, Path]:
    """Return the checkpoints below `root` by images seen, newest first."""
    found = {}
    for folder in root.glob("images-*"):
        match = re.fullmatch(r"images-(\d+)", folder.name)
        if match and folder.is_dir():
            found[int(match[1])] = folder
    return dict(sorted(found.items(), reverse=True))


def _write_manifest(folder: Path, processes: int) -> None:
    for i in range(processes):
        if not (folder / f"random_states_{i}.pkl").is_file():
            raise ValueError(
                f"process {i} wrote its state elsewhere: put {folder.parent} on a file system that all nodes share"
            )
    files = {file.name: {"size": file.stat().st_size, "crc32": _crc32(file)} for file in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps({"processes": processes, "files": files}, indent=1))


def _damage(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None if every file is as it was written."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MANIFEST} is missing or unreadable"
    for name, facts in files.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != facts["size"]:
            return f"{name} has {file.stat().st_size} bytes in place of {facts['size']}"
        try:
            if _crc32(file) != facts["crc32"]:
                return f"{name} has changed since it was written"
        except OSError as error:
            return f"{name} can't be read ({error.strerror})"
    return None


def _crc32(file: Path) -> int:
    checksum = 0
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            checksum = zlib.crc32(chunk, checksum)
    return checksum
