"""Running programs that a model has written, so that they harm nothing and cannot pass by a trick.

A check is made of two processes, each started anew from a small command and never forked from this
one (which may hold torch, CUDA and keys): the *program's* (`checking.candidate`) and the *tests'*
(`checking.checker`). They share nothing but a socket on which calls go one way and plain values
come back. The tests are decided where no line of the program runs; see docs/sandbox.md for what
each known trick meets.

Kinds, best first:

* ``namespaces``: Linux namespaces of our own making, for root and for ordinary users;
* ``bwrap``: the same by bubblewrap, where only that may make them;
* ``docker``, ``podman``: a container for each program; only on demand (FEDBENCH_SANDBOX), with the
  image of FEDBENCH_SANDBOX_IMAGE;
* ``process``: limits on time, memory and processes only. The program then has the rights of its
  user, network and files included, so that it is refused unless FEDBENCH_UNSAFE_CODE=1.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import secrets
import selectors
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, astuple, dataclass, replace
from functools import lru_cache
from typing import Any, Literal, get_args

from fedbench.errors import ConfigError
from fedbench.evaluation.languages import run_native
from fedbench.evaluation.sandbox_commands import (
    CONTAINERS,
    DISK_BYTES,
    command,
    of_client,
    site_packages,
    tool,
    what_a_client_says,
)

VERSION = 1
"""Raised whenever a verdict could change."""
KIND_VARIABLE = "FEDBENCH_SANDBOX"
IMAGE_VARIABLE = "FEDBENCH_SANDBOX_IMAGE"
UNSAFE_VARIABLE = "FEDBENCH_UNSAFE_CODE"
DEFAULT_IMAGE = "python:3.11-slim"
MIN_SECONDS = 4.0
FACTOR = 4.0
"""A program may take this many times as long as the reference solution does on this machine (both
numbers are EvalPlus', Liu et al. 2023, https://arxiv.org/abs/2305.01210)."""
Kind = Literal["namespaces", "bwrap", "docker", "podman", "process"]
Outcome = Literal["passed", "wrong", "error", "timeout", "failed"]
_ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
_START_SECONDS = 60.0


@dataclass(frozen=True)
class Limits:
    """What the process of a program may use."""

    cpu_seconds: int = 10
    """Of processor time; set from the time limit."""
    memory_bytes: int = 4 * 2**30
    """Of address space, as EvalPlus has it; numpy alone reserves one gigabyte."""
    processes: int = 32
    file_bytes: int = 16 * 2**20
    open_files: int = 64
    disk_bytes: int = DISK_BYTES
    """Of /tmp, which is memory."""


@dataclass(frozen=True)
class Check:
    """Tests of a program, and what belongs to them."""

    tests: str
    """Python; an AssertionError says that the program is wrong."""
    provides: tuple[str, ...]
    """The names in the tests that are the program's."""
    head: str = ""
    """Python that the data set gives beside what is asked for; only the tests see it."""
    solution: str = ""
    """A program that passes, by which the time limit is measured."""
    language: str = "python"
    """Of program and tests; others than Python are those of `languages`."""


@dataclass(frozen=True)
class Verdict:
    """What became of a program."""

    outcome: Outcome
    """`error`: it does not run, or raised; `failed`: the sandbox did, so nothing is known."""
    reason: str = ""
    seconds: float = math.nan

    @property
    def passed(self) -> bool:
        """Whether all tests hold."""
        return self.outcome == "passed"


class Sandbox:
    """Checks programs, several at a time; the same program against the same tests once."""

    def __init__(
        self,
        kind: Kind,
        *,
        limits: Limits | None = None,
        min_seconds: float = MIN_SECONDS,
        factor: float = FACTOR,
        workers: int | None = None,
        image: str = DEFAULT_IMAGE,
    ) -> None:
        self.kind: Kind = kind
        self.limits = limits or Limits()
        self.min_seconds = min_seconds
        self.factor = factor
        self.workers = workers or os.cpu_count() or 1
        self.image = image
        self._verdicts: dict[str, Verdict] = {}
        self._seconds: dict[Check, float] = {}
        self._lock = threading.Lock()

    def check_all(self, programs: Sequence[tuple[str, Check]]) -> list[Verdict]:
        """The verdicts of programs, in their order."""
        keys = [_key(program, check) for program, check in programs]
        new = {
            key: pair for key, pair in zip(keys, programs, strict=True) if key not in self._verdicts
        }
        with ThreadPoolExecutor(self.workers) as pool:
            found = pool.map(lambda pair: self.check(*pair), new.values())
            self._verdicts |= dict(zip(new, found, strict=True))
        return [self._verdicts[key] for key in keys]

    def check(self, program: str, check: Check) -> Verdict:
        """The verdict of one program.

        It has `min_seconds`. Where those do not suffice, the reference solution is timed on this
        machine, and the program has `factor` times as long if that is more.
        """
        verdict = self._run(program, check, self.min_seconds)
        if verdict.outcome != "timeout" or not check.solution:
            return verdict
        seconds = self.factor * self._reference_seconds(check)
        return self._run(program, check, seconds) if seconds > self.min_seconds else verdict

    def _reference_seconds(self, check: Check) -> float:
        with self._lock:
            if check not in self._seconds:
                verdict = self._run(check.solution, check, 15 * self.min_seconds)
                self._seconds[check] = verdict.seconds if verdict.passed else 0.0
            return self._seconds[check]

    def _run(self, program: str, check: Check, seconds: float) -> Verdict:
        if check.language != "python":
            return Verdict(*run_native(self, program, check, seconds))
        nonce = secrets.token_hex(16)
        order = {
            "nonce": nonce,
            "program": program,
            "provides": check.provides,
            "head": check.head,
            "tests": check.tests,
        }
        limits = replace(self.limits, cpu_seconds=math.ceil(seconds) + 1)
        with contextlib.ExitStack() as stack:
            ours, theirs = socket.socketpair()
            with ours, theirs:
                self.start(stack, "candidate", limits, theirs)
                checker = self.start(stack, "checker", limits, ours)
            verdicts = _Verdicts(checker, nonce)
            verdicts.ask(order)
            started = verdicts.next(_START_SECONDS)
            if started is None or started.outcome != "started":
                reason = started.reason if started else f"not within {_START_SECONDS:.0f} s"
                return Verdict("failed", f"the sandbox did not start: {reason}")
            begin = time.monotonic()
            said = verdicts.next(seconds)
            took = time.monotonic() - begin
        if said is None:
            return Verdict("timeout", f"after {seconds:.1f} s", took)
        return Verdict(said.outcome, said.reason, took)

    def start(
        self,
        stack: contextlib.ExitStack,
        role: str,
        limits: Limits,
        channel: socket.socket,
        places: Sequence[str] = (),
    ) -> subprocess.Popen[bytes]:
        """Start one of the processes; it is ended with the stack.

        The program's has the channel in place of standard input; the tests' gets its order there.
        `places` are directories that it may read beside the system's and Python's.
        """
        # The tests need no container: it is the data set's code that runs with them, not a model's.
        kind = "process" if role == "checker" and self.kind in CONTAINERS else self.kind
        mode = {"bwrap": "inner", "docker": "container", "podman": "container"}.get(kind, kind)
        name = f"fedbench-{secrets.token_hex(8)}"
        work = "/"
        if kind == "process":
            work = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="fedbench-", ignore_cleanup_errors=True)
            )
            os.chmod(work, 0o777)  # root's program runs as another user
        process = subprocess.Popen(
            [
                *command(kind, name, self.image, limits.processes, places),
                *(role, mode, json.dumps(asdict(limits)), str(channel.fileno())),
                *([] if kind in CONTAINERS else [*site_packages(), *places]),
            ],
            stdin=subprocess.PIPE if role == "checker" else channel.fileno(),
            stdout=subprocess.PIPE if role == "checker" else channel.fileno(),
            stderr=subprocess.DEVNULL,
            pass_fds=[channel.fileno()] if role == "checker" else [],
            env=_ENVIRONMENT | of_client(kind),
            cwd=work,
            start_new_session=True,
        )
        stack.callback(_stop, process, kind, name)
        return process


