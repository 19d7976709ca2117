"""The Ray cluster that a job joins or starts, and what this machine has."""
