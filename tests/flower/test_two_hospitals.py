"""The example as a user runs it: SuperLink, two SuperNodes, TLS, node keys, `flwr run`."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from loopback import distance, schedule, server_state, training_of, weights
from test_nodes import needles

from fedbench.config import RunConfig, load_config
from fedbench.federated.checkpoint import committed_rounds
from fedbench.run import train

EXAMPLE = Path(__file__).parents[2] / "examples" / "two_hospitals"


@pytest.fixture(scope="module")
def example() -> Iterator[Any]:
    sys.path.insert(0, str(EXAMPLE))
    # Not "run": the name is too common to import by.
    yield importlib.import_module("run")
    sys.path.remove(str(EXAMPLE))


@pytest.fixture(scope="module")
def clinic(example: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Server and nodes, after the supervised run."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    site = example.Site(tmp_path_factory.mktemp("clinic"))
    example.prepare(site)
    try:
        example.start_server(site)
        example.register_nodes(site)
        for client in range(2):
            example.start_node(site, client)
        example.train(site, "sft")
        yield site
    finally:
        for name in list(site.running):
            site.stop(name)


def in_one_process(site: Any, run: str) -> tuple[RunConfig, Path]:
    """The same run by one process that has both hospitals' rows."""
    pooled = site.place / "pooled"
    pooled.mkdir(exist_ok=True)
    raw = yaml.safe_load((EXAMPLE / f"{run}.yaml").read_text())
    described = raw["data"]["train"]
    file = Path(described["path"]).name
    for hospital in ("hospital_a", "hospital_b"):
        (pooled / f"{hospital}-{file}").write_bytes((site.place / hospital / file).read_bytes())
    paths = [str(pooled / f"{hospital}-{file}") for hospital in ("hospital_a", "hospital_b")]
    raw["data"] |= {
        "train": [described | {"path": path} for path in paths],
        "partition": {"by": "domain"},
    }
    raw["engine"] = "in_process"
    (site.place / f"{run}-pooled.yaml").write_text(yaml.safe_dump(raw))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(site.place)
        config = load_config(Path(f"{run}-pooled.yaml"))
        train(config, pooled / run)
    return config, pooled / run


def assert_equal(site: Any, run: str) -> None:
    config, pooled = in_one_process(site, run)
    apart = training_of(site.place / "runs" / f"two-hospitals-{run}", config)
    together = training_of(pooled, config)
    assert schedule(apart) == schedule(together)
    assert distance(weights(apart), weights(together)) <= 1e-6
    assert distance(server_state(apart).own, server_state(together).own) <= 1e-6


def test_hospitals_train_what_one_process_trains_that_has_all_notes(clinic: Any) -> None:
    assert_equal(clinic, "sft")


def test_no_note_reaches_the_server_neither_as_text_nor_as_tokens(clinic: Any) -> None:
    from notes import CANARY
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(clinic.place / "base")
    messages = sorted(clinic.place.glob("runs/**/messages/*/*"))
    assert len(messages) >= 8  # values and arrays of 2 clients in 2 rounds
    held = [*messages, *clinic.place.glob("server.sqlite*"), clinic.place / "logs" / "server.log"]
    words = [CANARY.encode(), b"Quillfeather", b"Zanzibar"]
    for file in held:
        content = file.read_bytes()
        assert not [word for word in words if word in content], file
    # In a database of that size, chance alone gives three small numbers in a row.
    for file in messages:
        content = file.read_bytes()
        assert not [needle for needle in needles(CANARY, tokenizer) if needle in content], file
    private = (clinic.place / "hospital_a" / "notes.jsonl").read_bytes()
    assert all(word in private for word in words)


def test_a_hospital_keeps_its_state_and_its_notes_in_its_own_directory(clinic: Any) -> None:
    states = sorted(clinic.place.glob("hospital_*/state/*/scaffold/seed-0/clients/*/*"))
    owners = [file.relative_to(clinic.place).parts[0] for file in states]
    assert set(owners) == {"hospital_a", "hospital_b"}
    assert {file.parent.name for file in states[: owners.count("hospital_a")]} == {"0000"}
    assert not list(clinic.place.glob("runs/**/clients"))


