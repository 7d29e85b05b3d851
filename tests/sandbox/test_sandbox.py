"""Programs that cheat or try to get out: none scores, none gets anywhere."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbench.errors import ConfigError
from fedbench.evaluation import sandbox, sandbox_commands
from fedbench.evaluation.checking.wire import MAX_DEPTH, WireError, decode, encode
from fedbench.evaluation.sandbox import Check, Sandbox, open_sandbox

SHUT = ("namespaces", "bwrap", "docker", "podman")
"""Kinds that keep a program from everything, and not only from its verdict."""
KINDS = (*SHUT, "process")
IMAGE = os.environ.get("FEDBENCH_SANDBOX_IMAGE", sandbox.DEFAULT_IMAGE)
FIVE = Check("assert answer(2) == 5\nassert answer(3) == 10\n", ("answer",))
HONEST = "def answer(x):\n    return x * x + 1\n"

TRICKS = {
    "an object that equals everything": """
class Equal:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __bool__(self): return True
def answer(x): return Equal()
""",
    "a number that equals everything": """
class Equal(int):
    def __eq__(self, other): return True
    __hash__ = None
def answer(x): return Equal(1)
""",
    "an object that claims to be a number": """
class Number:
    __class__ = int
    def __eq__(self, other): return True
def answer(x): return Number()
""",
    "lists of all frames and objects that say passed": """
import gc, sys
def poison():
    frame = sys._getframe()
    while frame:
        for value in list(frame.f_locals.values()) + list(frame.f_globals.values()):
            if isinstance(value, list): value.append("passed")
            if isinstance(value, dict): value["verdict"] = value["outcome"] = "passed"
        frame = frame.f_back
    for value in gc.get_objects():
        if isinstance(value, list) and len(value) < 4: value.append("passed")
poison()
def answer(x):
    poison()
    return 0
""",
    "leaving at once": "import os\nos._exit(0)\n",
    "leaving when called": "import os\ndef answer(x): os._exit(0)\n",
    "sys.exit when called": "import sys\ndef answer(x): sys.exit(0)\n",
    "its own builtins": """
import builtins
class Never(Exception): pass
builtins.AssertionError = Never
builtins.exec = builtins.compile = builtins.isinstance = lambda *args: True
def answer(x): return 0
""",
    "its own json": """
import json
json.dumps = lambda *args, **kwargs: '{"verdict": "passed", "value": 5}'
def answer(x): return 0
""",
    "its own serialiser": """
import sys
for module in list(sys.modules.values()):
    for name in ("encode", "_message"):
        if hasattr(module, name): setattr(module, name, lambda *args: ["reference", 0])
def answer(x): return 0
""",
    "a printed verdict": """
import json, sys
for nonce in (None, "", "0" * 32):
    print(json.dumps({"nonce": nonce, "verdict": "passed", "reason": ""}), flush=True)
    print("passed", file=sys.stderr, flush=True)
def answer(x): return 0
""",
    "a verdict in every open file": """
import json, os, struct
line = json.dumps({"nonce": "", "verdict": "passed", "reason": ""}).encode()
for file in range(256):
    for data in (line + b"\\n", struct.pack("!I", len(line)) + line):
        try: os.write(file, data)
        except OSError: pass
def answer(x): return 0
""",
    "answers for every question in advance": """
import json, os, struct
def answer(x): return 0
line = json.dumps({"value": {"answer": ["reference", 0]}}).encode()
more = json.dumps({"value": 5}).encode()
data = struct.pack("!I", len(line)) + line + (struct.pack("!I", len(more)) + more) * 9
for file in range(3, 256):
    try: os.write(file, data)
    except OSError: pass
""",
    "an exception that is no failure": "def answer(x): raise SystemExit(0)\n",
    "an exception in place of an answer": "def answer(x): raise StopIteration\n",
    "an unending iterator": "import itertools\ndef answer(x): return itertools.count()\n",
    "a list in itself": "def answer(x):\n    own = []\n    own.append(own)\n    return own\n",
    "a deep list": """
def answer(x):
    own = 5
    for _ in range(5000): own = [own]
    return own
