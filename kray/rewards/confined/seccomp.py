"""Seccomp filter: the system calls that the sandboxed program may not make.

It leaves the program one process and one thread, without sockets, access to other processes, new privileges, namespaces or
mounts, and without changes to files other than writing them. Numbers are those of asm/unistd_64.h (x86_64) and
asm-generic/unistd.h (aarch64); calls newer than both tables fail with ENOSYS. Other machines have no filter.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

# What is denied -> its calls: name, number on x86_64, number on aarch64 ("-": the machine has no such call).
_DENIED = {
    "other processes and threads": """
        clone 56 220, clone3 435 435, fork 57 -, vfork 58 -, execve 59 221, execveat 322 281, tkill 200 130
        rt_sigqueueinfo 129 138, rt_tgsigqueueinfo 297 240, ptrace 101 117, process_vm_readv 310 270
        process_vm_writev 311 271, pidfd_open 434 434, pidfd_getfd 438 438, pidfd_send_signal 424 424
        process_madvise 440 440, process_mrelease 448 448, kcmp 312 272, move_pages 279 239, migrate_pages 256 238
        setpriority 141 140, sched_setparam 142 118, sched_setscheduler 144 119, sched_setattr 314 274
        sched_setaffinity 203 122, ioprio_set 251 30, perf_event_open 298 241
    """,
    "the network, and what outlives a process": """
        socket 41 198, io_uring_setup 425 425, io_uring_enter 426 426, io_uring_register 427 427, io_setup 206 0
        shmget 29 194, shmat 30 196, shmctl 31 195, msgget 68 186, semget 64 190, mq_open 240 180
        memfd_create 319 279, memfd_secret 447 447, add_key 248 217, request_key 249 218, keyctl 250 219
    """,
    "files: what Landlock does not watch": """
        chmod 90 -, fchmod 91 52, fchmodat 268 53, chown 92 -, fchown 93 55, lchown 94 -, fchownat 260 54
        utime 132 -, utimes 235 -, futimesat 261 -, utimensat 280 88, setxattr 188 5, lsetxattr 189 6
        fsetxattr 190 7, removexattr 197 14, lremovexattr 198 15, fremovexattr 199 16, truncate 76 45
        openat2 437 437, open_by_handle_at 304 265, name_to_handle_at 303 264, mknod 133 -, mknodat 259 33
        fanotify_init 300 262, quotactl 179 60, quotactl_fd 443 443
    """,
    "the system": """
        unshare 272 97, setns 308 268, mount 165 40, umount2 166 39, pivot_root 155 41, chroot 161 51
        open_tree 428 428, move_mount 429 429, fsopen 430 430, fsconfig 431 431, fsmount 432 432, fspick 433 433
        mount_setattr 442 442, bpf 321 280, userfaultfd 323 282, kexec_load 246 104, kexec_file_load 320 294
        init_module 175 105, finit_module 313 273, delete_module 176 106, swapon 167 224, swapoff 168 225
        reboot 169 142, acct 163 89, syslog 103 116, vhangup 153 58, sethostname 170 161, setdomainname 171 162
        settimeofday 164 170, clock_settime 227 112, adjtimex 159 171, clock_adjtime 305 266, personality 135 92
        modify_ldt 154 -, iopl 172 -, ioperm 173 -
    """,
}


def _numbers(calls: str) -> dict[str, tuple[int | None, int | None]]:
    """Parse rows of `_DENIED` into name -> (number on x86_64, number on aarch64)."""
    rows = [call.split() for call in calls.replace("\n", ",").split(",") if call.strip()]
    return {name: (None if x86 == "-" else int(x86), None if arm == "-" else int(arm)) for name, x86, arm in rows}


DENIED = {name: numbers for calls in _DENIED.values() for name, numbers in _numbers(calls).items()}
# The last number that was reviewed; numbers above 423 are the same on all machines.
NEWEST = 450
KILL, TGKILL, PRLIMIT, PRCTL = (62, 129), (234, 131), (302, 261), (157, 167)
FCNTL, IOCTL, OPENAT, OPEN = (72, 25), (16, 29), (257, 56), (2, None)
# F_SETOWN, F_SETSIG, F_SETOWN_EX: they send a signal to any process of this user.
FCNTL_DENIED = (8, 10, 15)
# TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX.
IOCTL_ALLOWED = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
# PR_SET_PDEATHSIG: it would let the program outlive the process that supervises it.
PRCTL_DENIED = (1,)
# Mask and value of flags that truncate a file that is opened for reading.
READ_AND_TRUNCATE = (os.O_ACCMODE | os.O_TRUNC, os.O_TRUNC)

# Column of the table above, AUDIT_ARCH_*.
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_LOAD, _JUMP_EQUAL, _JUMP_ABOVE, _AND, _RETURN = 0x20, 0x15, 0x25, 0x54, 0x06
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
# Offsets in struct seccomp_data; arguments have 64 bits, low half first.
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2

# Code, jump if true, jump if false, constant.
Instruction = tuple[int, int, int, int]


def program(machine: str, pid: int) -> list[Instruction]:
    """Build the filter.

    Args:
        machine: "x86_64" or "aarch64".
        pid: Id of the process that will run under the filter.

    Raises:
        KeyError: There is no filter for this machine.
    """
    column, architecture = _MACHINES[machine]
    refuse = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    allow = (_RETURN, 0, 0, _ALLOW)
    rules: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_ABOVE, 0, 1, NEWEST),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
    ]

    def when(call: tuple[int | None, int | None], body: list[Instruction]) -> None:
        """Run `body`, which must return, for this call; for other calls the number stays loaded."""
        if (number := call[column]) is not None:
            rules.extend([(_JUMP_EQUAL, 0, len(body), number), *body])

    def argument(index: int) -> Instruction:
        return (_LOAD, 0, 0, _ARGUMENTS + 8 * index)

    def unless(values: tuple[int, ...], otherwise: Instruction, then: Instruction) -> list[Instruction]:
        """Return `then` if the loaded argument is among the values, else `otherwise`."""
        body: list[Instruction] = []
        for value in values:
            body += [(_JUMP_EQUAL, 0, 1, value & 0xFFFFFFFF), then]
        return [*body, otherwise]

    for call in DENIED.values():
        when(call, [refuse])
    for call in (KILL, TGKILL):
        when(call, [argument(0), *unless((pid,), refuse, allow)])
    when(PRLIMIT, [argument(0), *unless((0, pid), refuse, allow)])
    when(PRCTL, [argument(0), *unless(PRCTL_DENIED, allow, refuse)])
    when(FCNTL, [argument(1), *unless(FCNTL_DENIED, allow, refuse)])
    when(IOCTL, [argument(1), *unless(IOCTL_ALLOWED, refuse, allow)])
    mask, value = READ_AND_TRUNCATE
    for call, index in ((OPENAT, 2), (OPEN, 1)):
        when(call, [argument(index), (_AND, 0, 0, mask), *unless((value,), allow, refuse)])
    return [*rules, allow]


def install(rules: list[Instruction]) -> None:
    """Put this process under a filter, for good.

    Raises:
        OSError: The kernel does not support seccomp filters.
    """
    packed = b"".join(struct.pack("HBBI", *rule) for rule in rules)
    buffer = ctypes.create_string_buffer(packed, len(packed))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(rules), ctypes.addressof(buffer)))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((_PR_SET_NO_NEW_PRIVS, 1, 0), (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(header))):
        if libc.prctl(
            ctypes.c_int(arguments[0]), *map(ctypes.c_ulong, arguments[1:]), ctypes.c_ulong(0), ctypes.c_ulong(0)
        ):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def restrict() -> str:
    """Put this process under the filter, for good; return "" or why that is not possible."""
    try:
        install(program(os.uname().machine, os.getpid()))
    except KeyError:
        return f"seccomp: no filter for {os.uname().machine}"
    except OSError as error:
        return f"seccomp: {error.strerror}"
    return ""