def test_a_node_whose_key_the_server_does_not_know_is_turned_away(
    clinic: Any, example: Any
) -> None:
    keys = importlib.import_module("keys")
    keys.make_node_key(clinic.place / "stranger" / "node.key")
    hospitals, example.HOSPITALS = example.HOSPITALS, ("stranger",)
    try:
        example.start_node(clinic, 0)
        end = time.monotonic() + 60
        process = clinic.running["stranger"]
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.2)
        assert process.poll() not in (None, 0)
    finally:
        example.HOSPITALS = hospitals
        clinic.stop("stranger")


@pytest.mark.slow
def test_a_run_goes_on_after_the_server_was_killed_and_a_node_ended(
    clinic: Any, example: Any
) -> None:
    clinic.call("fedbench", "flower", "export", "dpo.yaml", "app-dpo")
    rounds = clinic.place / "runs/two-hospitals-dpo/checkpoints/fedavg/seed-0"
    running = subprocess.Popen(
        [example.BIN / "flwr", "run", "app-dpo", "clinic", "--stream"],
        cwd=clinic.place,
        env=clinic.env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 240
    while not (rounds / "round-0001" / "round.json").exists() and time.monotonic() < end:
        time.sleep(0.1)
    clinic.stop("server", signal.SIGKILL)
    running.wait(60)
    assert [round.round for round in committed_rounds(rounds)] == [1]
    example.start_server(clinic)
    clinic.stop("hospital_b")
    example.start_node(clinic, 1)
    example.train(clinic, "dpo")
    assert [round.round for round in committed_rounds(rounds)] == [1, 2]
    assert_equal(clinic, "dpo")


@pytest.mark.slow
def test_a_node_that_is_killed_within_a_round_is_left_out_and_back_in_the_next(
    clinic: Any, example: Any
) -> None:
    raw = yaml.safe_load((EXAMPLE / "sft.yaml").read_text())
    raw |= {"name": "two-hospitals-sturdy", "federation": {"num_clients": 2, "rounds": 3}}
    raw["flower"] = {"on_failure": "go_on", "wait_for_nodes": 300}
    (clinic.place / "sturdy.yaml").write_text(yaml.safe_dump(raw))
    clinic.call("fedbench", "flower", "export", "sturdy.yaml", "app-sturdy")
    rounds = clinic.place / "runs/two-hospitals-sturdy/checkpoints/scaffold/seed-0"
    running = subprocess.Popen(
        [example.BIN / "flwr", "run", "app-sturdy", "clinic", "--stream"],
        cwd=clinic.place,
        env=clinic.env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: (rounds / "round-0001" / "round.json").exists())
    # It begins to train for the second round when it is told to; nothing of that is kept.
    wait_for(lambda: children_of(clinic.running["hospital_b"].pid, "flwr-clientapp"))
    clinic.stop("hospital_b", signal.SIGKILL)
    wait_for(lambda: (rounds / "round-0002" / "round.json").exists())
    start_until_it_stays(clinic, example, 1)
    assert running.wait(600) == 0
    history = list(committed_rounds(rounds))
    assert [(one.cohort, one.dropped) for one in history] == [
        ((0, 1), ()),
        ((0,), (1,)),
        ((0, 1), ()),
    ]


def wait_for(happened: Callable[[], object], seconds: float = 600.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.1)


def children_of(parent: int, name: str) -> list[int]:
    """The processes of that program in the group that a node was started as."""
    listed = subprocess.run(
        ["ps", "-eo", "pid,pgid,args"], capture_output=True, text=True, check=True
    ).stdout.splitlines()[1:]
    rows = [line.split(maxsplit=2) for line in listed]
    return [int(pid) for pid, group, command in rows if int(group) == parent and name in command]


def start_until_it_stays(clinic: Any, example: Any, client: int) -> None:
    """As a service manager does: Flower turns a node away until it has noticed that it was gone."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        example.start_node(clinic, client)
        with contextlib.suppress(subprocess.TimeoutExpired):
            clinic.running[example.HOSPITALS[client]].wait(40)
            continue
        return
    raise AssertionError


# Networks of their own


@pytest.fixture
def namespaces(example: Any) -> Any:
    """The example's module, where namespaces can be had."""
    if (why := example.unavailable()) is not None:
        pytest.skip(f"no network namespaces here: {why}")
    return importlib.import_module("namespaces")


@pytest.fixture
def apart(example: Any, namespaces: Any, tmp_path: Path) -> Iterator[Any]:
    """Something that listens where the server is, and two hospitals, in networks of their own."""
    for hospital in example.HOSPITALS:
        (tmp_path / hospital).mkdir()
    with example.Network(example.HOSPITALS) as network:
        site = example.Site(tmp_path, network)
        site.start("server", example.PYTHON, "-m", "http.server", str(site.port))
        example.wait_for_port(site, "server", site.port)
        yield site
    assert site.running["server"].wait(10) == -signal.SIGKILL
    assert not namespaces_left()


def namespaces_left() -> list[str]:
    """Of this process."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    return [line for line in listed.stdout.splitlines() if f"clinic-{os.getpid()}-" in line]


def test_a_hospital_in_a_network_of_its_own_reaches_the_server_and_nothing_else(
    apart: Any, example: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    example.check_separation(apart)
    found = [line.strip() for line in capsys.readouterr().out.splitlines() if "reaches" in line]
    assert found[:4] == [
        "hospital_a reaches the server: yes",
        "hospital_a reaches its own files: yes",
        "hospital_a reaches the files of hospital_b: no, Network is unreachable",
        "hospital_a reaches the outside: no, Network is unreachable",
    ]
    assert len(found) == 8


def test_a_way_from_one_hospital_to_the_other_or_out_is_found(
    apart: Any, example: Any, namespaces: Any
) -> None:
    network = apart.network
    for hospital in example.HOSPITALS:
        way = ("route", "add", "10.77.0.0/16", "via", network.server_address(hospital))
        namespaces.run("ip", "-n", network.namespace(hospital), *way)
    example.check_separation(apart)  # there is a way to the server, which lets nothing through
    through = "echo 1 > /proc/sys/net/ipv4/ip_forward"
    namespaces.run(*network.inside("server"), "sh", "-c", through)
    out = ("route", "add", "default", "via", network.server_address("hospital_b"))
    namespaces.run("ip", "-n", network.namespace("hospital_b"), *out)
    with pytest.raises(SystemExit) as raised:
        example.check_separation(apart)
    assert str(raised.value) == (
        "the networks are not separate: hospital_a reaches the files of hospital_b: yes; "
        "hospital_b reaches the files of hospital_a: yes; hospital_b reaches the outside: yes"
    )


def test_no_namespace_is_left_where_making_them_fails(
    example: Any, namespaces: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    act = namespaces.run

    def fail(*command: str) -> str:
        if "veth" in command and "hospital_b" in command:
            assert len(namespaces_left()) == 3
            raise namespaces.NamespaceError("no more cables")
        return str(act(*command))

    monkeypatch.setattr(namespaces, "unavailable", lambda: None)
    monkeypatch.setattr(namespaces, "run", fail)
    with pytest.raises(SystemExit, match="--namespaces: no more cables"), example.networks(True):
        raise AssertionError
    assert not namespaces_left()


# What the page shows


def shown(block: int) -> str:
    """The n-th example of output on the page."""
    page = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    return re.findall(r"^```\n(working in .*?)^```", page, re.DOTALL | re.MULTILINE)[block]


def comparable(printed: str) -> list[str]:
    """Sorted lines; what differs from run to run has one name, and long lines are joined.

    The hospitals come in either order.
    """
    text = re.sub(r" *\\\n *", " ", printed)
    text = re.sub(r"working in .*", "working in DIRECTORY", text)
    text = re.sub(r"(\.\d+:|--port |http\.server )\d+", r"\1PORT", text)
    text = re.sub(r"clinic-\d+-", "clinic-PID-", text)
    text = re.sub(r"python[\d.]* -m", "python -m", text)
    return sorted(line for line in text.splitlines() if line)


@pytest.mark.slow
@pytest.mark.parametrize("separate", [False, True], ids=["loopback", "namespaces"])
def test_the_page_shows_what_the_example_prints(
    example: Any, tmp_path: Path, separate: bool
) -> None:
    if separate and (why := example.unavailable()) is not None:
        pytest.skip(f"no network namespaces here: {why}")
    command = [sys.executable, EXAMPLE / "run.py", tmp_path, *["--namespaces"][: int(separate)]]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines, expected = comparable(printed), comparable(shown(int(separate)))
    assert lines == expected
