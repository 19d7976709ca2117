"""Ray Serve: the trained policy behind OpenAI's API, the planner and the rewards as services for other trainers.

access.py, plans.py and the messages of the APIs are plain Python; Ray and FastAPI are imported where a service is built.
"""
