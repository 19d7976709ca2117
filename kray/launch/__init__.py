"""What a job does outside the driver: errors and exit codes, checks before anything is started, job logs."""
