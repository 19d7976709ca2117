"""Ray Serve: the trained policy behind OpenAI's API, and the planner and the rewards as services for other trainers.

access.py, gate.py, plan_store.py and the requests of the APIs are plain Python; Ray and FastAPI are imported where a service
is built.
"""
