"""Environments: multi-turn tasks that reply to the policy between its turns.

interface.py defines what an environment is. Environments run in processes of their own (workers.py);
kray/rollout/conversation.py puts their observations between the policy's turns.
"""

from kray.environments.interface import Environment, Observation, RoleEnvironment
from kray.environments.registry import (
    ENVIRONMENTS,
    check_environment,
    check_players,
    gives_reward,
    load_environment,
    options_of,
    roles_of,
    stops_of,
)

__all__ = [
    "ENVIRONMENTS",
    "Environment",
    "Observation",
    "RoleEnvironment",
    "check_environment",
    "check_players",
    "gives_reward",
    "load_environment",
    "options_of",
    "roles_of",
    "stops_of",
]
