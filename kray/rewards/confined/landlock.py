"""Landlock ruleset: the files that the sandboxed program may read, and the one folder it may write to.

Constants are those of linux/landlock.h and linux/prctl.h.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable

# System call numbers, the same on all machines.
_CREATE, _ADD, _RESTRICT = 444, 445, 446
_VERSION, _PATH_BENEATH, _PR_SET_NO_NEW_PRIVS = 1, 1, 38
_WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 14
_READ = _READ_FILE | _READ_DIR
# The single bits: remove and make folders, files and links.
_WRITE = _WRITE_FILE | _TRUNCATE | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 12
# ABI version -> number of access rights that it knows; 16 from version 5 on.
_KNOWN = {1: 13, 2: 14, 3: 15, 4: 15}


def restrict(readable: Iterable[str], writable: str) -> str:
    """Restrict this process for good: it reads nothing but `readable` and writes nothing but `writable`.

    Args:
        readable: Files and folders.
        writable: A folder; "" for none.

    Returns:
        "", or why the restriction is not available.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def call(number: int, *arguments: object) -> int:
        result = libc.syscall(ctypes.c_long(number), *arguments)
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result

    try:
        version = call(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint(_VERSION))
        files = (1 << _KNOWN.get(version, 16)) - 1
        # TCP; signals and abstract sockets.
        network, scopes = (3 if version >= 4 else 0), (3 if version >= 6 else 0)
        size = 8 if version < 4 else 16 if version < 6 else 24
        attributes = struct.pack("QQQ", files, network, scopes)[:size]
        ruleset = call(_CREATE, attributes, ctypes.c_size_t(size), ctypes.c_uint(0))
        rules = [(path, _READ) for path in readable] + ([(writable, _READ | _WRITE)] if writable else [])
        for path, rights in rules:
            if not os.path.exists(path):
                continue
            if not os.path.isdir(path):
                rights &= _READ_FILE
            beneath = os.open(path, os.O_PATH)
            rule = struct.pack("=Qi", rights & files, beneath)
            call(_ADD, ctypes.c_int(ruleset), ctypes.c_uint(_PATH_BENEATH), rule, ctypes.c_uint(0))
            os.close(beneath)
        libc.prctl(ctypes.c_int(_PR_SET_NO_NEW_PRIVS), *(ctypes.c_ulong(value) for value in (1, 0, 0, 0)))
        call(_RESTRICT, ctypes.c_int(ruleset), ctypes.c_uint(0))
        os.close(ruleset)
    except OSError as error:
        return f"Landlock: {error.strerror}"
    return ""
