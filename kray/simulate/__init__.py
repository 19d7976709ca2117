"""What the planner's modes would do on a population of prompts, without a model: numpy, and matplotlib for the figure."""
