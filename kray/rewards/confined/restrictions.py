"""Restrict the process that will run one untrusted program. Linux, with or without root.

Required: seccomp (no other process, thread, socket, or signal to others) and Landlock (reads only the interpreter's files,
writes only its own folder). Resource limits and the loss of all capabilities always apply. Used where the kernel allows it:
separate namespaces with a writable folder of bounded size; without them the program cannot write any file.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import landlock
import seccomp

_NEW_USER, _NEW_MOUNT, _NEW_IPC, _NEW_NETWORK, _NEW_UTS = 0x10000000, 0x20000, 0x8000000, 0x40000000, 0x4000000
_MS_REC_PRIVATE, _MS_NOSUID_NODEV_NOEXEC = 0x44000, 2 | 4 | 8
_PR_SET_PDEATHSIG, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, _PR_SET_NO_NEW_PRIVS = 1, 47, 4, 38
_CAPABILITY_VERSION_3 = 0x20080522
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo")
_FILES = ("/etc/ld.so.cache", "/etc/localtime", "/dev/null", "/dev/zero", "/dev/urandom")


def apply(limits: Mapping[str, Any], folder: str, packages: Sequence[str], parent: int) -> list[str]:
    """Restrict this process for good.

    Args:
        limits: memory_mib, cpu_s, file_mib.
        folder: The working folder, writable if its size can be bounded.
        packages: Folders with libraries that the program may read.
        parent: Id of the process whose exit ends this one.

    Returns:
        The restrictions that are not available, each with the reason.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    writable = _own_folder(libc, folder, limits["file_mib"])
    os.chdir(folder)
    _drop_capabilities(libc)
    libc.prctl(ctypes.c_int(_PR_SET_PDEATHSIG), ctypes.c_ulong(signal.SIGKILL), *(ctypes.c_ulong(0),) * 3)
    # The parent may have exited before prctl took effect.
    if os.getppid() != parent:
        os._exit(1)
    interpreter = [os.path.join(sys.base_prefix, name) for name in {"lib", sys.platlibdir}]
    readable = [*_LIBRARIES, *_FILES, *interpreter, *packages]
    missing = [landlock.restrict(readable, folder if writable else "")]
    _limit(limits)
    missing.append(seccomp.restrict())
    return [reason for reason in missing if reason]


def _limit(limits: Mapping[str, Any]) -> None:
    """Set hard resource limits. RLIMIT_AS bounds memory: the sandbox has one process."""
    memory, file, cpu_s = limits["memory_mib"] << 20, limits["file_mib"] << 20, limits["cpu_s"]
    for what, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, file),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_MEMLOCK, 0),
    ):
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))


def _own_folder(libc: ctypes.CDLL, folder: str, size_mib: int) -> bool:
    """Enter new namespaces and mount a memory file system of bounded size at `folder`; return whether that worked."""
    user, group = os.getuid(), os.getgid()
    if libc.unshare(_NEW_USER | _NEW_MOUNT | _NEW_IPC | _NEW_NETWORK | _NEW_UTS):
        return False
    try:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    except OSError:
        return False
    if libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC_PRIVATE), None):
        return False
    options = f"size={size_mib}m,nr_inodes=1024,mode=0700".encode()
    flags = ctypes.c_ulong(_MS_NOSUID_NODEV_NOEXEC)
    return libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", flags, options) == 0


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    libc.prctl(ctypes.c_int(_PR_SET_NO_NEW_PRIVS), *(ctypes.c_ulong(value) for value in (1, 0, 0, 0)))
    libc.prctl(ctypes.c_int(_PR_CAP_AMBIENT), *(ctypes.c_ulong(v) for v in (_PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)))
    none = struct.pack("IIIIII", 0, 0, 0, 0, 0, 0)
    libc.capset(struct.pack("Ii", _CAPABILITY_VERSION_3, 0), none)
