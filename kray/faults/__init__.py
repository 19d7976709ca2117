"""Faults on purpose, to prove that a run survives them: for tests and jobs/bench_chaos.py. The product imports none of it."""
