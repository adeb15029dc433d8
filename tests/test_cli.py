from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

import maxgan.config
from maxgan.cli import available_cores, fail, field_types, parse, plain_errors, to_yaml
from maxgan.config import (
    BestAverageConfig,
    ClassifierConfig,
    ClassSheetConfig,
    EvaluateConfig,
    GanConfig,
    GeneratorConfig,
    InterpolateConfig,
    InvertConfig,
    NeighboursConfig,
    OptimConfig,
    PackConfig,
    ReconstructConfig,
    ReportConfig,
    SampleConfig,
    Schedule,
    TrainingConfig,
)

CONFIGS: list[type[Any]] = [
    GanConfig, ClassifierConfig, SampleConfig, EvaluateConfig, ReportConfig, BestAverageConfig, ReconstructConfig,
]  # fmt: skip
PICTURES = (ClassSheetConfig, InterpolateConfig, NeighboursConfig, InvertConfig)


@pytest.mark.parametrize("config_class", CONFIGS)
def test_no_argument_gives_the_defaults(config_class: type[Any]) -> None:
    assert parse(config_class, []) == (config_class(), None)


CHANGED = GanConfig(
    generator=GeneratorConfig(widths=(64, 32, 16), depths=(1, 2, 3), norm="layer", positions=True),
    optim=OptimConfig(lr=1e-4, discriminator_lr=3e-5, eps=1e-12),
    training=TrainingConfig(seed=7),
)


@pytest.mark.parametrize("config", [*(config() for config in CONFIGS), CHANGED], ids=lambda c: type(c).__name__)
def test_every_setting_comes_back_from_yaml(config: Any, tmp_path: Path) -> None:
    file = tmp_path / "some-name.yaml"
    file.write_text(to_yaml(config))
    assert parse(type(config), ["--config", str(file)]) == (config, "some-name")


