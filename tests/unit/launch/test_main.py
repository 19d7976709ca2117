"""How a job's main function ends."""

from __future__ import annotations

import subprocess
import sys

ENDLESS = "from kray.launch.main import guarded\nguarded(lambda: [print('line', i) for i in range(200_000)] and 0)"
BROKEN = "from kray.launch.main import guarded\ndef main():\n    raise BrokenPipeError('a socket')\nguarded(main)"


def test_a_reader_that_goes_away_ends_a_job_without_a_traceback():
    with subprocess.Popen([sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as job:
        assert job.stdout.readline() == b"line 0\n"
        job.stdout.close()
        assert job.stderr.read() == b""
        assert job.wait(timeout=60) == 141


def test_another_broken_pipe_is_an_error():
    job = subprocess.run([sys.executable, "-c", BROKEN], capture_output=True, timeout=60)
    assert job.returncode == 1
    assert b"BrokenPipeError: a socket" in job.stderr