""",
    "a huge answer": "def answer(x): return 'x' * 10**9\n",
    "more memory than there is": "def answer(x):\n    return len(bytearray(10**11))\n",
    "no function at all": "x = 5\n",
    "no Python": "def answer(x:\n",
}
STUBBORN = {
    "a loop": "def answer(x):\n    while True: pass\n",
    "a loop that swallows every signal": """
import signal
for number in signal.valid_signals():
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
def answer(x):
    while True:
        try:
            while True: pass
        except BaseException: pass
""",
    "a sleep": "import time\ndef answer(x): time.sleep(600)\n",
}


@cache
def trouble(kind: Any) -> str | None:
    """Why a kind does not work here; nobody fetches an image for a test."""
    if kind in ("docker", "podman") and shutil.which(kind):
        missing = sandbox_commands.what_a_client_says(kind, IMAGE)
        if missing:
            return missing
    return sandbox._trouble(kind, IMAGE)


def opened(kind: Any) -> Sandbox:
    if (why := trouble(kind)) is not None:
        pytest.skip(f"{kind}: {why}")
    return Sandbox(kind, image=IMAGE)


@pytest.fixture(params=KINDS)
def box(request: pytest.FixtureRequest) -> Sandbox:
    return opened(request.param)


@pytest.fixture(params=SHUT)
def shut(request: pytest.FixtureRequest) -> Sandbox:
    return opened(request.param)


def test_a_right_program_passes(box: Sandbox) -> None:
    assert box.check(HONEST, FIVE).outcome == "passed"


def test_a_wrong_program_is_wrong_and_a_broken_one_an_error(box: Sandbox) -> None:
    assert box.check("def answer(x): return 5", FIVE).outcome == "wrong"  # of 3 it is 10
    verdict = box.check("def answer(x): return 1 / 0", FIVE)
    assert (verdict.outcome, verdict.reason) == ("error", "ZeroDivisionError: division by zero")


@pytest.mark.parametrize("program", TRICKS.values(), ids=TRICKS)
def test_no_trick_passes(box: Sandbox, program: str) -> None:
    # On a busy machine a billion letters take longer than the limit.
    assert box.check(program, FIVE).outcome in ("wrong", "error", "timeout")


@pytest.mark.parametrize("program", STUBBORN.values(), ids=STUBBORN)
def test_what_does_not_end_is_ended(program: str) -> None:
    kind = next(kind for kind in KINDS if trouble(kind) is None)
    started = time.monotonic()
    assert Sandbox(kind, min_seconds=0.5).check(program, FIVE).outcome == "timeout"
    assert time.monotonic() - started < 10


def test_a_program_cannot_redefine_what_the_tests_use(box: Sandbox) -> None:
    check = Check("assert set(answer()) == {1}\nassert abs(answer()[0] - 1) < 0.1", ("answer",))
    fake = "def set(x): return {1}\ndef abs(x): return 0\ndef answer(): return [7]\n"
    assert box.check(fake, check).outcome == "wrong"
    assert box.check("def answer(): return [1]", check).outcome == "passed"


def test_a_helper_of_the_item_is_its_own_in_the_tests(box: Sandbox) -> None:
    check = Check("assert double(answer()) == 4", ("answer",), head="def double(x): return 2 * x\n")
    assert box.check("def double(x): return 4\ndef answer(): return 9", check).outcome == "wrong"
    assert box.check("def answer(): return 2", check).outcome == "passed"


def test_objects_of_the_program_travel_by_reference(box: Sandbox) -> None:
    program = (
        "class Node:\n    def __init__(self, x): self.x = x\ndef total(a): return a.x + a.next.x"
    )
    tests = "a = Node(1)\na.next = Node(2)\nassert total(a) == 3\nassert a.next.x == 2"
    assert box.check(program, Check(tests, ("Node", "total"))).outcome == "passed"


def test_what_a_test_expects_of_an_exception_holds(box: Sandbox) -> None:
    tests = "try:\n    answer()\nexcept ValueError:\n    pass\nelse:\n    assert False"
    assert box.check("def answer(): raise ValueError", Check(tests, ("answer",))).passed
    assert not box.check("def answer(): return 1", Check(tests, ("answer",))).passed
    # A program that has gone has raised nothing.
    tests = tests.replace("ValueError", "Exception")
    assert not box.check("import os\ndef answer(): os._exit(0)", Check(tests, ("answer",))).passed


def test_the_environment_of_this_process_is_out_of_reach(
    shut: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = secrets.token_hex(8)
    monkeypatch.setenv("OPENAI_API_KEY", key)
    holder = subprocess.Popen(["sleep", "60"])  # another process of this user has it too
    program = """
