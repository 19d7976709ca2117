"""Environments: what answers the policy where a rollout is a conversation of several turns.

`interface.py` says what an environment is. It acts in processes of its own (`stage.py`); kray/rollout/conversation.py puts its
answers between the policy's turns.
"""

from kray.environments.interface import Environment, Observation
from kray.environments.registry import ENVIRONMENTS, check_environment, load_environment, stops_of

__all__ = ["ENVIRONMENTS", "Environment", "Observation", "check_environment", "load_environment", "stops_of"]