class _Verdicts:
    """What the tests' process prints, line by line; each line bears the number of its order."""

    def __init__(self, process: subprocess.Popen[bytes], nonce: str) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.orders, self.stream, self.nonce = process.stdin, process.stdout, nonce
        self.rest = b""

    def ask(self, order: Mapping[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):  # `next` sees that nobody is there
            self.orders.write(json.dumps(order).encode() + b"\n")
            self.orders.close()

    def next(self, seconds: float) -> _Said | None:
        """The next line; None when it has not come in time."""
        until = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self.stream, selectors.EVENT_READ)
            while b"\n" not in self.rest:
                if not selector.select(max(0.0, until - time.monotonic())):
                    return None
                part = os.read(self.stream.fileno(), 2**16)
                if not part:
                    return _Said("failed", "the tests' process ended without a verdict")
                self.rest += part
        line, _, self.rest = self.rest.partition(b"\n")
        try:
            said = json.loads(line)
            if not secrets.compare_digest(said["nonce"], self.nonce):
                return _Said("failed", "a verdict bore another order's number")
            return _Said(said["verdict"], said["reason"])
        except (ValueError, LookupError, TypeError):
            return _Said("failed", "a verdict was damaged")


@dataclass(frozen=True)
class _Said:
    outcome: Any
    reason: str


