"""Score responses with verifiers.

`score` judges one response in the calling process, without a deadline; `Scorer` judges many in worker processes, each
under a deadline. Importing this package loads none of the verifiers' libraries: each is imported when it is first used.
"""

from kray.rewards.scorer import Outcome, Scorer
from kray.rewards.signatures import Sample
from kray.rewards.verifiers import VERIFIERS, Reward, check_answer, check_prompt, check_verifier, load_verifier, score

__all__ = [
    "VERIFIERS",
    "Outcome",
    "Reward",
    "Sample",
    "Scorer",
    "check_answer",
    "check_prompt",
    "check_verifier",
    "load_verifier",
    "score",
]
