"""The job's side of a comparison: replaces its driver when that is lost, and gives up a run that loses too many.

A driver is lost when it dies, or when a learner rank does. The run that was being trained begins anew under the next driver;
it is given up once it has lost more than run.max_restarts of them, and the others go on. What keeps the first run from
beginning ends the comparison: nothing is lost by that.
"""

from __future__ import annotations

import logging
import time
from itertools import count
from typing import Any

from kray.cluster.folder_lock import FolderLock
from kray.compare.failures import failure, forget, give_up, under_way
from kray.compare.study import Study
from kray.config.actor_options import variables_of
from kray.driver.provenance import tags
from kray.driver.recovery import Restarts
from kray.driver.remote import clear_after_loss, driver_actor, follow_driver
from kray.errors import InfrastructureError, KrayError

logger = logging.getLogger(__name__)


class Losses:
    """Counts lost drivers by the run that was being trained, and decides how to go on."""

    def __init__(self, study: Study):
        self.study = study
        # A run was being trained when a driver was lost, or is done: what else could prevent all of them is out of question.
        self._begun = False
        self._to_do = len(study.todo())
        self._restarts: dict[str, Restarts] = {}

    def lost(self, loss: InfrastructureError, now: float) -> float:
        """Count a loss; give up the run that was being trained when it has lost too many.

        Args:
            loss: Why the driver was lost.
            now: Monotonic seconds.

        Returns:
            Seconds to wait before another driver is started.

        Raises:
            KrayError: No run was being trained, and none before, or too many drivers were lost.
        """
        noted, run = under_way(self.study), self.study.base.run
        child = noted.child(self.study) if noted else None
        if child is not None and failure(child):
            child = None
        name = child.name if child else ""
        first = name not in self._restarts
        if child is None and not self._begun and len(self.study.todo()) == self._to_do:
            raise KrayError(f"{loss}; no run had begun") from loss
        self._begun = True
        restarts = self._restarts.setdefault(name, Restarts(run.max_restarts, run.restart_window_s))
        wait_s = restarts.lost(now, progress=first and child is not None)
        if wait_s is not None:
            again = f"; {name} begins anew" if child else ""
            logger.info(f"{loss}; starting another driver{f' in {wait_s:.0f} s' if wait_s else ''}{again}")
            return wait_s
        if child is None:
            spent = f"not started again after {restarts.spent} (run.max_restarts)"
            raise KrayError(f"{loss}; the same command goes on with {self.study.folder}; {spent}") from loss
        give_up(child, str(loss), run.max_restarts + 1)
        logger.warning(f"{child.name} is given up after {restarts.spent} (run.max_restarts), the others go on: {loss}")
        return 0.0


def run_comparison(study: Study, model: str, prompts: Any, lock: FolderLock) -> Any:
    """Run what is not done; return the Outcome.

    Args:
        study: The comparison.
        model: Its start model.
        prompts: As `share_prompts` returns them.
        lock: Of its folder.

    Raises:
        KrayError: The comparison cannot go on.
    """
    from kray.compare.run import Comparison

    forget(study)
    losses, base = Losses(study), study.base.run
    for number in count():
        created = driver_actor(Comparison, study.folder, number, variables_of(base.env))
        driver = created.remote(study, model, tags(), prompts, lock.ticket, number)
        try:
            return follow_driver(driver, "compare", study.folder, lock, base.stop_after_s)
        except InfrastructureError as loss:
            time.sleep(losses.lost(loss, time.monotonic()))
            clear_after_loss(study.folder, lock)
    return None
