"""Which protocol a name stands for, and what goes into it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from maxgan.evaluation import protocols
from maxgan.evaluation.features import Kept
from maxgan.evaluation.protocols import PROTOCOLS, choose_protocol, customised, with_images


def test_published_protocols_state_what_the_specification_says() -> None:
    facts = {
        name: (p.extractor, p.resize, p.quantisation, p.num_images, p.inception_logits, p.inception_splits)
        for name, p in PROTOCOLS.items()
    }
    assert facts == {
        "fid50k-train-2015-clean": ("inception-2015", "clean", "uint8", 50_000, 1008, 10),
        "fid50k-train-2015-tf1": ("inception-2015", "tf1", "uint8", 50_000, 1008, 10),
        "adm-train-npz": ("inception-2015", "tf1", "uint8", 50_000, 1008, 10),
        "hit-val50k": ("inception-keras", "tf2", "none", 50_000, 1000, 10),
    }
    assert {p.frechet for p in PROTOCOLS.values()} == {"FID"}
    assert PROTOCOLS["hit-val50k"].reference_crop == 0.875


def test_a_classifiers_protocol_is_named_by_it() -> None:
    for protocol, extractor in (choose_protocol(None, "digits"), choose_protocol("fd-digits")):
        assert (protocol.name, protocol.frechet, extractor.name) == ("fd-digits", "FD-digits", "digits")
        assert protocol.cut == "extractor"


def test_mistakes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="there is no protocol fid50k-train-2015: name fid50k-train-2015-clean or fid"):
        choose_protocol("fid50k-train-2015")
    with pytest.raises(ValueError, match="there is no protocol hit-val10k: name hit-val50k"):
        choose_protocol("hit-val10k")
    with pytest.raises(ValueError, match="contradict each other"):
        choose_protocol("fd-birds", "digits")
    with pytest.raises(ValueError, match="has its own extractor"):
        choose_protocol("hit-val50k", "digits")
    with pytest.raises(ValueError, match="has its own extractor"):
        choose_protocol("hit-val50k", "inception-2015-torchscript")
    for name in ("inception-2015", "inception-2015-torchscript"):
        with pytest.raises(ValueError, match="name fid50k-train-2015-clean or fid50k-train-2015-tf1 or adm-train-npz"):
            choose_protocol(None, name)
    with pytest.raises(ValueError, match="name a protocol, or an extractor"):
        choose_protocol(None)


def test_a_published_protocol_loads_its_extractor_with_its_resize(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(protocols, "load_extractor", lambda name, **options: asked.append((name, options)))
    choose_protocol("adm-train-npz", weights="w.pth", trust_weights=True)
    options = {"weights": "w.pth", "resize": "tf1", "trust_weights": True}
    assert asked == [("inception-2015", options)]
    # The same network in clean-fid's file, which gives features alone.
    asked.clear()
    protocol, _ = choose_protocol("fid50k-train-2015-clean", "inception-2015-torchscript")
    assert asked == [("inception-2015-torchscript", {"weights": None, "resize": "clean", "trust_weights": False})]
    assert protocol == replace(
        PROTOCOLS["fid50k-train-2015-clean"], extractor="inception-2015-torchscript",
        metrics=("frechet", "kernel", "precision_recall", "density_coverage"),
    )  # fmt: skip
    assert choose_protocol("adm-train-npz", "inception-2015-torchscript")[0].metrics == ("frechet",)


def test_an_extractor_of_any_size_is_named_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    small = SimpleNamespace(name="dinov2-small", resize="clean")
    monkeypatch.setattr(protocols, "load_extractor", lambda name, **_: small if name == "dinov2" else None)
    for names in (("fd-dinov2", None), ("fd-dinov2", "dinov2"), ("fd-dinov2-small", "dinov2"), (None, "dinov2")):
        assert choose_protocol(*names)[0].name == "fd-dinov2-small"
    with pytest.raises(ValueError, match="contradict each other"):
        choose_protocol("fd-dinov2-base", "dinov2")


def test_another_number_of_images_is_part_of_the_name() -> None:
    protocol = PROTOCOLS["hit-val50k"]
    assert with_images(protocol, 50_000) == protocol
    assert with_images(protocol, 100).name == "hit-val50k-with-100-images"
    classifier = replace(protocol, name="fd-x", num_images=None)
    assert (with_images(classifier, 100).name, with_images(classifier, 100).num_images) == ("fd-x", 100)


def test_features_are_kept_only_where_they_are_needed() -> None:
    protocol = PROTOCOLS["fid50k-train-2015-clean"]
    statistics = customised(protocol, ["frechet", "inception_score"])
    assert statistics.kept_of_reals == Kept(features=False)
    assert statistics.kept_of_fakes == Kept(False, 10, 2020)
    assert customised(protocol, ["frechet"]).kept_of_fakes == Kept(False, 0, 2020)
    # What ADM publishes is enough for all that its protocol names.
    assert PROTOCOLS["adm-train-npz"].kept_of_reals == Kept(features=False, spatial=True)
    assert PROTOCOLS["adm-train-npz"].kept_of_fakes == Kept(False, 10, None, spatial=True)
    assert customised(protocol, ["frechet"], resamples=5).kept_of_fakes.features
    assert not customised(protocol, ["frechet"], resamples=5).kept_of_reals.features
    assert not customised(protocol, ["half_split"]).kept_of_fakes.features
    assert customised(protocol, ["half_split"]).kept_of_reals.features
    assert customised(protocol).metrics == protocol.metrics
    with pytest.raises(ValueError, match="0 or at least 2, not 1 and 0"):
        customised(protocol, resamples=1)
