"""The configuration of a run: schema, loading with errors that name file and line, checks, placement and previews.

Importing this package loads OmegaConf and YAML, but neither Ray nor torch nor MLflow.
"""

from kray.config.advice import warnings
from kray.config.export import changed_keys, digest, flat, to_yaml
from kray.config.loading import kept_config, load_checked, load_config
from kray.config.preview import derived, preview
from kray.config.prompts_schema import PromptsConfig, SourceConfig
from kray.config.redaction import redact
from kray.config.schema import (
    EnvironmentConfig,
    EvaluateConfig,
    KrayConfig,
    LoraConfig,
    ModelConfig,
    RewardConfig,
    RolloutConfig,
    RunConfig,
    TinyPolicyConfig,
    TrackConfig,
)
from kray.config.train_schema import TrainConfig
from kray.config.validation import check, require
from kray.plan_modes import PlanConfig

__all__ = [
    "EnvironmentConfig",
    "EvaluateConfig",
    "KrayConfig",
    "LoraConfig",
    "ModelConfig",
    "PlanConfig",
    "PromptsConfig",
    "RewardConfig",
    "RolloutConfig",
    "RunConfig",
    "SourceConfig",
    "TinyPolicyConfig",
    "TrackConfig",
    "TrainConfig",
    "changed_keys",
    "check",
    "derived",
    "digest",
    "flat",
    "kept_config",
    "load_checked",
    "load_config",
    "preview",
    "redact",
    "require",
    "to_yaml",
    "warnings",
]
