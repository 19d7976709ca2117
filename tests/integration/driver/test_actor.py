"""What the driver actor sees of the machine."""

from __future__ import annotations

import os

from kray.config import KrayConfig
from kray.driver.actor import Driver
from kray.driver.remote import driver_actor


class Watched(Driver):
    """A driver that tells what it and its children see."""

    async def gpus(self) -> tuple[str, str]:
        import ray

        seen = ray.remote(num_gpus=1, max_calls=1)(lambda: os.environ.get("CUDA_VISIBLE_DEVICES", "none"))
        return os.environ["CUDA_VISIBLE_DEVICES"], await seen.remote()


def test_engines_see_gpus_and_the_driver_none(ray_local, tmp_path):
    driver = driver_actor(Watched, tmp_path).remote(KrayConfig(), "", str(tmp_path), "", {})
    assert ray_local.get(driver.gpus.remote(), timeout=60) == ("", "0")
    ray_local.kill(driver)
