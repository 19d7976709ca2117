"""What engines and learner ranks need to take turns on the same devices (rollout.colocate). Pure."""

from __future__ import annotations

from collections.abc import Iterator

from kray.config.schema import KrayConfig


def turn_problems(config: KrayConfig) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield (keys, problem) for each setting that colocation excludes."""
    rollout, train = config.rollout, config.train
    if not rollout.colocate:
        return
    if config.async_.max_staleness:
        text = (
            f"rollout.colocate has engines and learner take turns, and async.max_staleness {config.async_.max_staleness} "
            "has them overlap: set it to 0"
        )
        yield ("rollout.colocate", "async.max_staleness"), text
    fewest = rollout.engines if rollout.min_engines is None else rollout.min_engines
    if not fewest == rollout.engines == train.ranks:
        keys = ("rollout.colocate", "rollout.engines", "rollout.min_engines", "train.ranks")
        text = f"rollout.engines {rollout.engines} and rollout.min_engines must equal train.ranks {train.ranks}"
        yield keys, f"rollout.colocate places one engine beside each rank: {text}"
    if rollout.gpus_per_engine != train.gpus_per_rank:
        shared = ("rollout.colocate", "rollout.gpus_per_engine", "train.gpus_per_rank")
        text = f"rollout.gpus_per_engine {rollout.gpus_per_engine} must equal train.gpus_per_rank {train.gpus_per_rank}"
        yield shared, f"rollout.colocate has an engine and a rank share what they compute on: {text}"
    if rollout.spare:
        text = (
            "rollout.spare prepares engines that have their CPUs for themselves, and those of rollout.colocate do not"
        )
        yield ("rollout.spare", "rollout.colocate"), text
