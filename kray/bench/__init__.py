"""Measurements of the whole step: kray's own, its parts alone, and rivals on the same work."""
