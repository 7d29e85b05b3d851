"""Server and nodes in one process: a federation of owners, also when not all goes well."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message
from loopback import LoopbackGrid, distance, schedule, server_state, training_of, weights

from fedbench.config import RunConfig
from fedbench.errors import ClientError, ConfigError
from fedbench.federated.clients import ClientStates
from fedbench.federated.engines.deployment import serve
from fedbench.federated.engines.node import NodeSettings, node_app
from fedbench.federated.engines.wire import pack_tensor
from fedbench.run import train

METHODS: list[Any] = [
    "fedavg",
    {"algorithm": "fedprox", "mu": 0.5},
    "scaffold",
    {"algorithm": "fedadam", "server_learning_rate": 0.01},
]
CANARY = "Quillfeather-Oakes owes 83 271 to Zanzibar"


class Federation:
    """Three owners, each with a directory of its own."""

    def __init__(self, place: Path, make: Callable[..., RunConfig]) -> None:
        self.place = place
        self.make = make
        for client in range(3):
            rows = [
                {"text": f"Firm {client}{n} sells {n * n} boats", "mood": MOODS[(n + client) % 3]}
                for n in range(6 + client)
            ]
            rows.append({"text": CANARY if client == 0 else "Rain in Rome", "mood": "neutral"})
            file = place / f"owner-{client}" / f"rows-{client}.jsonl"
            file.parent.mkdir()
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(self, **changed: Any) -> RunConfig:
        """A run in which each owner reads its own file alone."""
        train = [
            {
                "path": f"$FEDBENCH_PRIVATE/rows-{client}.jsonl",
                "instruction": "What is the sentiment?",
                "input": "{{ text }}",
                "response": "{{ mood }}",
            }
            for client in range(3)
        ]
        data = {"train": train, "partition": {"by": "domain"}, "limit": None}
        return self.make(**{"data": data, "engine": "flower_deployment", **changed})

    def together(self, config: RunConfig) -> Path:
        """The same run in one process that has all rows."""
        pooled = self.place / "pooled"
        pooled.mkdir()
        for client in range(3):
            shutil.copy(self.place / f"owner-{client}" / f"rows-{client}.jsonl", pooled)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FEDBENCH_PRIVATE", str(pooled))
            output = self.place / "together"
            train(config.model_copy(update={"engine": "in_process"}), output)
        return output

    def grid(self, config: RunConfig) -> LoopbackGrid:
        """Nodes as they are after a start; what they have stored is on disk."""
        told = {
            10 + client: {
                "client": client,
                "state": str(self.place / f"owner-{client}" / "state"),
                "data": str(self.place / f"owner-{client}"),
            }
            for client in range(3)
        }
        return LoopbackGrid({node: node_app(config) for node in told}, told)

    def serve(self, config: RunConfig, grid: LoopbackGrid | None = None) -> Path:
        output = self.place / "server"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FEDBENCH_PRIVATE", "")
            serve(config, output, grid or self.grid(config), str(config.model.name))
        return output


MOODS = ("positive", "negative", "neutral")


@pytest.fixture
def federation(
    tmp_path: Path, run_file: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> Federation:
    monkeypatch.setattr("fedbench.federated.engines.deployment.LOOK_SECONDS", 0.05)
    monkeypatch.setattr("fedbench.federated.engines.deployment.POLL_SECONDS", 0.01)
    return Federation(tmp_path, run_file)


QUICK = {"wait_for_nodes": 0.2, "round_timeout": 0.2}


def test_the_owners_train_what_one_process_trains_that_has_all_rows(federation: Federation) -> None:
    config = federation.run(methods=METHODS)
    apart, together = federation.serve(config), federation.together(config)
    for method in config.methods:
        one, other = (training_of(output, config, method.name) for output in (apart, together))
        assert schedule(one) == schedule(other)
        assert distance(weights(one), weights(other)) <= 1e-6
        assert distance(server_state(one).own, server_state(other).own) <= 1e-6


@pytest.mark.parametrize(
    "changed",
    [
        {"methods": ["rolora"], "federation": {"rounds": 4}},
        {"methods": ["ffa_lora"]},
        {"methods": ["flora"], "federation": {"rounds": 3}},
        {"methods": ["fedsa_lora"]},
        {"methods": ["fedavg"], "local": {"optimizer_state": "carry"}},
        {"federation": {"transport": {"up": "int8", "down": "bf16"}, "rounds": 3}},
        {"model": {"lora": None, "dtype": "bfloat16"}},
    ],
    ids=["rolora", "ffa", "flora", "fedsa", "carry", "int8", "bfloat16"],
)
def test_whatever_travels_the_owners_train_the_same(
    federation: Federation, changed: dict[str, Any]
) -> None:
    config = federation.run(**changed)
    apart, together = federation.serve(config), federation.together(config)
    one, other = (training_of(output, config) for output in (apart, together))
    assert schedule(one) == schedule(other)
    assert distance(weights(one), weights(other)) <= 1e-6


def test_a_preference_run_scores_its_reference_where_the_rows_are(federation: Federation) -> None:
    train = [
        {
            "path": f"$FEDBENCH_PRIVATE/rows-{client}.jsonl",
            "instruction": "{{ text }}",
            "chosen": "{{ mood }}",
            "rejected": "{{ mood | reverse }}",
        }
        for client in range(3)
    ]
    data = {"train": train, "partition": {"by": "domain"}, "limit": None}
    config = federation.run(data=data, objective={"kind": "dpo"})
    apart, together = federation.serve(config), federation.together(config)
    one, other = (training_of(output, config) for output in (apart, together))
    assert distance(weights(one), weights(other)) <= 1e-6


def test_a_row_leaves_its_owner_neither_as_text_nor_as_tokens(federation: Federation) -> None:
    config = federation.run(methods=["scaffold"], flower={"keep_messages": True})
    grid = federation.grid(config)
    seen: list[Message] = []
    grid.change = lambda client, round, answer: seen.append(answer) or answer
    output = federation.serve(config, grid)
    assert len(seen) == 4
    kept = sorted((training_of(output, config) / "messages").rglob("*.*"))
    assert len(kept) == 8
    everything = b"".join(file.read_bytes() for file in kept)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(config.model.name))
    assert not [needle for needle in needles(CANARY, tokenizer) if needle in everything]
    ids = tokenizer(CANARY, add_special_tokens=False).input_ids
    for planted in (CANARY.encode(), pack_tensor(torch.tensor(ids)).data, str(ids).encode()):
        assert [needle for needle in needles(CANARY, tokenizer) if needle in planted]


def needles(text: str, tokenizer: Any) -> list[bytes]:
    """A row's long words, and each three of its tokens in a row in every form of whole numbers."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    runs = [ids[n : n + 3] for n in range(len(ids) - 2)]
    forms = (torch.int64, torch.int32, torch.int16)
    raw = [pack_tensor(torch.tensor(run).to(kind)).data for run in runs for kind in forms]
    written = [", ".join(map(str, run)).encode() for run in runs]
    words = [word.encode() for word in text.split() if len(word) >= 8]
    return [*words, *raw, *written]


