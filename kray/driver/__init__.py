"""The driver actor: what runs in it, and the client with which a job holds it."""
