"""How a process is shut in before it sees a program.

Mode `namespaces` gives it a process table, a network without devices, and a file system of its own:
read-only system and Python directories, an empty /tmp in memory, and nothing else, home
directories least of all. Mode `process` has only what every user may do to himself: limits and,
for root, another user. Modes `inner` and `container` are for a process that bubblewrap, or a
container, has shut in already.

In each, an outer process waits for the one that runs the program, and ends every process that it
leaves behind.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import time

from .seccomp import refuse_calls
from .wire import Channel, Closed

TYPE_CHECKING = False  # typing takes longer to import than most programs run
if TYPE_CHECKING:
    from collections.abc import Callable

NOBODY = 65534
_FIRST_USER = 2_000_000_000  # far above those that anything else uses
_NEW = {"NEWNS": 0x20000, "NEWUTS": 0x4000000, "NEWIPC": 0x8000000, "NEWPID": 0x20000000,
        "NEWNET": 0x40000000}  # fmt: skip
_NEWUSER = 0x10000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_MNT_DETACH = 2
_PDEATHSIG, _SET_DUMPABLE, _NO_NEW_PRIVS, _SUBREAPER = 1, 4, 38, 36
_SYSCALLS = {"x86_64": {"pivot_root": 155}, "aarch64": {"pivot_root": 41}}
_MOUNT_SETATTR = 442
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache")
_DEVICES = ("null", "zero", "random", "urandom")
_libc = ctypes.CDLL(None, use_errno=True)


def run(main: Callable[[], None], mode: str, limits: dict[str, int], site: list[str]) -> None:
    """Run `main` shut in, in a child of this process; returns never.

    Args:
        main: serves the program or the tests.
        mode: ``namespaces``, ``process``, ``inner`` or ``container``.
        limits: of the child, by the names of `sandbox.Limits`.
        site: directories in which a program finds packages such as numpy.
    """
    try:
        if mode == "namespaces":
            _unshare()
    except OSError as error:
        _refuse(error)
        os._exit(3)
    _prctl(_PDEATHSIG, signal.SIGKILL)
    if mode in ("inner", "container"):
        _prctl(_SET_DUMPABLE, 0)  # of the same user as the program, which may not look into it
    child = os.fork()
    if child == 0 and mode == "namespaces":
        # The first process of a process table: with it, all others in there are killed.
        _prctl(_PDEATHSIG, signal.SIGKILL)
        try:
            _change_root([*_SYSTEM, sys.base_prefix, sys.base_exec_prefix, *site], limits)
        except OSError as error:
            _refuse(error)
            os._exit(3)
        _prctl(_SET_DUMPABLE, 0)
        child = os.fork()
        if child:
            _close_files()
            os.waitpid(child, 0)
            os._exit(0)
    if child == 0:
        sys.path += site
        _confine(mode, limits)
        main()
        os._exit(0)
    _supervise(child)


def _supervise(child: int) -> None:
    """Wait for the child or to be told to stop; then end all processes that are left."""
    _close_files()
    _prctl(_SUBREAPER, 1)  # what loses its parent becomes a child of this process
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        os.waitpid(child, 0)
    except ChildProcessError:
        pass
    finally:
        _end_children()
        os._exit(0)


def _end_children(seconds: float = 2.0) -> None:
    """Kill children until there are none: each death brings up those below it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    own = f"/proc/self/task/{os.getpid()}/children"
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            for pid in _read(own).split():
                os.kill(int(pid), signal.SIGKILL)
        except (OSError, ValueError):
            pass
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.005)


def _confine(mode: str, limits: dict[str, int]) -> None:
    """The last step, in the process that will run the program: no rights, few resources."""
    os.setsid()
    os.umask(0o077)
    # A container counts processes itself; the kernel would add up those of all containers.
    _limit(limits | ({"processes": 2**22} if mode == "container" else {}))
    user = _other_user()
    if user is not None:
        # Where only root may read Python, what it needs of root is kept: its files. Processes are
        # still counted as another user's, because root's are not limited.
        effective = user if _all_may_read(os.__file__) else 0
        os.setgroups([])
        os.setresgid(NOBODY, effective and NOBODY, effective and NOBODY)
        os.setresuid(user, effective, effective)
    _drop_capabilities()
    _prctl(_NO_NEW_PRIVS, 1)
    refuse_calls()
    _prctl(_PDEATHSIG, signal.SIGKILL)