import glob, os
def found(key):
    hits = [str(os.environ)] if key in str(os.environ) else []
    for file in glob.glob("/proc/*/environ") + glob.glob("/proc/*/task/*/environ"):
        try:
            if key.encode() in open(file, "rb").read(): hits.append(file)
        except OSError: pass
    return hits, len(os.environ)
"""
    check = Check(f"hits, number = found({key!r})\nassert hits == [] and number < 8", ("found",))
    try:
        verdict = shut.check(program, check)
    finally:
        holder.kill()
        holder.wait()
    assert (verdict.outcome, verdict.reason) == ("passed", "")


def test_there_is_no_network(shut: Sandbox) -> None:
    program = """
import socket
def reached(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError: return False
"""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        socket.create_connection(("127.0.0.1", port), 1).close()  # from here it is reached
        verdict = shut.check(program, Check(f"assert reached({port}) is False", ("reached",)))
    assert verdict.outcome == "passed"


def test_files_of_this_machine_are_out_of_reach(shut: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "key"
    secret.write_text("1")
    target = tmp_path / "target"
    tmp_path.chmod(0o777)
    program = """
import os
def tried(secret, target, python):
    done = []
    for path, mode in (
        (secret, "r"), (target, "w"), ("/usr/bin/x", "w"), (python, "a"), ("/x", "w"),
        ("/etc/passwd", "r"), ("/proc/1/mem", "r"), ("/dev/sda", "r"),
        ("/dev/x", "w"), ("/proc/sys/kernel/core_pattern", "a"), ("/proc/sysrq-trigger", "a"),
    ):
        try:
            open(path, mode).close()
            done.append(path)
        except OSError: pass
    open("/tmp/own", "w").close()
    return done
"""
    own = ["/etc/passwd"] if shut.kind in ("docker", "podman") else []  # the image has users
    paths = f"{str(secret)!r}, {str(target)!r}, {os.__file__!r}"
    verdict = shut.check(program, Check(f"assert tried({paths}) == {own!r}", ("tried",)))
    assert (verdict.outcome, verdict.reason) == ("passed", "")
    assert not target.exists()


def test_it_sees_no_process_but_its_own(shut: Sandbox) -> None:
    program = """
import ctypes, os, signal
def tried():
    seen = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
    libc = ctypes.CDLL(None, use_errno=True)
    rights = libc.ptrace(16, 1, 0, 0), libc.mount(b"none", b"/tmp", b"tmpfs", 0, None)
    rights += libc.unshare(0x20000), libc.sethostname(b"x", 1)
    rights += (libc.unshare(0x10000000),)  # a user namespace would give rights within it
    try: os.kill(1, signal.SIGKILL)
    except PermissionError: pass
    return seen, [right for right in rights if right == 0]
"""
    alone = "assert seen[0] == 1 and len(seen) == 2"  # the one that waits for it, and itself
    check = Check(f"seen, rights = tried()\n{alone}\nassert rights == []", ("tried",))
    verdict = shut.check(program, check)
    assert (verdict.outcome, verdict.reason) == ("passed", "")


def running(mark: str) -> list[str]:
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark in file.read_text():
                found.append(str(file))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("ends", [True, False])
def test_no_process_is_left_behind(box: Sandbox, ends: bool) -> None:
    mark = f"9{secrets.randbelow(10**8):08d}"
    program = f"""
import os, time
for _ in range(4):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execvp("sleep", ["sleep", "{mark}"])
        os._exit(0)
time.sleep(0.2)
def answer(x):
    while {not ends}: time.sleep(1)
    return x * x + 1
"""
    box.min_seconds = 1.5
    assert box.check(program, FIVE).outcome == ("passed" if ends else "timeout")
    until = time.monotonic() + 5
    while running(mark) and time.monotonic() < until:
        time.sleep(0.05)
    assert running(mark) == []


def test_a_fork_bomb_stays_small_and_ends(shut: Sandbox) -> None:
    mark = f"9{secrets.randbelow(10**8):08d}"
    program = f"""
import os, time
def answer(x):
    most = 0
    while most < 1000:
        try:
            if os.fork() == 0:
                try: os.execvp("sleep", ["sleep", "{mark}"])
                except OSError: os._exit(1)
            most += 1
        except OSError: break
    return most
"""
    check = Check("assert 0 < answer(0) <= 32", ("answer",))
    verdict = shut.check(program, check)
    assert (verdict.outcome, verdict.reason) == ("passed", "")
    until = time.monotonic() + 5
    while running(mark) and time.monotonic() < until:
        time.sleep(0.05)
    assert running(mark) == []


def test_programs_that_run_at_once_do_not_share_a_limit_of_processes(shut: Sandbox) -> None:
    """Two with 20 processes each, of at most 32: a user's are counted over the whole machine."""
    program = """
import os, time
def answer(x):
    for _ in range(20):
        if os.fork() == 0:
            time.sleep(3)
            os._exit(0)
    time.sleep(1.5)
    return x * x + 1
"""
    check = Check("assert answer(2) == 5", ("answer",))
    shut.workers = 2
    verdicts = shut.check_all([(program, check), (f"{program}\n", check)])
    assert [(verdict.outcome, verdict.reason) for verdict in verdicts] == [("passed", "")] * 2


def test_the_limit_is_measured_by_the_reference_solution(box: Sandbox) -> None:
    box.min_seconds, box.factor = 0.5, 3.0
    slow = "import time\ndef answer(x):\n    time.sleep({})\n    return x * x + 1\n"
    check = Check(FIVE.tests, FIVE.provides, solution=slow.format(0.4))  # two calls: 0.8 s
    assert box.check(slow.format(0.7), check).outcome == "passed"  # 1.4 s of 3 * 0.8
    assert box.check(slow.format(30), check).outcome == "timeout"
    assert box.check(slow.format(0.7), FIVE).outcome == "timeout"  # without a solution 0.5 s


def test_a_sandbox_that_does_not_start_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_commands, "_BOOT", "raise SystemExit")
    assert Sandbox("namespaces").check(HONEST, FIVE).outcome == "failed"


