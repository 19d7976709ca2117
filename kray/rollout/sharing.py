"""Whose turn it is on devices that engines share with learner ranks (rollout.colocate).

Pure: owns no actor, thread or clock.

    ENTER -> LEARN -> LEAVE -> WAKE -> GENERATE -> SLEEP -> ENTER -> ...

GENERATE: engines serve, the learner's state is in main memory. SLEEP: engines end their work and free the device. ENTER: ranks
start, or their state comes to the device. LEARN: the learner updates the policy, gathers its weights and computes the
log-probabilities of the probe. LEAVE: its state goes to main memory. WAKE: engines get their memory for weights, load the
published ones, get their memory for keys and values, and prove the weights. A run begins in ENTER without ranks and engines.

Guarantees, asserted after every event
- The learner's state is on the device in ENTER, LEARN and LEAVE only, and an engine holds memory there in WAKE, GENERATE and
  SLEEP only: never both.
- An engine serves only in GENERATE, or in WAKE before the others.
An event that does not fit raises ValueError and changes nothing.

Deadlines: ENTER, each call of LEARN, and LEAVE end with train.timeout_s and an InfrastructureError; an engine that does not
sleep, wake or load within rollout.sync_timeout_s is lost; SLEEP and WAKE as a whole end with rollout.start_timeout_s.

What a loss leads to
- An engine: its memory is free, on a GPU a moment later, for which a rank that enters waits. In WAKE and GENERATE it may start
  again at once and proves the published weights; in SLEEP it counts as asleep; in the learner's phases it starts when these are
  over (`may_start`).
- The learner: nothing that it held is left, so new ranks start and load a checkpoint. In GENERATE and WAKE the engines go to
  sleep first; in SLEEP they are about to; in ENTER, LEARN and LEAVE the device is free at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Phase(Enum):
    """What the shared devices are used for; see above."""

    ENTER = "the learner's state comes to the device"
    LEARN = "the learner updates the policy"
    LEAVE = "the learner's state leaves the device"
    WAKE = "engines load and prove the weights"
    GENERATE = "engines generate"
    SLEEP = "engines go to sleep"


class Held(Enum):
    """What an engine holds of its device.

    Attributes:
        NOTHING: It has no process.
        ASLEEP: Its weights, keys and values are discarded.
        AWAKE: It starts, loads, or has proved older weights.
        SERVING: It serves the published weights.
    """

    NOTHING = "nothing"
    ASLEEP = "asleep"
    AWAKE = "awake"
    SERVING = "serving"


class Place(Enum):
    """Where the learner's state is."""

    NOWHERE = "no rank is up"
    DEVICE = "on the device"
    HOST = "in main memory"


ENGINES_TURN = (Phase.WAKE, Phase.GENERATE)


