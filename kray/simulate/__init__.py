"""Simulations of the planner's modes on a population of prompts, without a model: numpy, and matplotlib for the figure."""