def test_tests_that_do_not_compile_have_failed_whatever_the_program(box: Sandbox) -> None:
    assert box.check(HONEST, Check("assert answer(", ("answer",))).outcome == "failed"


def test_equal_programs_run_once_and_verdicts_keep_their_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran: list[str] = []

    def run(self: Sandbox, program: str, check: Check, seconds: float) -> sandbox.Verdict:
        ran.append(program)
        return sandbox.Verdict("passed" if program == "a" else "wrong")

    monkeypatch.setattr(Sandbox, "_run", run)
    own = Sandbox("namespaces")
    verdicts = own.check_all([("a", FIVE), ("b", FIVE), ("a", FIVE)])
    assert [verdict.outcome for verdict in verdicts] == ["passed", "wrong", "passed"]
    assert sorted(ran) == ["a", "b"]
    own.check_all([("b", FIVE)])
    assert len(ran) == 2


def test_nothing_runs_without_isolation_unless_it_is_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def only_process(kind: str, image: str) -> str | None:
        return None if kind == "process" else "not permitted"

    monkeypatch.setattr(sandbox, "_trouble", only_process)
    with pytest.raises(ConfigError, match=r"namespaces: not permitted.*FEDBENCH_UNSAFE_CODE=1"):
        open_sandbox({})
    with pytest.raises(ConfigError, match="nothing isolates"):
        open_sandbox({"FEDBENCH_SANDBOX": "process"})
    assert open_sandbox({"FEDBENCH_UNSAFE_CODE": "1"}).kind == "process"
    with pytest.raises(ConfigError, match="no such sandbox; choose one of namespaces"):
        open_sandbox({"FEDBENCH_SANDBOX": "chroot"})


