"""Load prompts, encode them as tokens, and choose the order in which they are visited.

Importing this package loads none of pyarrow, datasets, reasoning_gym and transformers: each is imported when a source needs
it.
"""

from kray.prompts.sampler import PromptSampler
from kray.prompts.sources import SOURCES, load_prompts, load_tests
from kray.prompts.tokenize import encode_prompt

__all__ = ["SOURCES", "PromptSampler", "encode_prompt", "load_prompts", "load_tests"]
