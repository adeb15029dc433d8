"""Command line and YAML to a config: the only user of jsonargparse."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NoReturn, TypeVar, cast, get_args, get_origin, get_type_hints

import jsonargparse
import yaml

from maxgan.config import to_dict

C = TypeVar("C")

PREEMPTED = 75
"""Exit code (EX_TEMPFAIL of sysexits.h) of a training that PREEMPTIONS stopped: all is saved, the same command goes on.
Not 128 + the signal's number, as the shell says of processes that died of one and saved nothing."""
PREEMPTIONS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""What clusters send before they take a machine away."""

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
        SystemExit: with code 2 and one sentence, for a setting that is unknown, misspelt, of the wrong type or out of
            range.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = _parser(cast(Any, config_class))
    try:
        parsed = parser.parse_args(argv)
        for section in {name.partition(".")[0] for name in field_types(config_class) if "." in name}:
            if not isinstance(parsed[section], jsonargparse.Namespace):
                fail(_not_a_section(section, str(parsed[section])))
        values = parser.instantiate(parsed).as_dict()
        files = values.pop("config")
        config = config_class(**values)
    except (jsonargparse.ArgumentError, ValueError, TypeError) as error:
        fail(_one_sentence(str(error), field_types(config_class), argv))
    return config, Path(str(files[-1])).stem if files else None


@cache
def _parser(config_class: type[Any]) -> jsonargparse.ArgumentParser:
    """Return the parser of a config, made once: for each section's help the source of its module is read."""
    parser = jsonargparse.ArgumentParser(description=config_class.__doc__, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file of settings; flags that follow it win.")
    parser.add_class_arguments(config_class, as_group=False)
    return parser


def field_types(config_class: Any, prefix: str = "") -> dict[str, Any]:
    """Return the type of every field of a nested dataclass, by its dotted name."""
    types: dict[str, Any] = {}
    for name, kind in get_type_hints(config_class).items():
        types |= field_types(kind, f"{prefix}{name}.") if dataclasses.is_dataclass(kind) else {prefix + name: kind}
    return types


# Forms of jsonargparse's messages, on one line.
_UNKNOWN_FLAG = re.compile(r"unrecognized arguments: (?:--)?([\w.-]+)")
_UNKNOWN_FIELD = re.compile(r"Group '(?P<section>[\w.]+)' does not accept option '(?P<name>[\w.]+)'")
_UNKNOWN_OPTION = re.compile(r"(?:does not accept option|Option) '([\w.]+)'")
_WRONG_VALUE = re.compile(r'Parser key "(?P<name>[\w.]+)":.* (?:Got|Given) value: (?P<value>.*)$')
_WRONG_SECTION = re.compile(r"""Parser key "(?P<name>[\w.]+)": Unable to load config ['"](?P<value>.*?)['"]""")
_NO_FILE = re.compile(r"(?:File does not exist|Path is not a file): (.*)$")
_WRONG_FILE = re.compile(r"(?:Problems parsing|Unexpected) config:")
# Of a field of a schedule, such as optim.lr.start.
_UNKNOWN_PART = re.compile(r"""Parser key "(?P<name>[\w.]+)":.* Option '(?P<part>[\w.]+)' is not accepted""")
_WRONG_PART = re.compile(
    r'Parser key "(?P<name>[\w.]+)":.* Parser key "(?P<part>\w+)": .*?(?:Got|Given) value: (?P<value>.*?) Given value'
)
_MISSING_PART = re.compile(
    r'Parser key "(?P<name>[\w.]+)":.* the following arguments are required: (?P<parts>[\w, ]+?) Given value type'
)
_FIELD_OF_A_FIELD = re.compile(r"NestedArg\(key='([\w.]+)'")
_OWN_RULE = re.compile(r"Union subtypes .* - (?!Expected)(.+?) Given value type")
_NO_VALUE = re.compile(r"argument (--[\w.]+): expected one argument")


def _one_sentence(message: str, types: dict[str, Any], argv: Sequence[str]) -> str:
    """Turn jsonargparse's message into one plain sentence, with the nearest setting for a misspelt one."""
    message = " ".join(message.split())
    if found := _UNKNOWN_PART.search(message) or _WRONG_PART.search(message):
        name, parts = f"{found['name']}.{found['part']}", _parts(found["name"], types)
        if deeper := _FIELD_OF_A_FIELD.search(found.groupdict().get("value") or ""):
            name += f".{deeper[1]}"
        if name in parts:
            return f"{name} must be {_in_words(parts[name])}, not {found['value']}"
        fields = ", ".join(part.rpartition(".")[2] for part in parts)
        return f"there is no setting {name!r}: a schedule has the fields {fields}"
    if found := _MISSING_PART.search(message):
        missing = found["parts"].replace(", ", " and ")
        return f"{found['name']} is a schedule without {missing}: give both ends, like {{start: 1e-3, end: 1e-4}}"
    if found := _UNKNOWN_FLAG.search(message) or _UNKNOWN_FIELD.search(message) or _UNKNOWN_OPTION.search(message):
        name = ".".join(found.groups())
        near = _nearest(name, types)
        return f"there is no setting {name!r}; " + (f"did you mean {near!r}?" if near else "--help lists all")
    if (found := _WRONG_VALUE.search(message)) and found["name"] in types:
        return f"{found['name']} must be {_in_words(types[found['name']])}, not {found['value']}"
    if found := _WRONG_SECTION.search(message):
        return _not_a_section(found["name"], found["value"])
    if found := _NO_FILE.search(message):
        return f"there is no config file {found[1]}"
    if _WRONG_FILE.search(message):
        files = re.findall(r"--config[=\0]([^\0]+)", "\0".join(argv))
        example = "write lines like `optim:` and, indented below it, `lr: 1e-4`"
        return f"{' or '.join(files)} is no YAML file of settings: {example}"
    if found := _OWN_RULE.search(message):
        return found[1]
    if found := _NO_VALUE.search(message):
        return f"{found[1]} needs a value"
    return message


def _parts(name: str, types: dict[str, Any]) -> dict[str, Any]:
    """Return the type of every field of a setting that may be a group, such as a schedule, by its dotted name."""
    kinds = (field_types(kind, f"{name}.") for kind in get_args(types.get(name)) if dataclasses.is_dataclass(kind))
    return {part: kind for group in kinds for part, kind in group.items()}


def _nearest(name: str, names: Iterable[str]) -> str | None:
    """Return the setting most like `name`, which may lack its section or have a wrong one."""
    by_field: dict[str, list[str]] = {}
    for known in names:
        by_field.setdefault(known.rpartition(".")[2], []).append(known)
    field = name.rpartition(".")[2]
    if field not in by_field:
        if close := difflib.get_close_matches(name, [known for group in by_field.values() for known in group], n=1):
            return close[0]
        if not (close := difflib.get_close_matches(field, by_field, n=1, cutoff=0.65)):
            return None
        field = close[0]
    return difflib.get_close_matches(name, by_field[field], n=1, cutoff=0)[0]


def _not_a_section(section: str, value: str) -> str:
    return f"{section} is a group of settings and can't be {value!r}: set its fields, --help lists them"


def _in_words(kind: Any) -> str:
    """Return a field's type as a person would say it."""
    if get_origin(kind) is Literal:
        return " or ".join(str(choice) for choice in get_args(kind))
    if get_origin(kind) is tuple and get_origin(get_args(kind)[0]) is Literal:
        choices = [str(choice) for choice in get_args(get_args(kind)[0])]
        return f"a list like [{', '.join(choices[:2])}], of {', '.join(choices)}"
    if get_origin(kind) is tuple:
        return (
            "a list of numbers like [0.05, 0.1]" if float in get_args(kind) else "a list of whole numbers like [64, 32]"
        )
    if dataclasses.is_dataclass(kind):
        return "a schedule like {start: 1e-3, end: 1e-4}"
    if parts := get_args(kind):
        return " or ".join(_in_words(part) for part in parts)
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}[kind]


