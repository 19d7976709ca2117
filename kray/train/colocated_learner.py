"""A rank that shares its device with an engine: its state leaves the device while the engine generates."""

from __future__ import annotations

from torch import Tensor

from kray.config.train_schema import TrainConfig
from kray.train.learner import Learner
from kray.train.offload import DeviceState


class ColocatedLearner(Learner):
    """A learner whose state is on the device between `enter_device` and `leave_device`.

    It begins on the device. Elsewhere `save` and `load` use what is in main memory, and nothing can be computed.
    """

    def configure(self, train: TrainConfig, total_steps: int) -> None:
        """See `Learner.configure`."""
        super().configure(train, total_steps)
        kept = [*self.model.parameters(), *self.optimizer.tensors().values()]
        if self.reference is not None:
            kept += self.reference.parameters()
        self.on_device = DeviceState(kept, self.device)

    def leave_device(self) -> int:
        """Move the state to main memory; does nothing when it is there.

        Returns:
            Bytes that left the device.
        """
        self.model.reshard()
        if self.reference is not None:
            self.reference.reshard()
        self.on_device.leave()
        return self.on_device.nbytes

    def enter_device(self) -> None:
        """Move the state to the device; does nothing when it is there."""
        self.on_device.enter()

    def _sharded_state(self) -> dict[str, Tensor]:
        return self.on_device.stored(super()._sharded_state())
