"""Numbers that are not finite and signs of collapse: found, named, never saved, and gone back from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file
from torch import Tensor, nn

from maxgan.config import (
    DiscriminatorConfig,
    EvaluationConfig,
    GanConfig,
    GanWatchdogConfig,
    GeneratorConfig,
    RunConfig,
    TrainingConfig,
)
from maxgan.models.network import load_model
from maxgan.training import gan_run
from maxgan.training.gan import GanTrainer
from maxgan.training.run import read_metrics
from maxgan.training.signs import FALLS, WINS, Signs, accuracy, variety
from maxgan.training.watchdog import NotFinite, Watchdog

TINY = GanConfig(
    generator=GeneratorConfig(latent_dim=8, width=8, head_dim=8, latent_tokens=4),
    discriminator=DiscriminatorConfig(1 / 128, 8),
    training=TrainingConfig(images=32, batch_size=4),
    evaluation=EvaluationConfig(enabled=False),
    run=RunConfig(log_every=8, sample_every=0, checkpoint_every=8, keep=9, tracker="none", threads=1),
)


@pytest.fixture
def watchdog() -> Watchdog:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    optimizer = torch.optim.Adam(network.parameters())
    return Watchdog(Accelerator(cpu=True), {"net": network}, {"net": optimizer}, batch_size=10)


def backward(watchdog: Watchdog, update: int, spoilt: tuple[str, ...] = (), value: float = torch.nan) -> None:
    network = watchdog.networks["net"]
    network.zero_grad()
    network(torch.ones(1, 2)).sum().backward()
    for name, parameter in network.named_parameters():
        if name in spoilt:
            assert parameter.grad is not None
            parameter.grad.flatten()[-1] = value
    watchdog.watch_gradients("net", update)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_the_first_update_term_and_parameter_are_named(watchdog: Watchdog, value: float) -> None:
    for update in range(3):
        backward(watchdog, update)
        watchdog.watch_metrics({"loss": torch.tensor(1.0), "r1": torch.tensor(2.0)}, update)
    watchdog.check()
    backward(watchdog, 3, ("0.bias", "1.weight"), value)
    watchdog.watch_metrics({"loss": torch.tensor(1.0), "r1": torch.tensor(value)}, 3)
    # From here on all is spoilt, and a lazy penalty is left out.
    backward(watchdog, 4, ("0.weight", "0.bias", "1.weight", "1.bias"))
    watchdog.watch_metrics({"loss": torch.tensor(torch.nan)}, 4)
    found = (
        r"at update 4, images 30 to 40, r1 and the gradient of net.0.bias \(and 1 more, the last net.1.weight\) became"
    )
    with pytest.raises(NotFinite, match=found):
        watchdog.check()
    watchdog.forget()
    watchdog.check()


def test_a_gradient_alone_and_a_metric_alone_are_named(watchdog: Watchdog) -> None:
    watchdog.watch_metrics({"loss": torch.tensor(1.0)}, 0)
    backward(watchdog, 0, ("1.bias",))
    with pytest.raises(NotFinite, match=r"at update 1, images 0 to 10, the gradient of net.1.bias became"):
        watchdog.check()
    watchdog.forget()
    watchdog.watch_metrics({"loss": torch.tensor(torch.inf)}, 7)
    with pytest.raises(NotFinite, match=r"at update 8, images 70 to 80, loss became"):
        watchdog.check()


def test_a_penalty_that_overflows_is_no_failure_while_a_loss_scale_can_fall(
    watchdog: Watchdog, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    monkeypatch.setattr(watchdog.accelerator, "scaler", scaler)
    scaler.scale(torch.ones(()))
    found = watchdog.watch_metrics({"loss": torch.tensor(2.0), "r1": torch.tensor(torch.inf)}, 0)
    assert (found["loss"], found["r1"]) == (2, 0)
    watchdog.check()
    assert watchdog.watch_metrics({"r2": torch.tensor(3.0)}, 1)["r2"] == 3
    scaler.update(0.5)  # nothing left to scale down
    watchdog.watch_metrics({"loss": torch.tensor(2.0), "r1": torch.tensor(torch.nan)}, 2)
    with pytest.raises(NotFinite, match=r"at update 3, images 20 to 30, r1 became"):
        watchdog.check()
    watchdog.forget()
    scaler.update(1024.0)
    watchdog.watch_metrics({"loss": torch.tensor(torch.nan)}, 3)
    with pytest.raises(NotFinite, match=r"at update 4, .* loss became"):
        watchdog.check()


def test_norms_are_of_all_gradients_of_a_network_without_the_loss_scale(
    watchdog: Watchdog, monkeypatch: pytest.MonkeyPatch
) -> None:
    backward(watchdog, 0)
    squares = [value**2 for p in watchdog.networks["net"].parameters() for value in p.grad.flatten().tolist()]  # type: ignore[union-attr]
    assert watchdog.norms["gradient_norm_net"].item() == pytest.approx(sum(squares) ** 0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    monkeypatch.setattr(watchdog.accelerator, "scaler", scaler)
    scaler.scale(torch.ones(()))  # makes its scale
    backward(watchdog, 1)
    assert watchdog.norms["gradient_norm_net"].item() == pytest.approx(sum(squares) ** 0.5 / 1024)
    backward(watchdog, 2, ("0.bias",), torch.inf)
    assert watchdog.norms["gradient_norm_net"].item() == 0
    # The norm of finite numbers can leave the range: so does Adam's square.
    monkeypatch.setattr(watchdog.accelerator, "scaler", None)
    backward(watchdog, 3, ("1.weight",), 1e30)
    with pytest.raises(NotFinite, match=r"at update 4, .* net.1.weight"):
        watchdog.check()


def test_float16_may_overflow_while_there_is_a_scale_to_lower(
    watchdog: Watchdog, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
    monkeypatch.setattr(watchdog.accelerator, "scaler", scaler)
    scaler.scale(torch.ones(()))  # makes its scale
    backward(watchdog, 0, ("0.bias",))
    watchdog.check()
    scaler.update(0.5)
    backward(watchdog, 1, ("0.bias",))
    with pytest.raises(NotFinite, match=r"at update 2, .* net.0.bias"):
        watchdog.check()


def test_a_state_that_overflowed_is_not_saved(watchdog: Watchdog) -> None:
    backward(watchdog, 0)
    watchdog.optimizers["net"].step()
    watchdog.check_state({"ema": torch.ones(2), "counts": torch.ones(2, dtype=torch.int64)})
    watchdog.check()
    parameter = dict(watchdog.networks["net"].named_parameters())["1.weight"]
    watchdog.optimizers["net"].state[parameter]["exp_avg_sq"][0, 0] = torch.inf
    with pytest.raises(NotFinite, match=r"^exp_avg_sq of net.1.weight holds"):
        watchdog.check_state({"ema": torch.ones(2)})
    with pytest.raises(NotFinite, match=r"^ema holds"):
        watchdog.check_state({"ema": torch.tensor([1.0, torch.nan])})


def test_accuracy_and_variety_are_those_of_loops() -> None:
    torch.manual_seed(0)
    real_logits, fake_logits = torch.randn(7), torch.randn(7) - 1
    pairs = [float(a > b) for a in real_logits for b in fake_logits]
    assert accuracy(real_logits, fake_logits).item() == pytest.approx(sum(pairs) / 49)
    assert accuracy(torch.ones(3), torch.ones(3)) == 0.5  # of a D that says the same of everything
    assert accuracy(torch.tensor([1.0, 2]), torch.tensor([1.0, 0])) == 3.5 / 4

    def nearest(images: Tensor) -> float:
        least = []
        for i, a in enumerate(images):
            least.append(min(float((a - b).square().sum().sqrt()) for j, b in enumerate(images) if j != i))
        return sum(least) / len(least)

    real, fake = torch.randn(6, 3, 32, 32), 0.3 * torch.randn(6, 3, 32, 32)
    means = [images.view(6, 3, 16, 2, 16, 2).mean((3, 5)) for images in (real, fake)]
    assert variety(real, fake).item() == pytest.approx(nearest(means[1]) / nearest(means[0]), rel=1e-5)
    assert variety(real, real.flip(0)).item() == pytest.approx(1)
    assert variety(real, fake[:2].repeat(3, 1, 1, 1)).item() == 0  # two modes
    assert variety(real[:1], fake[:1]).item() == 1


def lines(accuracies: list[float], losses: list[float], varieties: list[float]) -> Iterator[dict[str, float]]:
    for a, b, c in zip(accuracies, losses, varieties, strict=True):
        yield {"discriminator_accuracy": a, "loss_generator": b, "variety": c}


def observed(signs: Signs, *columns: list[float]) -> tuple[list[list[str]], list[list[str]]]:
    """For each line, the first words of what is reported, and the signs there are."""
    reported, present = [], []
    for line in lines(*columns):
        reported.append([text.split()[0] for text in signs.observe(line)])
        present.append(sorted(signs.present))
    return reported, present


def test_d_wins_where_it_is_sure_and_the_loss_of_g_grows() -> None:
    won = [0.99] * 8
    reported, present = observed(Signs(GanWatchdogConfig(), 2), won, [1, 1, 1, 1, 1, 2, 3, 3], [1.0] * 8)
    # The means of two lines: 1, 1, 1, 1, 1.5, 2.5, 3; each compared with that two lines before.
    assert present == [[], [], [], [], [], [WINS], [WINS], [WINS]]
    assert reported == [[], [], [], [], [], ["D"], [], []]
    assert observed(Signs(GanWatchdogConfig(), 2), [0.97] * 8, [1, 1, 1, 1, 1, 2, 3, 3], [1.0] * 8)[1] == [[]] * 8
    for loss in (3.0, -3.0):  # hinge's may be negative
        assert observed(Signs(GanWatchdogConfig(), 2), won, [loss] * 8, [1.0] * 8)[1] == [[]] * 8
    assert observed(Signs(GanWatchdogConfig(), 2), won, [-3.0] * 4 + [-2.0] * 4, [1.0] * 8)[1][5] == [WINS]


def test_variety_falls_from_where_it_was() -> None:
    same = ([0.5] * 7, [1.0] * 7)
    # Untrained samples are all alike: no fall. Means of two: 0.05, 0.35, 0.6, 0.35, 0.1, 0.35.
    signs = Signs(GanWatchdogConfig(), 2)
    reported, present = observed(signs, *same, [0.0, 0.1, 0.6, 0.6, 0.1, 0.1, 0.6])
    assert present == [[], [], [], [], [], [FALLS], []]
    assert reported[5] == ["the"]
    assert signs.flags() == {WINS: 0.0, FALLS: 0.0}
    assert signs.observe({"images": 1.0, "fd": 3.0}) == []


def train(directory: Path, config: GanConfig = TINY, **watchdog: Any) -> int:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState._reset_state()
    run = replace(config.run, directory=str(directory))
    return gan_run.train_gan(replace(config, run=run, watchdog=GanWatchdogConfig(**watchdog)))


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Spoil a gradient of G at an update, so many times."""

    def inject(update: int, times: int) -> None:
        step = GanTrainer.step
        left = [times]

        def spoilt(self: GanTrainer, batches: Any) -> Any:
            if self.update == update and left[0]:
                left[0] -= 1
                parameter = list(self.generator.parameters())[3]
                handle = parameter.register_hook(lambda gradient: gradient * torch.nan)
                try:
                    return step(self, batches)
                finally:
                    handle.remove()
            return step(self, batches)

        monkeypatch.setattr(GanTrainer, "step", spoilt)

    return inject