# What goes wrong


def spoiled(client: int, round: int, change: Callable[[Message], Message | None]) -> Any:
    """What one client sends in one round arrives changed."""
    return lambda c, r, answer: change(answer) if (c, r) == (client, round) else answer


def nan(answer: Message) -> Message:
    array = next(iter(answer.content.array_records["weights"].values()))
    array.data = pack_tensor(torch.full(array.shape, torch.nan)).data
    return answer


def misshapen(answer: Message) -> Message:
    record = answer.content.array_records["weights"]
    name = next(iter(record))
    record[name] = pack_tensor(torch.zeros(1))
    return answer


FAULTS: dict[str, tuple[Callable[[Message], Message | None], str]] = {
    "not a number": (nan, "that are not finite"),
    "other shapes": (misshapen, "of shape"),
    "late": (lambda answer: None, "sent nothing within 0.2 seconds"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_client_that_fails_stops_the_run_in_words_and_the_same_command_goes_on(
    federation: Federation, fault: str
) -> None:
    config = federation.run(
        methods=["scaffold"], federation={"clients_per_round": 3, "rounds": 3}, flower=QUICK
    )
    change, words = FAULTS[fault]
    grid = federation.grid(config)
    grid.change = spoiled(1, 2, change)
    with pytest.raises(ClientError, match=f"round 2, client 1: .*{words}.*flower.on_failure"):
        federation.serve(config, grid)
    resumed = training_of(federation.serve(config), config)
    undisturbed = training_of(federation.together(config), config)
    assert schedule(resumed) == schedule(undisturbed)
    # Client 1 had stored a control in the round that did not count: it is not that which it uses.
    assert distance(weights(resumed), weights(undisturbed)) <= 1e-6


@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_that_may_go_on_leaves_the_client_out_of_the_round(
    federation: Federation, fault: str
) -> None:
    config = federation.run(
        methods=["scaffold"],
        federation={"clients_per_round": 3, "rounds": 3},
        flower=QUICK | {"on_failure": "go_on"},
    )
    grid = federation.grid(config)
    grid.change = spoiled(1, 2, FAULTS[fault][0])
    rounds = schedule(training_of(federation.serve(config, grid), config))
    assert [(cohort, dropped) for _, cohort, dropped, *_ in rounds] == [
        ((0, 1, 2), ()),
        ((0, 2), (1,)),
        ((0, 1, 2), ()),
    ]
    assert rounds[-1][-1] == 8 * 4  # turns that counted, of 2 steps of 2 rows


def test_a_node_that_is_gone_is_left_out_until_it_comes_back(federation: Federation) -> None:
    config = federation.run(
        federation={"clients_per_round": 3, "rounds": 3}, flower=QUICK | {"on_failure": "go_on"}
    )
    grid = federation.grid(config)

    def change(client: int, round: int, answer: Message) -> Message:
        if client == 2:  # the last one asked
            grid.connected = {10, 12} if round == 1 else {10, 11, 12}
        return answer

    grid.change = change
    rounds = schedule(training_of(federation.serve(config, grid), config))
    assert [dropped for _, _, dropped, *_ in rounds] == [(), (1,), ()]


def test_too_few_clients_stop_a_run_that_may_go_on(federation: Federation) -> None:
    config = federation.run(flower=QUICK | {"on_failure": "go_on", "min_clients": 2})
    grid = federation.grid(config)
    grid.change = lambda client, round, answer: None if round == 2 else answer
    with pytest.raises(ClientError, match=r"round 2: 0 of 2 clients .* flower.min_clients is 2"):
        federation.serve(config, grid)


def test_a_federation_waits_for_its_clients_and_says_who_has_not_come(
    federation: Federation,
) -> None:
    config = federation.run(flower=QUICK)
    grid = federation.grid(config)
    grid.connected = {10}
    with pytest.raises(ClientError, match=r"clients 1, 2 have not connected within 0.2 seconds"):
        federation.serve(config, grid)


def test_an_owner_whose_state_is_lost_does_not_train_as_if_it_were_new(
    federation: Federation,
) -> None:
    config = federation.run(methods=["scaffold"], federation={"clients_per_round": 3}, flower=QUICK)
    grid = federation.grid(config)

    def change(client: int, round: int, answer: Message) -> Message:
        if (client, round) == (2, 1):
            shutil.rmtree(federation.place / "owner-0" / "state")
        return answer

    grid.change = change
    with pytest.raises(ClientError, match="client 0: its node has lost what the client stored"):
        federation.serve(config, grid)


def test_an_error_on_a_node_leaves_it_as_one_word(federation: Federation) -> None:
    config = federation.run(flower=QUICK)
    grid = federation.grid(config)
    rows = federation.place / "owner-1" / "rows-1.jsonl"
    rows.write_text(json.dumps({"text": CANARY}) + "\n")  # no mood: its text would be quoted
    with pytest.raises(ClientError, match="its rows cannot be read or learned from"):
        federation.serve(config, grid)
    said = [dict(m.content.config_records) for m in grid.arrived if m.content.config_records]
    assert said == [{"refusal": {"word": "data"}}]


def test_a_node_with_another_base_is_told_apart_by_its_content(
    federation: Federation, tmp_path: Path
) -> None:
    from fedbench.model import load_base
    from fedbench.model_config import ModelConfig

    config = federation.run(flower=QUICK)
    other = tmp_path / "other-base"
    shutil.copytree(str(config.model.name), other)
    base = load_base(str(other), ModelConfig(name=str(other), device="cpu"))
    with torch.no_grad():
        next(iter(base.module.parameters()))[0] += 1.0
    base.module.save_pretrained(other)
    grid = federation.grid(config)
    grid.contexts[11].node_config["base"] = str(other)
    with pytest.raises(ClientError, match="client 1: its node has another base model"):
        federation.serve(config, grid)


def test_owners_keep_the_states_that_a_resumed_server_may_ask_for_and_no_older_ones(
    federation: Federation,
) -> None:
    config = federation.run(
        methods=["scaffold"], federation={"clients_per_round": 3, "rounds": 4}, flower=QUICK
    )
    federation.serve(config)
    place = federation.place / "owner-0" / "state" / config.hash / "scaffold" / "seed-0" / "clients"
    # Round 3 was committed when round 4 was asked for.
    assert sorted(file.name for file in place.glob("*/*")) == [
        "round-0003.safetensors",
        "round-0004.safetensors",
    ]
    assert ClientStates(place).last_round(0) == 4


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"state": "x"}, "client is None, but clients are numbered 0 to 2"),
        ({"client": 3, "state": "x"}, "client is 3"),
        ({"client": 0}, "state is not given"),
        ({"client": 0, "state": "x", "dta": "y"}, "unknown key 'dta'"),
    ],
)
def test_what_a_node_is_told_is_checked(told: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        NodeSettings.of(told, 3)
