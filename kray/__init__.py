"""kray: reinforcement learning for language models that spends its rollouts where they teach most."""

__version__ = "0.1.0"
