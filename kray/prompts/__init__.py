"""Prompts: where they come from, how they become tokens, and in which order they are visited.

Importing this room loads none of pyarrow, datasets, reasoning_gym and transformers: each is imported when a source needs it.
"""

from kray.prompts.sampler import PromptSampler
from kray.prompts.sources import SOURCES, load_prompts, load_tests
from kray.prompts.tokenize import encode_prompt

__all__ = ["SOURCES", "PromptSampler", "encode_prompt", "load_prompts", "load_tests"]
