"""Keys whose default depends on the devices that engines and learner ranks compute on."""

from __future__ import annotations

from kray.config.schema import KrayConfig


def dtype_of(config: KrayConfig) -> str:
    """Return the type of the engines' weights and of the learner's computation: float32 or bfloat16.

    An engine on a GPU multiplies float32 with fewer digits than a learner on CPU, so that one GPU decides for both.
    """
    if config.model.dtype != "auto":
        return config.model.dtype
    return "bfloat16" if config.rollout.gpus_per_engine or config.train.gpus_per_rank else "float32"


def eager_of(config: KrayConfig) -> bool:
    """Return whether engines skip compilation and graph capture."""
    return config.rollout.gpus_per_engine == 0 if config.rollout.eager is None else config.rollout.eager


def settle_by_device(config: KrayConfig, begun: KrayConfig | None) -> None:
    """Set, in place, the keys that the configuration leaves to the devices.

    Args:
        config: The configuration, all values of the right type.
        begun: Of the run that is resumed: it goes on with what was chosen for it.
    """
    if begun is not None:
        config.model.dtype = dtype_of(begun) if config.model.dtype == "auto" else config.model.dtype
        config.rollout.eager = eager_of(begun) if config.rollout.eager is None else config.rollout.eager
        if config.train.reduce_each_microbatch is None and config.train.offload == begun.train.offload:
            config.train.reduce_each_microbatch = begun.train.reduce_each_microbatch
    config.model.dtype, config.rollout.eager = dtype_of(config), eager_of(config)
    if config.train.ranks == 1 and config.train.offload != "all" and config.train.reduce_each_microbatch is None:
        # One rank holds the whole gradient in any case.
        config.train.reduce_each_microbatch = False
