"""What a run shows while it is under way: its status, a view for the terminal, Prometheus metrics."""
