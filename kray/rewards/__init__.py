"""Rewards: what a response is worth.

`score` judges one response here and now; `Scorer` judges many in processes of its own, each answer under a deadline.
Importing this room loads none of the verifiers' libraries: each is imported when it is first used.
"""

from kray.rewards.scorer import Outcome, Scorer
from kray.rewards.verifiers import VERIFIERS, Reward, check_answer, check_verifier, load_verifier, score

__all__ = ["VERIFIERS", "Outcome", "Reward", "Scorer", "check_answer", "check_verifier", "load_verifier", "score"]
