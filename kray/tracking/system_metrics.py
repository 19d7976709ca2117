"""System metrics of the driver's machine, under the names of MLflow's own monitor."""

from __future__ import annotations

import time
from typing import Any


class SystemSamples:
    """Measures CPU, memory, disk, network and GPU use of this machine, under the names of MLflow's own monitor."""

    def __init__(self, started_s: float, every_s: float):
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        self.every_s = every_s
        # Seconds since the run began are counted by a clock that does not jump.
        self._began_s = time.monotonic() - max(0.0, time.time() - started_s)
        self._monitors: list[Any] = []
        for monitor in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor):
            try:
                self._monitors.append(monitor())
            except (ImportError, RuntimeError):
                # Without a GPU or its library there is nothing to measure.
                continue

    def take(self) -> dict[str, Any]:
        """Return one row; its step counts sampling intervals since the run began, so that they increase in a resumed run."""
        ran_s = time.monotonic() - self._began_s
        row: dict[str, Any] = {"step": int(ran_s / self.every_s), "time": time.time()}
        for monitor in self._monitors:
            monitor.collect_metrics()
            row.update({f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()})
            monitor.clear_metrics()
        return row