@dataclass
class Turns:
    """The turns of engines and learner.

    Attributes:
        engines: Name -> what it holds.
        phase: The present phase.
        learner: Where the learner's state is.
    """

    engines: dict[str, Held] = field(default_factory=dict)
    phase: Phase = Phase.ENTER
    learner: Place = Place.NOWHERE

    # -- what may be done now -----------------------------------------------------------------------------------------

    @property
    def may_start(self) -> bool:
        """Whether an engine may start or wake."""
        return self.phase in ENGINES_TURN

    @property
    def all_asleep(self) -> bool:
        """Whether no engine holds memory of its device."""
        return all(held in (Held.NOTHING, Held.ASLEEP) for held in self.engines.values())

    # -- the turns ----------------------------------------------------------------------------------------------------

    def request_learner(self) -> None:
        """End the engines' turn: each of them is to go to sleep."""
        self._require(Phase.GENERATE, Phase.WAKE)
        self._begin(Phase.SLEEP)

    def engines_asleep(self) -> None:
        """Begin the learner's turn."""
        self._require(Phase.SLEEP)
        if not self.all_asleep:
            awake = [name for name, held in self.engines.items() if held in (Held.AWAKE, Held.SERVING)]
            raise ValueError(f"{awake[0]} still holds memory of its device")
        self._begin(Phase.ENTER)

    def learner_entered(self) -> None:
        """Record that ranks have started, or that their state is on the device."""
        self._require(Phase.ENTER)
        self.learner = Place.DEVICE
        self._begin(Phase.LEARN)

    def learner_leaves(self) -> None:
        """Record that the learner's state begins to leave the device."""
        self._require(Phase.LEARN)
        self._begin(Phase.LEAVE)

    def learner_stays(self) -> None:
        """Record that leaving was given up: the state may be in either place, and is to enter again."""
        self._require(Phase.LEAVE)
        self._begin(Phase.ENTER)

    def learner_left(self) -> None:
        """Record that the learner's state is in main memory: it is the engines' turn."""
        self._require(Phase.LEAVE)
        self.learner = Place.HOST
        self._begin(Phase.WAKE)

    def engines_serve(self) -> None:
        """Record that the weights are published: those engines that are left serve them."""
        self._require(Phase.WAKE)
        if Held.SERVING not in self.engines.values():
            raise ValueError("no engine serves the published weights")
        self._begin(Phase.GENERATE)

    # -- engines ------------------------------------------------------------------------------------------------------

    def engine_starts(self, name: str) -> None:
        """Record that an engine's process begins to take memory."""
        self._require(*ENGINES_TURN)
        self._change(name, Held.AWAKE, Held.NOTHING)

    def engine_wakes(self, name: str) -> None:
        """Record that an engine that slept begins to take memory."""
        self._require(*ENGINES_TURN)
        self._change(name, Held.AWAKE, Held.ASLEEP)

    def engine_serves(self, name: str) -> None:
        """Record that an engine has proved the published weights; does nothing when it served already."""
        self._require(*ENGINES_TURN)
        self._change(name, Held.SERVING, Held.AWAKE, Held.SERVING)

    def engine_asleep(self, name: str) -> None:
        """Record that an engine sleeps."""
        self._require(Phase.SLEEP)
        self._change(name, Held.ASLEEP, Held.AWAKE, Held.SERVING)

    def engine_lost(self, name: str) -> None:
        """Record that an engine's process is gone."""
        self.engines[name] = Held.NOTHING
        self._check()

    # -- the learner --------------------------------------------------------------------------------------------------

    def learner_lost(self) -> None:
        """Record that the ranks are gone; new ones may start in ENTER."""
        self.learner = Place.NOWHERE
        self._begin(Phase.SLEEP if self.phase in (*ENGINES_TURN, Phase.SLEEP) else Phase.ENTER)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _require(self, *phases: Phase) -> None:
        if self.phase not in phases:
            expected = " or ".join(phase.value for phase in phases)
            raise ValueError(f"a shared device is not ready for this: {self.phase.value}, not {expected}")

    def _change(self, name: str, to: Held, *before: Held) -> None:
        held = self.engines.get(name, Held.NOTHING)
        if held not in before:
            raise ValueError(f"{name} holds {held.value} and cannot become {to.value}")
        self.engines[name] = to
        self._check()

    def _begin(self, phase: Phase) -> None:
        self.phase = phase
        self._check()

    def _check(self) -> None:
        learners_turn = self.phase in (Phase.ENTER, Phase.LEARN, Phase.LEAVE)
        assert learners_turn or self.learner is not Place.DEVICE, (
            f"the learner is on the device while {self.phase.value}"
        )
        assert not learners_turn or self.all_asleep, f"an engine is awake while {self.phase.value}: {self.engines}"


@dataclass(frozen=True)
class Sharing:
    """What a pool needs to share its devices with the learner.

    Attributes:
        turns: Whose turn it is.
        options: Name of an engine -> options of its actor, which place it beside its rank.
    """

    turns: Turns
    options: Callable[[str], dict[str, Any]]
