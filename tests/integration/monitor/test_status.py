"""The status of a real driver actor."""

from __future__ import annotations

from kray.config import KrayConfig
from kray.monitor.client import read_driver_address, write_driver_address


def test_a_driver_answers_while_its_loop_is_kept_busy(ray_local, tmp_path):
    """Asked as another job would, by name, of a driver whose event loop is stuck."""
    from kray.driver.actor import Driver
    from kray.driver.remote import driver_actor

    class Stuck(Driver):
        async def hang(self, seconds: float) -> None:
            import time

            time.sleep(seconds)

    folder = tmp_path / "stuck"
    driver = driver_actor(Stuck, folder).remote(KrayConfig(), "", str(folder), "", {})
    ray_local.get(driver.status.remote(), timeout=60)
    hanging = driver.hang.remote(20.0)
    write_driver_address(folder)
    assert read_driver_address(folder)[0]
    names = [one["name"] for one in ray_local.util.list_named_actors(all_namespaces=True) if one["namespace"] == "kray"]
    (name,) = [name for name in names if name.startswith("kray-stuck-driver-")]
    found = ray_local.get(ray_local.get_actor(name, namespace="kray").status.remote(), timeout=10)
    assert found["state"] == "starting"
    assert not ray_local.wait([hanging], timeout=0)[0]
    ray_local.kill(driver)
