"""Verifiers that write into the socket to their parent, for the tests of the scorer; imported in its processes by name."""

import json
import os
import pickle
import socket
import stat
import struct


class Runs:
    """Unpickled, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def says(response, answer):
    """Send frames of its own before the verdict; `answer` names a folder that must not be made."""
    bodies = {
        "pickle": [pickle.dumps(("scored", Runs(answer), "", 0.0))],
        "garbage": [b"\xff" * 9],
        "deep": [b"[" * 100_000],
        "nan": [b'["scored", NaN, "", 0.1]'],
        "types": [json.dumps(["scored", "1", [], {}]).encode()],
        "kind": [json.dumps([["scored"], 1.0]).encode()],
        "short": [b"[]"],
        "more": [json.dumps(["scored", 0.5, "", 0.1]).encode()] * 5,
    }
    # The scorer's socket has a high number where the process that started this one has many files open.
    for descriptor in range(3, 4096):
        try:
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
            connection = socket.socket(fileno=os.dup(descriptor))
            connection.sendall(b"".join(struct.pack("<I", len(body)) + body for body in bodies.get(response, [])))
        except OSError:
            continue
    return 1.0
