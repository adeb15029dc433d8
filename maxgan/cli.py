"""Command line and YAML to a config: the only user of jsonargparse."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jsonargparse
import yaml

from maxgan.config import to_dict

C = TypeVar("C")

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)


def parse(config_class: type[C], argv: Sequence[str] | None = None) -> tuple[C, str | None]:
    """Read a config dataclass from the command line.

    Every field is a flag (`--optim.lr 2e-4`); `--config FILE.yaml` gives many at once, and flags that follow it win.

    Args:
        config_class: one of the dataclasses of `maxgan.config`.
        argv: arguments; None takes those of the process.

    Returns:
        The config, and the stem of the last config file's name (None without one).

    Raises:
        SystemExit: with code 2 and one sentence, for a setting that is unknown, misspelt or out of range.
    """
    parser = jsonargparse.ArgumentParser(description=config_class.__doc__, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file of settings; flags that follow it win.")
    parser.add_class_arguments(config_class, as_group=False)
    try:
        values = parser.instantiate(parser.parse_args(sys.argv[1:] if argv is None else list(argv))).as_dict()
        files = values.pop("config")
        config = config_class(**values)
    except (jsonargparse.ArgumentError, ValueError, TypeError) as error:
        fail(_one_sentence(str(error), field_names(config_class)))
    return config, Path(str(files[-1])).stem if files else None


def field_names(config_class: Any, prefix: str = "") -> list[str]:
    """Return the dotted names of all fields of a nested dataclass."""
    names: list[str] = []
    default = config_class() if isinstance(config_class, type) else config_class
    for field in dataclasses.fields(default):
        value = getattr(default, field.name)
        nested = dataclasses.is_dataclass(value)
        names += field_names(value, f"{prefix}{field.name}.") if nested else [prefix + field.name]
    return names


def _one_sentence(message: str, names: list[str]) -> str:
    """Turn jsonargparse's message into one sentence, with the nearest setting for a misspelt one."""
    flag = re.search(r"unrecognized arguments: (?:--)?([\w.-]+)", message)
    option = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message)
    top = re.search(r"does not accept option '([\w.]+)'", message)
    if flag or option or top:
        name = flag[1] if flag else f"{option[1]}.{option[2]}" if option else top[1] if top else ""
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        return f"there is no setting {name!r}" + (f"; did you mean {near[0]!r}?" if near else "; --help lists all")
    return " ".join(message.split())


def fail(message: str, code: int = 2) -> NoReturn:
    """Print one sentence and end the process, without a traceback: for a user's mistake."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(code)


def to_yaml(config: Any) -> str:
    """Return a config as YAML that `--config` reads back."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def available_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