def test_flags_and_files_win_in_their_order(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("optim:\n  lr: 1e-4\n  beta2: 0.9\n")
    arguments = ["--optim.lr", "1", "--config", str(file), "--optim.beta2=0.5", "--generator.widths", "[8, 4]"]
    config, name = parse(GanConfig, arguments)
    assert (config.optim.lr, config.optim.beta2, config.optim.eps) == (1e-4, 0.5, OptimConfig().eps)
    assert config.generator.widths == (8, 4)
    assert name == "recipe"


def test_a_schedule_is_a_group_of_fields_or_a_number(tmp_path: Path) -> None:
    arguments = ["--optim.lr.start=1e-3", "--optim.discriminator_lr=2e-3", "--ema.power=[0.05, 0.1]"]
    config, _ = parse(GanConfig, [*arguments, "--loss.r1_gamma={start: 1, end: 0.1, over: 300, shape: linear}"])
    assert (config.optim.lr, config.optim.discriminator_lr) == (Schedule(1e-3, 1e-5), 2e-3)
    assert (config.loss.r1_gamma, config.ema.power) == (Schedule(1, 0.1, 300, "linear"), (0.05, 0.1))
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    assert parse(GanConfig, [f"--config={tmp_path}/run.yaml"])[0] == config


def docstrings(config_class: type[Any]) -> dict[str, str]:
    """Return the text under each field of a dataclass, from the source."""
    tree = ast.parse(inspect.getsource(config_class)).body[0]
    assert isinstance(tree, ast.ClassDef)
    texts = {}
    for field, text in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            texts[field.target.id] = str(text.value.value)
    return texts


@pytest.mark.parametrize("config_class", [*CONFIGS, *PICTURES, PackConfig])
def test_help_explains_every_field(config_class: type[Any], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse(config_class, ["--help"])
    assert end.value.code == 0
    # Without any white space, as lines are broken at hyphens too.
    shown = "".join(capsys.readouterr().out.split())
    explained = 0
    for name in field_types(config_class):
        *section, field = name.split(".")
        owner = type(getattr(config_class(), section[0])) if section else config_class
        text = next((texts[field] for texts in map(docstrings, owner.__mro__[:-1]) if field in texts), "")
        assert len(text.split()) > 1, f"{name} has no docstring"
        assert "".join(f"--{name}".split()) in shown
        assert "".join(text.split()) in shown, name
        explained += 1
    assert explained >= 2


def message(capsys: pytest.CaptureFixture[str], *arguments: str, config_class: type[Any] = GanConfig) -> str:
    """Return what a mistaken command line says, without `error: `."""
    with pytest.raises(SystemExit) as end:
        parse(config_class, arguments)
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    first, *rest = err.splitlines()
    assert rest == []
    assert first.startswith("error: ")
    for jargon in ("Parser key", "<class", "Union", "typing", "Traceback", "functools", "jsonargparse"):
        assert jargon not in first
    return first.removeprefix("error: ")


ONE_END = "{} is a schedule without {}: give both ends, like {{start: 1e-3, end: 1e-4}}"
NO_PART = "there is no setting 'optim.lr.{}': a schedule has the fields start, end, over, shape"


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--optim.lrr=3", "there is no setting 'optim.lrr'; did you mean 'optim.lr'?"),
        ("--optimm.lr=3", "there is no setting 'optimm.lr'; did you mean 'optim.lr'?"),
        # The beginning of a name is no name.
        ("--loss.r1_gam=3", "there is no setting 'loss.r1_gam'; did you mean 'loss.r1_gamma'?"),
        ("--generator.window=3", "there is no setting 'generator.window'; did you mean 'generator.window_size'?"),
        ("--zzz=3", "there is no setting 'zzz'; --help lists all"),
        ("digits", "there is no setting 'digits'; --help lists all"),
        ("--optim.lr=abc", "optim.lr must be a number or a schedule like {start: 1e-3, end: 1e-4}, not abc"),
        ("--optim.eps=abc", "optim.eps must be a number, not abc"),
        ("--optim.lr={start: 1, edn: 2}", NO_PART.format("edn")),
        ("--optim.lr.start=x", "optim.lr.start must be a number, not x"),
        ("--optim.lr.start.x=3", NO_PART.format("start.x")),
        ("--optim.lr.strat=3", NO_PART.format("strat")),
        ("--loss.r1_gamma.start=1", ONE_END.format("loss.r1_gamma", "end")),
        ("--loss.r2_gamma={end: 1}", ONE_END.format("loss.r2_gamma", "start")),
        ("--ema.half_life.over=9", ONE_END.format("ema.half_life", "start and end")),
        ("--loss.r1_gamma={start: x, end: 1}", "loss.r1_gamma.start must be a number, not x"),
        ("--ema.half_life={start: 1, end: 2, shape: oval}", "ema.half_life.shape must be cosine or linear, not oval"),
        (
            "--optim.beta2={start: 1, end: 2, over: 0}",
            "over, the images that a schedule takes, must be at least 1, not 0",
        ),
        ("--training.images=3.5", "training.images must be a whole number, not 3.5"),
        ("--data.flip=maybe", "data.flip must be true or false, not maybe"),
        ("--data.crop=left", "data.crop must be center or random or resized or whole, not left"),
        ("--data.resolution=big", "data.resolution must be a whole number or null, not big"),
        ("--generator.widths=8", "generator.widths must be a list of whole numbers like [64, 32] or null, not 8"),
        ("--optim=fast", "optim is a group of settings and can't be 'fast': set its fields, --help lists them"),
        ("--optim.lr", "--optim.lr needs a value"),
        ("--optim.lr=-1", "optim.lr and optim.discriminator_lr must be above 0, and may fall to 0, not -1.0, None"),
        ("--config=/missing.yaml", "there is no config file '/missing.yaml'"),
        ("--lr=3", "there is no setting 'lr'; did you mean 'optim.lr'?"),
        ("--generator.lr=3", "there is no setting 'generator.lr'; did you mean 'optim.lr'?"),
        ("--trainin.images=3", "there is no setting 'trainin.images'; did you mean 'training.images'?"),
        ("--eval.images=3", "there is no setting 'eval.images'; did you mean 'evaluation.images'?"),
    ],
)
def test_mistaken_flags_get_one_plain_sentence(
    argument: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message(capsys, argument) == expected


NO_SETTINGS = "{file} is no YAML file of settings: write lines like `optim:` and, indented below it, `lr: 1e-4`"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optim: {lrr: 1}", "there is no setting 'optim.lrr'; did you mean 'optim.lr'?"),
        ("optimm: {lr: 1}", "there is no setting 'optimm.lr'; did you mean 'optim.lr'?"),
        ("seeds: 1", "there is no setting 'seeds'; did you mean 'training.seed'?"),
        ("optim: {eps: abc}", "optim.eps must be a number, not abc"),
        ("optim: {lr: -1}", "optim.lr and optim.discriminator_lr must be above 0, and may fall to 0, not -1.0, None"),
        ("optim: 3", "optim is a group of settings and can't be '3': set its fields, --help lists them"),
        ("optim: null", "optim is a group of settings and can't be 'None': set its fields, --help lists them"),
        ("optim: [1", NO_SETTINGS),
        ("3", NO_SETTINGS),
        ("", NO_SETTINGS),
    ],
)
def test_mistakes_in_a_file_get_one_plain_sentence(
    text: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    assert message(capsys, "--config", str(file)) == expected.format(file=file)


def test_settings_of_every_type_say_it_when_they_get_another(capsys: pytest.CaptureFixture[str]) -> None:
    for config_class in CONFIGS:
        one_of_each = {str(kind): name for name, kind in field_types(config_class).items() if "str" not in str(kind)}
        for name in one_of_each.values():
            assert message(capsys, f"--{name}=wrong", config_class=config_class).startswith(f"{name} must be ")


def test_mistakes_of_a_user_end_the_process_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        fail("no such thing", code=3)
    assert end.value.code == 3
    assert capsys.readouterr() == ("", "error: no such thing\n")


def test_cores_are_those_this_process_may_use() -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("no affinity on this system")
    allowed = os.sched_getaffinity(0)
    assert available_cores() == len(allowed)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_reading_a_config_needs_no_torch() -> None:
    code = "import sys, maxgan.cli, maxgan.config; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_all_config_classes_are_frozen() -> None:
    classes = [value for value in vars(maxgan.config).values() if isinstance(value, type)]
    classes = [value for value in classes if dataclasses.is_dataclass(value)]
    assert len(classes) > 10
    assert all(config.__dataclass_params__.frozen for config in classes)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ValueError("no such zip"), 1, "error: no such zip\n"),
        (OSError("the disk is full"), 1, "error: the disk is full\n"),
        (KeyboardInterrupt(), 130, "error: interrupted; what was saved before is whole\n"),
    ],
)
def test_what_a_user_can_mend_ends_in_one_sentence(
    error: BaseException, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop, plain_errors():
        raise error
    assert stop.value.code == code
    assert capsys.readouterr().err == words


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_preempted_training_ends_with_a_code_of_its_own(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stop, plain_errors(preemptible=True):
        signal.raise_signal(number)
    assert stop.value.code == 75
    words = "error: preempted; what was saved before is whole, and the same command goes on\n"
    assert capsys.readouterr().err == words
    assert signal.getsignal(number) is before


def test_a_warning_is_one_line_without_its_place_in_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    with plain_errors():
        warnings.warn("too few images", stacklevel=1)
    assert capsys.readouterr().err == "warning: too few images\n"
    with pytest.warns(FutureWarning), plain_errors():
        warnings.warn("not for users", FutureWarning, stacklevel=1)


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(RuntimeError), plain_errors():
        raise RuntimeError("ours to mend")
