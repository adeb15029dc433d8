"""The settings choose the networks, and nothing that they leave idle can be set."""

from __future__ import annotations

from dataclasses import replace

import pytest

from maxgan.config import (
    DiscriminatorConfig,
    GanConfig,
    GeneratorConfig,
    HiTConfig,
    ImageFacts,
    MaxViTDiscriminatorConfig,
    NetworksConfig,
    ResidualGeneratorConfig,
)
from maxgan.models import (
    HiTGenerator,
    MaxViTDiscriminator,
    MaxViTGenerator,
    ResidualDiscriminator,
    ResidualGenerator,
)
from maxgan.models.build import build_discriminator, build_generator

FACTS = ImageFacts(32, 1, 3)
GENERATOR = GeneratorConfig(width=16, head_dim=8)
HIT = HiTConfig(widths=(16, 16, 8), heads=(4, 2, 2))
RESIDUAL = DiscriminatorConfig(1 / 64, 16)
CONVOLUTIONS = ResidualGeneratorConfig(width=16)
MAXVIT = MaxViTDiscriminatorConfig(width=16, head_dim=8)


def test_the_networks_are_those_that_are_named() -> None:
    first = GanConfig(generator=GENERATOR, discriminator=RESIDUAL)
    second = GanConfig(networks=NetworksConfig("hit", "maxvit"), hit=HIT, maxvit_discriminator=MAXVIT)
    third = GanConfig(networks=NetworksConfig("residual"), residual_generator=CONVOLUTIONS)
    for config, generator, discriminator in (
        (first, MaxViTGenerator, ResidualDiscriminator),
        (second, HiTGenerator, MaxViTDiscriminator),
        (third, ResidualGenerator, ResidualDiscriminator),
    ):
        networks = build_generator(config, FACTS), build_discriminator(config, FACTS)
        assert [type(network) for network in networks] == [generator, discriminator]
        for network in networks:
            assert (network.resolution, network.channels, network.num_classes) == (32, 1, 3)
    assert build_generator(first, FACTS).config == GENERATOR
    assert build_generator(second, FACTS).config == HIT
    assert build_generator(third, FACTS).config == CONVOLUTIONS
    assert build_discriminator(first, FACTS).config == RESIDUAL
    assert build_discriminator(second, FACTS).config == MAXVIT


@pytest.mark.parametrize(
    ("networks", "sections", "message"),
    [
        (
            NetworksConfig("hit"),
            {"generator": replace(GanConfig().generator, depth=2)},
            r"^generator\.depth is set, but networks\.generator is hit: leave it out .*, or set networks\.\w+ to",
        ),
        (NetworksConfig(), {"hit": HIT}, r"^hit\.heads is set, but networks\.generator is maxvit: leave it out"),
        (NetworksConfig(), {"residual_generator": CONVOLUTIONS}, r"^residual_generator\.width is set, .* to residual$"),
        (NetworksConfig(), {"maxvit_discriminator": MAXVIT}, r"^maxvit_discriminator\.head_dim is set, but n"),
        (
            NetworksConfig(discriminator="maxvit"),
            {"discriminator": RESIDUAL},
            r"^discriminator\.channel_multiplier is set, but networks\.discriminator is maxvit: .* to residual$",
        ),
    ],
)
def test_a_setting_of_a_network_that_is_not_chosen_is_an_error(
    networks: NetworksConfig, sections: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        GanConfig(networks=networks, **sections)