def _limit(limits: dict[str, int]) -> None:
    for what, most in (
        (resource.RLIMIT_CPU, limits["cpu_seconds"]),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_NPROC, limits["processes"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(what)
        allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (allowed, allowed))


def _unshare() -> None:
    """Leave the namespaces of the machine; root keeps its user, others get one of their own."""
    flags = sum(_NEW.values())
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0 and _libc.unshare(flags) == 0:
        return
    _checked(_libc.unshare(flags | _NEWUSER), "unshare")
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def _change_root(sources: list[str], limits: dict[str, int]) -> None:
    """A root with the given directories read-only, a few devices, and a /tmp with nothing else."""
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    root = _mount_point(sources)
    _mount("tmpfs", root, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    for name in ("proc", "tmp", "old"):
        os.makedirs(f"{root}/{name}", exist_ok=True)
    # Before what is shown: that may lie in /tmp itself.
    options = f"size={limits['disk_bytes']},mode=1777"
    _mount("tmpfs", f"{root}/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, options)
    for source in _outermost(sources):
        _show(source, f"{root}{source}")
    for device in _DEVICES:
        _show_file(f"/dev/{device}", f"{root}/dev/{device}")
    # A container may forbid it; Python does without. What is in /proc/sys is the machine's, and its
    # owner may write there without any capability.
    harmless = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC | _MS_RDONLY
    _libc.mount(b"proc", f"{root}/proc".encode(), b"proc", harmless, None)
    os.chdir(root)
    _checked(_libc.syscall(_syscall("pivot_root"), b".", b"old"), "pivot_root")
    os.chdir("/")
    _checked(_libc.umount2(b"/old", _MNT_DETACH), "umount2")
    _read_only("/", recursive=False)
    os.chdir("/tmp")


def _show(source: str, target: str) -> None:
    """The same file, directory or link at another place, not to be written."""
    if os.path.islink(source):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.symlink(os.readlink(source), target)
        return
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
        _mount(source, target, None, _MS_BIND | _MS_REC)
    else:
        _show_file(source, target)
    _read_only(target, recursive=True)


def _show_file(source: str, target: str) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
    _mount(source, target, None, _MS_BIND)


def _read_only(place: str, recursive: bool) -> None:
    attributes = (ctypes.c_uint64 * 4)(_MS_RDONLY | _MS_NOSUID, 0, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    arguments = (_AT_FDCWD, place.encode(), flags, ctypes.byref(attributes), size)
    _checked(_libc.syscall(_MOUNT_SETATTR, *arguments), f"mount_setattr {place}")


def _mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    arguments = (source.encode(), target.encode(), kind.encode() if kind else None)
    done = _libc.mount(*arguments, ctypes.c_ulong(flags), options.encode() or None)
    _checked(done, f"mount {target}")


def _mount_point(sources: list[str]) -> str:
    """A directory that exists and under which nothing lies that is needed."""
    for place in ("/mnt", "/media", "/srv", "/sys"):
        if os.path.isdir(place) and not any(s.startswith(place + "/") for s in sources):
            return place
    raise OSError("there is no directory to mount a root on")


def _outermost(sources: list[str]) -> list[str]:
    there = sorted({source for source in sources if os.path.lexists(source)})
    return [s for s in there if not any(s.startswith(other + "/") for other in there)]


def _all_may_read(file: str) -> bool:
    while file != "/":
        file = os.path.dirname(file)
        if not os.stat(file).st_mode & 0o001:
            return False
    return True


def _other_user() -> int | None:
    """A user of its own for each program, as a user's processes are counted over all programs.

    Returns:
        None where this is not root, or root of a namespace that has no other users.
    """
    if os.geteuid() != 0:
        return None
    try:
        ranges = [map(int, line.split()) for line in _read("/proc/self/uid_map").splitlines()]
    except OSError:  # no /proc: not known
        return None
    own = _FIRST_USER + int.from_bytes(os.urandom(3), "big")
    ends = [(first, first + length) for first, _, length in ranges]
    return next((user for user in (own, NOBODY) if any(a <= user < b for a, b in ends)), None)


def _drop_capabilities() -> None:
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    _checked(_libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")


def _close_files() -> None:
    os.closerange(0, 2**20)


def _refuse(error: OSError) -> None:
    """Tell whoever waits for the program's first word that there will be none."""
    try:
        Channel(0, 1).send({"failed": str(error)})
    except (OSError, Closed):
        return


def _read(file: str) -> str:
    with open(file) as opened:
        return opened.read()


def _syscall(name: str) -> int:
    machine = os.uname().machine
    if machine not in _SYSCALLS:
        raise OSError(f"the number of {name} is not known on {machine}")
    return _SYSCALLS[machine][name]


def _prctl(option: int, value: int) -> None:
    _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0)


def _checked(result: int, what: str) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