def fail(message: str, code: int = 2) -> NoReturn:
    """Print one sentence and end the process, without a traceback: for a user's mistake."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(code)


class Preempted(BaseException):
    """A signal of PREEMPTIONS came."""


@contextmanager
def plain_errors(preemptible: bool = False) -> Iterator[None]:
    """End the process with one sentence where the block raises what a user can mend, and on Ctrl-C.

    Exit codes: 1 for ValueError and OSError, 130 for an interrupt, 75 for a preemption. A UserWarning is one line, too,
    without its place in the code.

    Args:
        preemptible: end on SIGTERM and SIGUSR1 in this way too, wherever the block doesn't handle them itself.
    """
    earlier = {number: signal.signal(number, _preempt) for number in PREEMPTIONS} if preemptible else {}
    try:
        with warnings.catch_warnings():
            warnings.showwarning = partial(_say, warnings.showwarning)
            yield
    except (ValueError, OSError) as error:
        fail(str(error), code=1)
    except KeyboardInterrupt:
        fail("interrupted; what was saved before is whole", code=130)
    except Preempted:
        fail("preempted; what was saved before is whole, and the same command goes on", code=PREEMPTED)
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _preempt(number: int, frame: FrameType | None) -> NoReturn:
    raise Preempted


def _say(otherwise: Callable[..., None], message: Warning | str, category: type[Warning], *place: Any) -> None:
    if category is UserWarning:
        print(f"warning: {message}", file=sys.stderr)
    else:
        otherwise(message, category, *place)


def to_yaml(config: Any) -> str:
    """Return a config as YAML that `--config` reads back."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def available_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
