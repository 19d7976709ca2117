"""Planning: how many rollouts each prompt gets. Values, the solver, beliefs, and the planner that combines them.

Pure numpy and scipy: importing this package loads neither Ray nor torch.
"""

from kray.planner.baseline_value import BaselineValue
from kray.planner.beliefs import Beliefs
from kray.planner.planner import MODES, KnapsackPlanner
from kray.planner.quadrature import CobaValue, GrpoValue
from kray.planner.solver import solve
from kray.planner.step_plan import StepPlan
from kray.planner.values import BetaValue, PointValue

__all__ = [
    "MODES",
    "BaselineValue",
    "Beliefs",
    "BetaValue",
    "CobaValue",
    "GrpoValue",
    "KnapsackPlanner",
    "PointValue",
    "StepPlan",
    "solve",
]
