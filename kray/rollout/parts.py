"""Into which rollout tasks the rollouts of a prompt are split. Pure."""

from __future__ import annotations


def split_rollouts(rollouts: int, largest: int) -> list[tuple[int, int]]:
    """Split a group's rollouts into the fewest parts of at most `largest`, as even as possible: 70 by 32 is 24 + 23 + 23.

    Returns:
        (first index, count) of each part, in order.
    """
    parts = -(-rollouts // largest)
    base, extra = divmod(rollouts, parts) if parts else (0, 0)
    return [(i * base + min(i, extra), base + (i < extra)) for i in range(parts)]


def largest_part(rollouts: int, engines: int, most: int) -> int:
    """Return how many rollouts of one prompt to put into one task.

    An eighth of an engine's even share, so that the last parts balance the engines, but at least 2, because every part on
    another engine computes its prompt again. In simulated steps (jobs/bench_pool.py) with few rollouts per engine this
    reduces the makespan by up to a quarter against fixed parts of 32; above 256 rollouts per engine it equals `most`.

    Args:
        rollouts: Rollouts of the whole step.
        engines: Engines of the pool.
        most: Upper limit (rollout.split).
    """
    return min(most, max(2, round(rollouts / (8 * engines))))