def test_isolation_is_preferred_even_where_it_is_not_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sandbox, "_trouble", lambda kind, image: None)
    assert open_sandbox({"FEDBENCH_UNSAFE_CODE": "1"}).kind == "namespaces"
    docker = open_sandbox({"FEDBENCH_SANDBOX": "docker", "FEDBENCH_SANDBOX_IMAGE": "own:1"})
    assert (docker.kind, docker.image) == ("docker", "own:1")


@pytest.mark.parametrize("kind", ["docker", "podman"])
def test_a_container_has_no_network_no_rights_and_nothing_to_write_on(kind: str) -> None:
    command = sandbox_commands.command(kind, "name", "own:1", 32)
    assert (Path(command[0]).name, command[1]) == (kind, "run")
    assert {"--network=none", "--read-only", "--cap-drop=ALL", "--rm"} <= set(command)
    assert "--pids-limit=33" in command  # the one that waits is one more
    assert command[command.index("own:1") + 1] == "python3"


@pytest.mark.parametrize("kind", ["namespaces", "bwrap"])
def test_packages_of_an_environment_in_tmp_are_found(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "installed").mkdir()
    tmp_path.chmod(0o755)
    (tmp_path / "installed/helper.py").write_text("value = 5\n")
    places = [str(tmp_path / "installed")]
    monkeypatch.setattr(sandbox, "site_packages", lambda: places)
    monkeypatch.setattr(sandbox_commands, "site_packages", lambda: places)
    box = opened(kind)
    check = Check("assert answer() == (5, ['installed'])", ("answer",))
    program = f"import helper, os\ndef answer(): return helper.value, os.listdir({str(tmp_path)!r})"
    verdict = box.check(program, check)
    assert (verdict.outcome, verdict.reason) == ("passed", "")


def test_the_processes_import_nothing_of_fedbench() -> None:
    program = """
import sys
def loaded(): return [name for name in sys.modules if "fedbench" in name or name == "torch"]
"""
    kind = next(kind for kind in KINDS if trouble(kind) is None)
    assert Sandbox(kind).check(program, Check("assert loaded() == []", ("loaded",))).passed


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
    | st.binary() | st.complex_numbers(allow_nan=False) | st.decimals(allow_nan=False)
    | st.fractions() | st.sampled_from([int, str, ValueError]),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner)
    | st.sets(st.integers()) | st.frozensets(st.text()),
    max_leaves=12,
)  # fmt: skip


def no_reference(value: object) -> int:
    raise AssertionError(f"{value!r} travelled by reference")


@settings(deadline=None, max_examples=200)
@given(plain)
def test_plain_values_come_back_with_their_types(value: object) -> None:
    data = json.loads(json.dumps(encode(value, no_reference)))
    found = decode(data, no_reference)
    assert found == value
    assert type(found) is type(value)


def test_whole_numbers_of_any_length_travel() -> None:
    assert decode(encode(-(7**5000), no_reference), no_reference) == -(7**5000)
    assert encode(2**53, no_reference) == ["int", "0x20000000000000"]


@pytest.mark.parametrize(
    "data",
    [["set", [["list", []]]], ["int", "x"], ["none"], [], {"a": 1}, ["dict", [[1]]], ["list", 3]],
)
def test_a_damaged_value_is_refused(data: object) -> None:
    with pytest.raises(WireError):
        decode(data, no_reference)


def test_a_value_nested_too_deeply_is_refused() -> None:
    value: list[object] = []
    for _ in range(MAX_DEPTH + 1):
        value = [value]
    with pytest.raises(WireError, match="nested deeper"):
        encode(value, no_reference)


def test_python_is_the_one_that_fedbench_runs_on(box: Sandbox) -> None:
    if box.kind in sandbox_commands.CONTAINERS:
        pytest.skip("an image has a Python of its own")
    check = Check(f"assert version() == {list(sys.version_info[:3])!r}", ("version",))
    assert box.check("import sys\ndef version(): return list(sys.version_info[:3])", check).passed
