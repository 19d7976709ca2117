"""kray: reinforcement learning for language models, with a planner that decides how many rollouts each prompt gets."""

__version__ = "0.1.0"
