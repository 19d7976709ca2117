"""Rollouts: pure scheduling decisions, the Ray pool that carries them out, and the vLLM engine."""
