"""Which prompt deserves how many rollouts: values, the solver, beliefs, and the planner that joins them.

Pure numpy and scipy: importing this loads neither Ray nor torch.
"""

from kray.planner.beliefs import Beliefs
from kray.planner.planner import KnapsackPlanner
from kray.planner.solver import solve
from kray.planner.values import BetaValue, PointValue

__all__ = ["Beliefs", "BetaValue", "KnapsackPlanner", "PointValue", "solve"]