def checkpoints(directory: Path) -> list[str]:
    return [path.name for path in sorted((directory / "checkpoints").glob("images-*"))]


def weights(directory: Path) -> dict[str, Tensor]:
    folder = directory / "checkpoints" / "images-000000032"
    return {f"{f.name}/{k}": t for f in sorted(folder.glob("*.safetensors")) for k, t in load_file(f).items()}


def test_a_run_stops_and_names_what_became_nan(tmp_path: Path, fault: Callable[[int, int], None]) -> None:
    fault(4, 1)
    with pytest.raises(NotFinite, match=r"at update 5, images 16 to 20, the gradient of generator\.\S+ became"):
        train(tmp_path / "run")
    assert checkpoints(tmp_path / "run") == ["images-000000008", "images-000000016"]
    assert [line["images"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [8, 16]


@pytest.mark.slow
def test_a_run_goes_back_and_on_with_another_seed(
    tmp_path: Path, fault: Callable[[int, int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    fault(4, 1)
    assert train(tmp_path / "run", rollback=2) == 0
    assert "going back from 24 images to 16, with another seed (rollback 1 of 2)" in capsys.readouterr().out
    assert [line["images"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [8, 16, 24, 32]
    extra = json.loads((tmp_path / "run/checkpoints/images-000000032/extra.json").read_text())
    assert extra["rollbacks"] == 1
    gone_back = weights(tmp_path / "run")
    assert all(tensor.isfinite().all() for tensor in gone_back.values())

    # Stopped after it went back, it goes on with its new seed; one that never had to go back has another end.
    shutil.rmtree(tmp_path / "run/checkpoints/images-000000032")
    assert train(tmp_path / "run", rollback=2) == 0
    again = weights(tmp_path / "run")
    assert gone_back.keys() == again.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in gone_back.items())
    assert train(tmp_path / "undisturbed") == 0
    other = weights(tmp_path / "undisturbed")
    assert not all(torch.equal(tensor, other[name]) for name, tensor in gone_back.items())


def test_a_run_goes_back_no_more_often_than_it_may(tmp_path: Path, fault: Callable[[int, int], None]) -> None:
    fault(2, 3)
    with pytest.raises(NotFinite, match="at update 3"):
        train(tmp_path / "run", rollback=2)
    extra = json.loads((tmp_path / "run/checkpoints/images-000000008/extra.json").read_text())
    assert extra["rollbacks"] == 2


@pytest.mark.slow
def test_a_sign_is_logged_and_gone_back_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    look, left = Signs._look, [2]

    def looked(self: Signs) -> dict[str, str]:
        found = look(self)
        if self._seen[-1]["images"] == 24 and left[0]:
            left[0] -= 1
            return {FALLS: "the variety falls"}
        return found

    monkeypatch.setattr(Signs, "_look", looked)
    assert train(tmp_path / "only-logged", sign_updates=1) == 0
    assert "watchdog: at 24 images the variety falls" in capsys.readouterr().out
    flags = [(line[WINS], line[FALLS]) for line in read_metrics(tmp_path / "only-logged" / "metrics.jsonl")]
    assert [flag[1] for flag in flags] == [0, 0, 1, 0]
    # A window of 3 updates before the sign, the checkpoint of 8 images is the newest.
    assert train(tmp_path / "run", sign_updates=3, rollback=1) == 0
    assert "going back from 24 images to 8, with another seed (rollback 1 of 1)" in capsys.readouterr().out
    assert [line[FALLS] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [0, 0, 0, 0]
    # A line is of 2 updates, and so is the least window.
    left[0] = 1
    often = replace(TINY, run=replace(TINY.run, checkpoint_every=4))
    assert train(tmp_path / "often", often, sign_updates=1, rollback=1) == 0
    assert "going back from 24 images to 16, with another seed" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(("later", "best"), [(2.0, (24, 1.0)), (0.5, (32, 0.5))])
def test_the_best_generator_of_a_course_that_was_given_up_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: float, best: tuple[int, float]
) -> None:
    """Scores of 3, 5, 1 and then a sign of collapse at 32 images: back to 16, from where on they are 4 and `later`."""
    look, measure, went_back = Signs._look, gan_run.GanRun.score_now, []
    distances = [{8: 3.0, 16: 5.0, 24: 1.0, 32: 9.0}, {24: 4.0, 32: later}]

    def looked(self: Signs) -> dict[str, str]:
        if self._seen[-1]["images"] == 32 and not went_back:
            went_back.append(True)
            return {FALLS: "the variety falls"}
        return look(self)

    def measured(self: gan_run.GanRun) -> dict[str, float]:
        metrics = measure(self)
        scores = json.loads(self._history().read_text())
        scores["metrics"]["fd"] = metrics["fd"] = distances[self.loop.rollbacks][self.trainer.images_seen]
        self._history().write_text(json.dumps(scores))
        return metrics

    monkeypatch.setattr(Signs, "_look", looked)
    monkeypatch.setattr(gan_run.GanRun, "score_now", measured)
    evaluation = EvaluationConfig(every=8, images=16, reference="digits-test", metrics=("frechet",))
    run = replace(TINY.run, sample_every=8, keep=2)
    directory = tmp_path / "run"

    drop = gan_run.GanRun.drop_lost

    def dropped(self: gan_run.GanRun) -> None:
        drop(self)
        if went_back:
            for folder in ("scores", "samples"):
                assert [int(file.stem) for file in sorted((directory / folder).iterdir())] == [8, 16]

    monkeypatch.setattr(gan_run.GanRun, "drop_lost", dropped)
    assert train(directory, replace(TINY, evaluation=evaluation, run=run), sign_updates=3, rollback=1) == 0
    info = load_model(directory / "best.safetensors").info
    assert info["scores"]["fd-digits"] == {"fd": best[1]} and info["images_seen"] == best[0]
    # The checkpoint of 24 images is of the second course, and no better than the one that was kept as its best.
    assert checkpoints(directory) == ["images-000000024", "images-000000032"]
    found = {path.stem: json.loads(path.read_text())["metrics"]["fd"] for path in (directory / "scores").iterdir()}
    assert found == {"000000008": 3.0, "000000016": 5.0, "000000024": 4.0, "000000032": later}


def test_settings_of_the_watchdog_are_checked() -> None:
    with pytest.raises(ValueError, match=r"watchdog.rollback must be 0 or more, not -1"):
        GanWatchdogConfig(rollback=-1)
    with pytest.raises(ValueError, match=r"watchdog.sign_updates must be at least 1, not 0"):
        GanWatchdogConfig(sign_updates=0)
    with pytest.raises(ValueError, match=r"watchdog.accuracy and watchdog.variety must be in \[0, 1\], not 2.*"):
        GanWatchdogConfig(accuracy=2)
