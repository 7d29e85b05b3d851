"""System calls that no program needs, refused by the kernel: what could widen a way out.

Namespaces of its own would give a program all rights within them: file systems in memory without
a limit, and a large part of the kernel that is otherwise closed to users. They are refused, and so
are mounting, tracing other processes, loading into the kernel, and rings of requests. It comes on
top of what isolates; a kernel without this filter (seccomp) runs programs without it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

_NR, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in what a filter is shown
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000
_SET_SECCOMP, _FILTER = 22, 2
_NEW_NAMESPACES = 0x7E020000
"""Of clone: cgroup, UTS, IPC, user, PID, network and mount namespaces."""
_FOREIGN = 0x40000000
"""From here on numbers are those of another interface (x32)."""
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_CLONE, _CLONE3 = {"x86_64": 56, "aarch64": 220}, 435
_REFUSED = {
    "x86_64": {
        "ptrace": 101, "syslog": 103, "pivot_root": 155, "chroot": 161, "acct": 163, "mount": 165,
        "umount2": 166, "swapon": 167, "swapoff": 168, "reboot": 169, "init_module": 175,
        "delete_module": 176, "quotactl": 179, "kexec_load": 246, "add_key": 248,
        "request_key": 249, "keyctl": 250, "unshare": 272, "perf_event_open": 298,
        "open_by_handle_at": 304, "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311,
        "finit_module": 313, "kexec_file_load": 320, "bpf": 321, "userfaultfd": 323,
    },
    "aarch64": {
        "ptrace": 117, "syslog": 116, "pivot_root": 41, "chroot": 51, "acct": 89, "mount": 40,
        "umount2": 39, "swapon": 224, "swapoff": 225, "reboot": 142, "init_module": 105,
        "delete_module": 106, "quotactl": 60, "kexec_load": 104, "add_key": 217,
        "request_key": 218, "keyctl": 219, "unshare": 97, "perf_event_open": 241,
        "open_by_handle_at": 265, "setns": 268, "process_vm_readv": 270, "process_vm_writev": 271,
        "finit_module": 273, "kexec_file_load": 294, "bpf": 280, "userfaultfd": 282,
    },
}  # fmt: skip
_REFUSED_EVERYWHERE = {
    "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433,
    "mount_setattr": 442,
}  # fmt: skip
"""Later calls have one number on all machines."""


def refuse_calls() -> bool:
    """Install the filter in this process and all that it starts; gaining rights must be off.

    Returns:
        Whether it holds; not where machine or kernel have none.
    """
    machine = os.uname().machine
    if machine not in _REFUSED:
        return False
    code = _program(machine)
    buffer = ctypes.create_string_buffer(code, len(code))
    shown = struct.pack("HL", len(code) // 8, ctypes.addressof(buffer))  # struct sock_fprog
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.prctl(_SET_SECCOMP, ctypes.c_ulong(_FILTER), ctypes.c_char_p(shown), 0, 0)
    return bool(done == 0)


def _program(machine: str) -> bytes:
    """The filter: a call goes through it from top to bottom, to the first return."""
    steps = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        *_unless(_EQUAL, _ARCHITECTURES[machine], _ERROR | errno.ENOSYS),
        (_LOAD, 0, 0, _NR),
        *_if(_AT_LEAST, _FOREIGN, _ERROR | errno.ENOSYS),
        # Its flags are in memory, where a filter cannot look; without it libraries call clone.
        *_if(_EQUAL, _CLONE3, _ERROR | errno.ENOSYS),
    ]
    for number in (_REFUSED[machine] | _REFUSED_EVERYWHERE).values():
        steps += _if(_EQUAL, number, _ERROR | errno.EPERM)
    steps += [
        *_unless(_EQUAL, _CLONE[machine], _ALLOW),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        *_if(_ANY_BIT, _NEW_NAMESPACES, _ERROR | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def _if(test: int, value: int, verdict: int) -> list[tuple[int, int, int, int]]:
    return [(test, 0, 1, value), (_RETURN, 0, 0, verdict)]


def _unless(test: int, value: int, verdict: int) -> list[tuple[int, int, int, int]]:
    return [(test, 1, 0, value), (_RETURN, 0, 0, verdict)]