def open_sandbox(environment: Mapping[str, str] | None = None) -> Sandbox:
    """The best sandbox that this machine allows, or the one that is asked for.

    Args:
        environment: where FEDBENCH_SANDBOX, FEDBENCH_SANDBOX_IMAGE and FEDBENCH_UNSAFE_CODE are
            looked up; that of this process by default.

    Raises:
        ConfigError: there is none, or only one that was not allowed in so many words.
    """
    asked = os.environ if environment is None else environment
    wanted, image = asked.get(KIND_VARIABLE), asked.get(IMAGE_VARIABLE, DEFAULT_IMAGE)
    unsafe = asked.get(UNSAFE_VARIABLE) == "1"
    kinds: tuple[Kind, ...] = tuple(kind for kind in get_args(Kind) if kind == wanted)
    if wanted and not kinds:
        known = ", ".join(get_args(Kind))
        raise ConfigError(f"{KIND_VARIABLE}={wanted}: no such sandbox; choose one of {known}")
    troubles = []
    for kind in kinds or ("namespaces", "bwrap", *(("process",) if unsafe else ())):
        if kind == "process" and not unsafe:
            continue
        trouble = _trouble(kind, image)
        if trouble is None:
            return _shared(kind, image)
        troubles.append(f"{kind}: {trouble}")
    tried = f" ({'; '.join(troubles)})" if troubles else ""
    raise ConfigError(
        f"model-written code must run, but nothing isolates it here{tried}; allow user namespaces, "
        f"set {KIND_VARIABLE}=docker, or accept that it runs with your own rights, files and "
        f"network included, by {UNSAFE_VARIABLE}=1"
    )


@lru_cache(maxsize=8)
def _shared(kind: Kind, image: str) -> Sandbox:
    """One for all tasks and checkpoints, which often answer the same."""
    return Sandbox(kind, image=image)


@lru_cache(maxsize=8)
def _trouble(kind: Kind, image: str) -> str | None:
    """Why a kind does not work here; None where it does, which a small program has shown."""
    if kind in ("bwrap", *CONTAINERS) and shutil.which(kind) is None:
        return "is not installed"
    probe = Check("assert answer() == 42", ("answer",))
    verdict = Sandbox(kind, image=image, min_seconds=30.0).check("def answer(): return 42", probe)
    if verdict.passed:
        return None
    return (what_a_client_says(kind, image) if kind in CONTAINERS else "") or verdict.reason


def _stop(process: subprocess.Popen[bytes], kind: str, name: str) -> None:
    """End a process with everything that it has started."""
    if kind in CONTAINERS and process.poll() is None:
        subprocess.run([tool(kind), "kill", name], capture_output=True, check=False)
    if kind == "process":
        process.terminate()  # it ends its children itself, in whatever session they are
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(3.0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


def _key(program: str, check: Check) -> str:
    parts = json.dumps([VERSION, program, astuple(check)])
    return hashlib.sha256(parts.encode()).hexdigest()
