"""Every setting of maxgan, with its default and its meaning: the only place where defaults live.

One frozen dataclass a concern. Nothing here imports torch, so reading a config costs milliseconds. The text under
each field is what `--help` prints.
"""

from maxgan.config.classifier import AffineConfig, ClassifierConfig, ClassifierOptimConfig, MixConfig
from maxgan.config.gan import GanConfig
from maxgan.config.identity import FREE, differences, learning_hash, learning_settings, to_dict
from maxgan.config.images import DataConfig, ImageFacts, PackConfig, check_gan_resolution
from maxgan.config.networks import (
    BackboneConfig,
    DiscriminatorConfig,
    GeluForm,
    GeneratorConfig,
    HiTConfig,
    MaxViTDiscriminatorConfig,
    NetworksConfig,
    Norm,
    Normalization,
    Padding,
    ResidualGeneratorConfig,
    Shortcut,
)
from maxgan.config.objective import ADA, AUGMENTATIONS, AugmentConfig, LossConfig, LossName
from maxgan.config.schedules import Gamma, Schedule, Scheduled, values_of
from maxgan.config.scores import EvaluateConfig, EvaluationConfig, Metric, SampleConfig, ScoreConfig
from maxgan.config.tools import (
    BestAverageConfig,
    ClassSheetConfig,
    ExploreConfig,
    FeatureConfig,
    InterpolateConfig,
    InvertConfig,
    NeighboursConfig,
    ReconstructConfig,
    ReportConfig,
)
from maxgan.config.training import (
    CompileMode,
    EmaConfig,
    GanEmaConfig,
    GanWatchdogConfig,
    OptimConfig,
    RunConfig,
    TrainingConfig,
    WatchdogConfig,
)

__all__ = [
    "ADA",
    "AUGMENTATIONS",
    "FREE",
    "AffineConfig",
    "AugmentConfig",
    "BackboneConfig",
    "BestAverageConfig",
    "ClassSheetConfig",
    "ClassifierConfig",
    "ClassifierOptimConfig",
    "CompileMode",
    "DataConfig",
    "DiscriminatorConfig",
    "EmaConfig",
    "EvaluateConfig",
    "EvaluationConfig",
    "ExploreConfig",
    "FeatureConfig",
    "Gamma",
    "GanConfig",
    "GanEmaConfig",
    "GanWatchdogConfig",
    "GeluForm",
    "GeneratorConfig",
    "HiTConfig",
    "ImageFacts",
    "InterpolateConfig",
    "InvertConfig",
    "LossConfig",
    "LossName",
    "MaxViTDiscriminatorConfig",
    "Metric",
    "MixConfig",
    "NeighboursConfig",
    "NetworksConfig",
    "Norm",
    "Normalization",
    "OptimConfig",
    "PackConfig",
    "Padding",
    "ReconstructConfig",
    "ReportConfig",
    "ResidualGeneratorConfig",
    "RunConfig",
    "SampleConfig",
    "Schedule",
    "Scheduled",
    "ScoreConfig",
    "Shortcut",
    "TrainingConfig",
    "WatchdogConfig",
    "check_gan_resolution",
    "differences",
    "learning_hash",
    "learning_settings",
    "to_dict",
    "values_of",
]
