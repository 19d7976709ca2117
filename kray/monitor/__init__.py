"""What a run tells of itself while it goes on: status, terminal view, Prometheus."""
