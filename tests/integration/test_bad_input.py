"""Whatever is wrong with the input: exit code 2, one line that names the place and the remedy.

Each case is a function that breaks one thing in a working project; most return the command line.
"""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from small_runs import Cli, DemoRun, Project, ProjectRun, Result

TRAIN = ["train", "run.yaml"]
WEIGHTS = "adapter_model.safetensors"
Args = list[str | Path]


@dataclass(frozen=True)
class Place:
    """What a case may use: a project to break, and finished runs to copy."""

    cli: Cli
    project: Project
    named_run: ProjectRun
    full_run: ProjectRun
    demo_run: DemoRun

    @property
    def directory(self) -> Path:
        return self.project.directory

    @property
    def answers(self) -> Path:
        """The answer store of this test, not there yet."""
        return Path(self.cli.env["FEDBENCH_ANSWERS"])

    def finished(self) -> Path:
        """A copy of a finished run."""
        return Path(shutil.copytree(self.named_run.directory, self.directory / "finished"))

    def adapter(self) -> Path:
        """A copy of an adapter of that run, as somebody would send it."""
        copy = self.directory / "adapter"
        shutil.copytree(_round(self.named_run.directory), copy)
        (copy / "round.json").unlink()
        return copy

    def model(self) -> Path:
        """A copy of a full model, as somebody would send it."""
        copy = self.directory / "model"
        shutil.copytree(_round(self.full_run.directory), copy)
        (copy / "round.json").unlink()
        return copy


Story = Callable[[Place], Iterator[Result]]
"""Breaks something, yields what the command line gave, and may go on to see what came after."""


@dataclass(frozen=True)
class Case:
    name: str
    story: Story
    says: tuple[str, ...]
    """What the message names: the file, the field or place, and the remedy."""
    code: int = 2


CASES: list[Case] = []


def bad(*says: str) -> Callable[[Callable[[Place], Args]], Callable[[Place], Args]]:
    """A case that breaks something and returns the command line."""

    def register(break_it: Callable[[Place], Args]) -> Callable[[Place], Args]:
        def story(place: Place) -> Iterator[Result]:
            yield place.cli(*break_it(place), cwd=place.directory)

        CASES.append(Case(break_it.__name__.replace("_", "-"), story, says))
        return break_it

    return register


def bad_story(*says: str, code: int = 2) -> Callable[[Story], Story]:
    """A case that runs the command line itself."""

    def register(story: Story) -> Story:
        CASES.append(Case(story.__name__.replace("_", "-"), story, says, code))
        return story

    return register


# Run files.


@bad("nowhere.yaml", "no such file", "give the path")
def missing_run_file(place: Place) -> Args:
    return ["train-and-eval", "nowhere.yaml"]


@bad("run.yaml", "line 2", "mend the line")
def run_file_that_is_not_yaml(place: Place) -> Args:
    place.project.file("run.yaml").write_text("name: small\nmodel: {name: [}\n")
    return TRAIN


@bad("run.yaml", "cannot be read", "utf-8")
def run_file_that_is_not_text(place: Place) -> Args:
    place.project.file("run.yaml").write_bytes(b"name: \xff\xfe\x00")
    return TRAIN


@bad("run.yaml", "no mapping", "start it with a key")
def run_file_that_holds_a_list(place: Place) -> Args:
    place.project.file("run.yaml").write_text("- name\n")
    return TRAIN


@bad("run.yaml", "local.max_step", "did you mean 'max_steps'?")
def unknown_key(place: Place) -> Args:
    place.project.run["local"]["max_step"] = 2
    place.project.write()
    return TRAIN


@bad("run.yaml", "evaluation", "is required; add it")
def key_that_is_missing(place: Place) -> Args:
    del place.project.run["evaluation"]
    place.project.write()
    return TRAIN


@bad("run.yaml", "federation.rounds", "many")
def value_of_the_wrong_type(place: Place) -> Args:
    place.project.run["federation"]["rounds"] = "many"
    place.project.write()
    return TRAIN


@bad("run.yaml", "methods.0", "fedavgg", "did you mean 'fedavg'?")
def unknown_algorithm(place: Place) -> Args:
    place.project.run["methods"] = ["fedavgg"]
    place.project.write()
    return TRAIN


@bad("run.yaml", "methods.0", "mv", "known are weighting, counted, mu")
def unknown_option_of_an_algorithm(place: Place) -> Args:
    place.project.run["methods"] = [{"algorithm": "fedprox", "mv": 0.1}]
    place.project.write()
    return TRAIN


@bad("run.yaml", "federation.clients_per_round is 8", "federation.num_clients is 3", "lower")
def fields_that_contradict_each_other(place: Place) -> Args:
    place.project.run["federation"]["clients_per_round"] = 8
    place.project.write()
    return TRAIN


@bad("run.yaml", "data.validation", "data.test", "lower one")
def shares_that_leave_nothing_to_train_on(place: Place) -> Args:
    place.project.run["data"] |= {"validation": 0.6, "test": 0.4}
    place.project.write()
    return TRAIN


@bad("run.yaml", "seeds", "occurs twice")
def seed_that_occurs_twice(place: Place) -> Args:
    place.project.run["seeds"] = [1, 1]
    place.project.write()
    return TRAIN


@bad("--set rounds", "key=value", "local.max_steps=2")
def override_without_a_value(place: Place) -> Args:
    return [*TRAIN, "--set", "rounds"]


# Data.


@bad("nowhere.jsonl", "no such file", "check the path")
def missing_data_file(place: Place) -> Args:
    place.project.dataset["source"]["path"] = "nowhere.jsonl"
    place.project.write()
    return TRAIN


@bad("rows.jsonl.gz", "is damaged", "repair it")
def corrupt_gzip(place: Place) -> Args:
    packed = gzip.compress(place.project.file("rows.jsonl").read_bytes())
    place.project.file("rows.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    place.project.dataset["source"]["path"] = "rows.jsonl.gz"
    place.project.write()
    return TRAIN


@bad("rows.jsonl.gz", "is damaged", "repair it")
def gzip_with_a_flipped_bit(place: Place) -> Args:
    packed = bytearray(gzip.compress(place.project.file("rows.jsonl").read_bytes()))
    packed[len(packed) // 2] ^= 255
    place.project.file("rows.jsonl.gz").write_bytes(packed)
    place.project.dataset["source"]["path"] = "rows.jsonl.gz"
    place.project.write()
    return TRAIN


@bad("rows.jsonl", "is damaged", "repair it")
def data_that_are_not_json(place: Place) -> Args:
    place.project.file("rows.jsonl").write_text('{"text": "Acme", "mood"\n')
    return TRAIN


@bad("rows.jsonl", "no column 'sentence'", "'text', 'mood'", "correct the column names")
def wrong_column(place: Place) -> Args:
    place.project.dataset["source"]["columns"] = ["sentence", "mood"]
    place.project.write()
    return TRAIN


@bad("rows.jsonl", "row 0", "sentence", "correct the column names")
def wrong_column_in_a_template(place: Place) -> Args:
    place.project.dataset["input"] = "{{ sentence }}"
    place.project.write()
    return TRAIN


@bad("rows.jsonl", "holds no rows", "at least one")
def empty_data_set(place: Place) -> Args:
    place.project.file("rows.jsonl").write_text("")
    return TRAIN


@bad("rows.jsonl", "96 rows", "90 are pinned", "another version")
def data_set_that_is_not_the_pinned_one(place: Place) -> Args:
    place.project.dataset["source"]["rows"] = 90
    place.project.write()
    return TRAIN


@bad("data.train dataset.yaml", "share a scored item", "choose other")
def training_rows_that_are_all_scored(place: Place) -> Args:
    shutil.copy(place.project.file("items.jsonl"), place.project.file("rows.jsonl"))
    return TRAIN


@bad("data.train rows.jsonl: all", "share a scored item")
def training_rows_described_in_the_run_file_that_are_all_scored(place: Place) -> Args:
    shutil.copy(place.project.file("items.jsonl"), place.project.file("rows.jsonl"))
    place.project.run["data"]["train"] = place.project.dataset
    place.project.write()
    return TRAIN


@bad("data.partition (dirichlet)", "client", "federation.num_clients 60", "lower num_clients")
def client_with_no_data(place: Place) -> Args:
    place.project.run["data"]["partition"] = {"by": "dirichlet", "alpha": 0.05}
    place.project.run["federation"]["num_clients"] = 60
    place.project.write()
    return TRAIN


@bad("data.partition.by is dirichlet", "no label", "add `label:`")
def partition_by_labels_that_are_not_there(place: Place) -> Args:
    place.project.run["data"]["partition"] = {"by": "dirichlet", "alpha": 0.5}
    del place.project.dataset["label"]
    place.project.write()
    return TRAIN


@bad("unknown data set 'headline'", "did you mean 'headlines'?")
def unknown_data_set(place: Place) -> Args:
    return [*TRAIN, "--set", "data.train=headline"]


@bad("MANIFEST.json", "no such file", "data.mirror")
def mirror_without_an_index(place: Place) -> Args:
    return [*TRAIN, "--set", "data.train=tfns_text", "--set", f"data.mirror={place.directory}"]


@bad("twitter-financial-news", "data.mirror", "FEDBENCH_DATA")
def data_set_that_nobody_has(place: Place) -> Args:
    return [*TRAIN, "--set", "data.train=tfns_text"]


@bad("template", "fingt", "did you mean 'fingpt'?")
def unknown_template(place: Place) -> Args:
    return [*TRAIN, "--set", "data.template=fingt"]


@bad("local.learning_rate", "not finite", "lower")
def training_that_diverges(place: Place) -> Args:
    return [*TRAIN, "--set", "local.learning_rate=1e30", "--set", "local.optimizer=sgd"]


# Tasks.


@bad("unknown task 'headlin'", "did you mean 'headlines'?", "fedbench list tasks")
def unknown_task(place: Place) -> Args:
    return [*TRAIN, "--set", "evaluation.tasks=[headlin]"]


@bad("unknown suite 'financ'", "did you mean 'finance'?", "fedbench list suites")
def unknown_suite(place: Place) -> Args:
    return ["score", "--ckpt", place.named_run.directory, "--suite", "financ"]


@bad("task.yaml", "acuracy", "did you mean 'accuracy'?")
def unknown_metric(place: Place) -> Args:
    place.project.task["metrics"] = ["acuracy"]
    place.project.write()
    return TRAIN


@bad("task.yaml", "prompt", "not valid Jinja")
def task_with_a_broken_prompt(place: Place) -> Args:
    place.project.task["prompt"] = "{{ text"
    place.project.write()
    return TRAIN


@bad("task mood", "row ", "'bad' is none of the labels")
def reference_that_is_no_label(place: Place) -> Args:
    place.project.task["labels"] = ["good", "poor"]
    place.project.write()
    return TRAIN


@bad("task task.yaml", "no variant 'fingpt'", "known are")
def unknown_variant(place: Place) -> Args:
    return ["score", "--ckpt", place.named_run.directory, "--tasks", "task.yaml:fingpt"]


@bad("unknown backend 'vllmm'", "known are")
def unknown_backend(place: Place) -> Args:
    return [*_score(place.named_run.directory), "--backend", "vllmm"]


# Models and checkpoints.


@bad("./nowhere", "cannot be loaded", "give a model directory")
def base_model_that_is_not_there(place: Place) -> Args:
    return [*TRAIN, "--set", "model.name=./nowhere"]


@bad("model.lora.target_modules", "q_projj", "not found")
def layers_that_the_model_lacks(place: Place) -> Args:
    return [*TRAIN, "--set", "model.lora.target_modules=[q_projj]"]


@bad("nowhere", "is no directory", "give a run directory")
def missing_checkpoint(place: Place) -> Args:
    return _score("./nowhere")


@bad("holds neither adapter_config.json nor model weights", "give a run directory")
def directory_that_is_no_checkpoint(place: Place) -> Args:
    return _score(place.directory)


@bad("adapter", "base_model_name_or_path is empty", "--base-model")
def adapter_that_does_not_name_its_base(place: Place) -> Args:
    return _score(_changed(place.adapter(), base_model_name_or_path=None))


@bad("adapter", "shape", "trained on another base", "--base-model")
def checkpoint_of_another_base(place: Place) -> Args:
    from safetensors.numpy import load_file, save_file

    adapter = place.adapter()
    file = adapter / "adapter_model.safetensors"
    wider = {name: tensor.repeat(2, axis=-1) for name, tensor in load_file(file).items()}
    save_file(wider, file)
    return _score(adapter)


@bad("round-0002", "trained on a base with weights", "--base-model")
def checkpoint_of_a_base_with_other_weights(place: Place) -> Args:
    other = _round(place.full_run.directory)  # of the same shapes
    return [*_score(_round(place.named_run.directory)), "--base-model", other]


@bad("adapter", "changes nothing", "--allow-inert")
def adapter_that_changes_nothing(place: Place) -> Args:
    from safetensors.numpy import load_file, save_file

    adapter = place.adapter()
    file = adapter / "adapter_model.safetensors"
    save_file({name: 0 * tensor for name, tensor in load_file(file).items()}, file)
    return _score(adapter)


@bad("adapter_model.safetensors", "not a file of weights", "save the adapter again")
def weights_that_are_cut_off(place: Place) -> Args:
    adapter = place.adapter()
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    return _score(adapter)


@bad("adapter_model.bin", "not a file of weights", "save the adapter again")
def pickle_that_is_not_weights(place: Place) -> Args:
    return _score(_with_pickle(place.adapter(), pickle.dumps({"weights": "none"})))


@bad("cannot be loaded as a model", "give a model directory")
def full_model_in_a_pickle_that_is_not_weights(place: Place) -> Args:
    model = place.model()
    (model / "model.safetensors").unlink()
    attack = pickle.dumps(Malice(place.directory / "was-run"))
    (model / "pytorch_model.bin").write_bytes(attack)
    return _score(model)


@bad("cannot be loaded as a model", "give a model directory")
def full_model_without_a_tokenizer(place: Place) -> Args:
    model = place.model()
    for file in model.glob("token*"):
        file.unlink()
    return _score(model)


class Malice:
    """Unpickled, it makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.target}",)


@bad("adapter_model.bin", "not a file of weights", "save the adapter again")
def pickle_that_runs_a_command(place: Place) -> Args:
    attack = pickle.dumps(Malice(place.directory / "was-run"))
    return _score(_with_pickle(place.adapter(), attack))


@bad("adapter_config.json", "cannot be read")
def adapter_with_a_broken_configuration(place: Place) -> Args:
    adapter = place.adapter()
    (adapter / "adapter_config.json").write_text("{")
    return _score(adapter)


@bad("cannot be loaded as a model", "give a model directory")
def full_model_that_is_cut_off(place: Place) -> Args:
    model = place.model()
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    return _score(model)


@bad("--ckpt")
def scoring_of_nothing(place: Place) -> Args:
    return ["score", "--suite", "demo"]


@bad("--tasks", "--suite")
def scoring_on_nothing(place: Place) -> Args:
    return ["score", "--ckpt", place.named_run.directory]


@bad("--rounds", "every ten", "all, last, every N")
def rounds_that_are_no_rule(place: Place) -> Args:
    return [*_score(place.named_run.directory), "--rounds", "every ten"]


# Outputs and results.


@bad(
    "finished",
    "holds the run 'small'",
    "local.learning_rate: 0.01 there, 0.5 here",
    "choose another --output",
)
def output_directory_of_another_run(place: Place) -> Args:
    return [*TRAIN, "--output", place.finished(), "--set", "local.learning_rate=0.5"]


@bad_story("client 0", "no row with an answer to learn", "raise data.max_length")
def answers_that_are_cut_off(place: Place) -> Iterator[Result]:
    output = place.directory / "runs"
    yield place.cli(*TRAIN, "--output", output, "--set", "data.max_length=1", cwd=place.directory)
    assert not output.exists()  # free for the corrected run


@bad("finished", "holds another run", "choose another --output")
def scores_into_the_directory_of_a_run(place: Place) -> Args:
    return [*_score(place.named_run.directory), "--output", place.finished()]


@bad("unknown template 'fingtp'", "did you mean 'fingpt'?")
def template_that_there_is_not(place: Place) -> Args:
    return [*TRAIN, "--set", "data.template=fingtp"]


@bad("rows.jsonl", "cannot be written", "choose another --output")
def output_that_is_a_file(place: Place) -> Args:
    return [*TRAIN, "--output", "rows.jsonl"]


@bad("run.yaml", "name", "is required; add it")
def run_directory_whose_configuration_is_damaged(place: Place) -> Args:
    run = place.finished()
    (run / "run.yaml").write_text("model: {}\n")
    return [*TRAIN, "--output", run]


@bad("round.json", "is damaged", "remove its directory")
def round_that_is_damaged(place: Place) -> Args:
    run = place.finished()
    (_round(run) / "round.json").write_text('{"round":')
    return [*TRAIN, "--output", run]


@bad("partition.json", "is damaged", "remove it")
def partition_that_is_damaged(place: Place) -> Args:
    run = place.finished()
    (run / "partition.json").write_text('{"0": [')
    return [*TRAIN, "--output", run]


@bad(".sqlite", "is no answer store", "move it away", "FEDBENCH_ANSWERS")
def answers_that_are_no_store(place: Place) -> Args:
    _no_store(place)
    return ["train-and-eval", "run.yaml", "--output", place.finished()]


@bad(".sqlite", "is damaged", "move it away", "FEDBENCH_ANSWERS")
def store_that_is_damaged(place: Place) -> Args:
    _damaged_store(place)
    return ["train-and-eval", "run.yaml", "--output", place.finished()]


@bad(".sqlite", "is no answer store", "move it away", "FEDBENCH_ANSWERS")
def cache_of_answers_that_is_no_store(place: Place) -> Args:
    _no_store(place)
    return ["cache", "info"]


@bad(".sqlite", "is damaged", "move it away", "FEDBENCH_ANSWERS")
def pruning_of_a_store_that_is_damaged(place: Place) -> Args:
    _damaged_store(place)
    return ["cache", "prune", "--all"]


def _no_store(place: Place) -> None:
    place.answers.parent.mkdir(exist_ok=True)
    place.answers.write_bytes(b"not a store, and longer than a header of SQLite" * 100)


def _damaged_store(place: Place) -> None:
    place.answers.parent.mkdir(exist_ok=True)
    shutil.copy(place.named_run.answers, place.answers)
    with closing(sqlite3.connect(place.answers)) as store:
        store.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = place.answers.read_bytes()
    place.answers.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))


@bad("round-0002", "are not those that were committed", "without round.json")
def weights_of_a_round_that_were_overwritten(place: Place) -> Args:
    run = place.finished()
    last = _round(run)
    shutil.copy(last.with_name("round-0001") / WEIGHTS, last / WEIGHTS)
    return [*_score(run), "--output", "after"]


@bad("scores.jsonl:1", "is not JSON")
def scores_that_are_damaged(place: Place) -> Args:
    run = place.finished()
    file = run / "scores.jsonl"
    file.write_text(file.read_text()[:100])
    return ["leaderboard", run, "--json"]


@bad("scores.jsonl:2", "value", "not ours or damaged")
def scores_with_a_wrong_field(place: Place) -> Args:
    run = place.finished()
    file = run / "scores.jsonl"
    lines = file.read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | {"value": "high"})
    file.write_text("\n".join(lines))
    return ["check", run, "--baseline", place.named_run.directory]


@bad("mood.jsonl.gz", "cannot be read")
def samples_that_are_damaged(place: Place) -> Args:
    run = place.finished()
    file = run / "samples" / "mood.jsonl.gz"
    file.write_bytes(file.read_bytes()[:200])
    return ["compare", run, place.named_run.directory]


@bad("run.json", "is not JSON", "run the same command again")
def run_record_that_is_damaged(place: Place) -> Args:
    run = place.finished()
    (run / "run.json").write_text("{")
    return ["leaderboard", run]


@bad("scores.jsonl", "does not exist", "results directory")
def check_of_nothing(place: Place) -> Args:
    return ["check", place.directory, "--baseline", place.named_run.directory]


@bad("unknown leaderboard 'nowhere'", "known are")
def unknown_leaderboard(place: Place) -> Args:
    return ["leaderboard", "nowhere"]


@bad("not the same test", "same task")
def check_of_another_protocol(place: Place) -> Args:
    run = place.finished()
    file = run / "scores.jsonl"
    rows = [json.loads(line) | {"task_hash": "0" * 16} for line in file.read_text().splitlines()]
    file.write_text("\n".join(map(json.dumps, rows)))
    return ["check", run, "--baseline", place.named_run.directory]


# Answers that exist already.


def _answers(place: Place, *lines: str) -> Args:
    place.project.file("answers.jsonl").write_text("\n".join(lines))
    return ["score", "--answers", "answers.jsonl", "--tasks", "task.yaml"]


@bad("answers.jsonl", "cannot be read", "check the path")
def missing_answers(place: Place) -> Args:
    return ["score", "--answers", "answers.jsonl", "--tasks", "task.yaml"]


@bad("answers.jsonl:2", "is not JSON")
def answers_that_are_not_json(place: Place) -> Args:
    return _answers(place, '{"doc_id": 0, "completion": "good"}', "good")


@bad("answers.jsonl:1", "does not say which item", "give one of doc_id")
def answers_with_the_wrong_fields(place: Place) -> Args:
    return _answers(place, '{"id": 0, "text": "good"}')


@bad("answers.jsonl:1", "doc_id 99", "32 items")
def answers_to_other_items(place: Place) -> Args:
    return _answers(place, '{"doc_id": 99, "completion": "good"}')


@bad("answers.jsonl", "no answers", "one JSON object a line")
def answers_that_are_none(place: Place) -> Args:
    return _answers(place, "")


@bad("--answers", "one task", "--tasks names 2")
def answers_to_two_tasks(place: Place) -> Args:
    return ["score", "--answers", "answers.jsonl", "--tasks", "headlines,task.yaml"]


# A full disk, and Ctrl-C.

FULL = ("cannot be written", "free some space", "choose another --output")
FULL_STORE = ("cannot be written", "free some space", "name another file with FEDBENCH_ANSWERS")
INTERRUPTED = ("interrupted", "what was finished is kept", "run the same command to go on")


@contextmanager
def small_disk(place: Place, size: str = "64k") -> Iterator[Path]:
    """A file system of a few kilobytes, where the tests may mount one."""
    disk = place.directory / "disk"
    disk.mkdir()
    if shutil.which("mount") is None or not _mount(disk, f"size={size}"):
        pytest.skip("needs the right to mount a tmpfs (root on Linux)")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def _mount(disk: Path, options: str) -> bool:
    """Mount a tmpfs, or change the options of the one that is mounted."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk]
    return subprocess.run(command, capture_output=True).returncode == 0


@bad_story("disk/run/checkpoints", "No space left", *FULL)
def full_disk_in_training(place: Place) -> Iterator[Result]:
    with small_disk(place) as disk:
        command = [*TRAIN, "--output", disk / "run"]
        yield place.cli(*command, cwd=place.directory)
        committed = _files(disk, "round.json")
        assert committed
        _mount(disk, "remount,size=64m")
        assert place.cli(*command, cwd=place.directory).code == 0
        assert committed.items() <= _files(disk, "round.json").items()


@bad_story("disk/run/checkpoints", "No space left", *FULL)
def full_disk_in_full_fine_tuning(place: Place) -> Iterator[Result]:
    with small_disk(place) as disk:
        command = [*TRAIN, "--set", "model.lora=null", "--output", disk / "run"]
        yield place.cli(*command, cwd=place.directory)
        _mount(disk, "remount,size=64m")
        assert place.cli(*command, cwd=place.directory).code == 0


@bad_story("disk/answers.sqlite", *FULL_STORE)
def full_disk_in_scoring(place: Place) -> Iterator[Result]:
    with small_disk(place) as disk:
        command = _score(place.named_run.directory)
        there = {"FEDBENCH_ANSWERS": str(disk / "answers.sqlite")}
        yield place.cli(*command, cwd=place.directory, env=there)
        _mount(disk, "remount,size=64m")
        assert place.cli(*command, cwd=place.directory, env=there).code == 0


@bad_story("disk/scores/", *FULL)
def full_disk_for_the_scores(place: Place) -> Iterator[Result]:
    with small_disk(place, "12k") as disk:
        command = [*_score(place.named_run.directory), "--output", disk / "scores"]
        yield place.cli(*command, cwd=place.directory)
        _mount(disk, "remount,size=64m")
        assert place.cli(*command, cwd=place.directory).code == 0
        asked = json.loads((disk / "scores" / "run.json").read_bytes())["facts"]["answers_asked"]
        assert asked == 0  # the first try had them all


@bad_story("disk/answers.sqlite", *FULL_STORE)
def read_only_store(place: Place) -> Iterator[Result]:
    with small_disk(place, "1m") as disk:
        there = {"FEDBENCH_ANSWERS": str(shutil.copy(place.named_run.answers, disk))}
        command = [*_score(place.named_run.directory), "--limit", "2"]
        _mount(disk, "remount,ro")
        yield place.cli(*command, cwd=place.directory, env=there)
        _mount(disk, "remount,rw")
        assert place.cli(*command, cwd=place.directory, env=there).code == 0


def _limited(place: Place, num_bytes: int) -> Iterator[Result]:
    """Files cannot grow beyond a limit: like a full disk, and no special rights are needed."""
    command = ["train-and-eval", "run.yaml"]
    yield place.cli(*command, cwd=place.directory, file_limit=num_bytes)
    assert place.cli(*command, cwd=place.directory).code == 0


@bad_story("runs/small/", *FULL)
def file_limit_in_training(place: Place) -> Iterator[Result]:
    yield from _limited(place, 2_000)


@bad_story(".sqlite", *FULL_STORE)
def file_limit_in_scoring(place: Place) -> Iterator[Result]:
    yield from _limited(place, 60_000)


@bad_story(*INTERRUPTED, code=130)
def ctrl_c_in_training(place: Place) -> Iterator[Result]:
    place.project.run["federation"]["rounds"] = 20
    place.project.write()
    run = place.directory / "runs" / "small"
    yield _interrupted(place, lambda: len(_files(run, "round.json")) >= 6)
    # In the end fedavg keeps 20 rounds, three local models and the pooled one keep their last.
    finished = _files(run, "round.json")
    assert 6 <= len(finished) < 24
    score = ["score", "--ckpt", run, "--tasks", "task.yaml", "--limit", "2", "--output", "after"]
    assert place.cli(*score, cwd=place.directory).code == 0
    assert place.cli(*TRAIN, cwd=place.directory).code == 0
    assert len(_files(run, "round.json")) == 24
    assert finished.items() <= _files(run, "round.json").items()


@bad_story(*INTERRUPTED, code=130)
def ctrl_c_in_scoring(place: Place) -> Iterator[Result]:
    place.project.run["evaluation"]["engine"] = {"batch_tokens": 64}  # one item a batch
    place.project.run["federation"]["rounds"] = 6
    place.project.write()
    assert place.cli(*TRAIN, cwd=place.directory).code == 0
    yield _interrupted(place, lambda: len(_stored(place.answers)) >= 20)
    finished = _stored(place.answers)
    # The base, three local models, the pooled one and six rounds answer 32 items and the four
    # requests of the canary.
    assert 20 <= len(finished) < 11 * 36
    assert place.cli("train-and-eval", "run.yaml", cwd=place.directory).code == 0
    assert finished.items() <= _stored(place.answers).items()
    assert len(_stored(place.answers)) == 11 * 36


def _interrupted(place: Place, ready: Callable[[], bool]) -> Result:
    """Ctrl-C to a fresh process once it is ready."""
    process = place.cli.start("train-and-eval", "run.yaml", cwd=place.directory)
    deadline = time.monotonic() + 120
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    return Result(process.returncode, stdout, stderr)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_ends_in_one_line_that_names_place_and_remedy(
    case: Case,
    cli: Cli,
    project: Project,
    named_run: ProjectRun,
    full_run: ProjectRun,
    demo_run: DemoRun,
) -> None:
    with closing(case.story(Place(cli, project, named_run, full_run, demo_run))) as story:
        assert_one_line(next(story), case.code, case.says)
        still_readable(cli, named_run.directory)
        assert next(story, None) is None  # what the case has to say of afterwards
    assert not project.file("was-run").exists()


USAGE = {
    "unknown option": ["train", "--fast"],
    "unknown command": ["trian"],
    "missing option": ["check", "runs/small"],
    "unknown choice": ["list", "tsks"],
    "number out of range": ["score", "--ckpt", "x", "--suite", "demo", "--limit", "0"],
    "two sources of answers": ["score", "--ckpt", "x", "--answers", "y", "--tasks", "headlines"],
}


@pytest.mark.parametrize("args", USAGE.values(), ids=USAGE)
def test_wrong_usage_ends_with_2_and_the_usage(args: list[str], cli: Cli) -> None:
    result = cli(*args)
    assert result.code == 2
    assert "Usage: fedbench" in result.stderr
    assert "Error: " in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def assert_one_line(result: Result, code: int, says: Sequence[str]) -> None:
    assert result.code == code, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("fedbench: ")
    assert result.stderr.count("\n") == 1, result.stderr
    assert len(result.stderr) < 600
    assert result.stdout == ""
    for part in says:
        assert part in result.stderr


def still_readable(cli: Cli, run: Path) -> None:
    """Finished work is there and whole."""
    shown = cli("leaderboard", run, "--json")
    assert shown.code == 0, shown.stderr
    assert shown.rows


def _files(directory: Path, name: str) -> dict[Path, int]:
    """The files of a name below a directory, and when each was written."""
    return {file: file.stat().st_mtime_ns for file in directory.rglob(name)}


def _stored(file: Path) -> dict[str, tuple[str, float]]:
    """Answer and when it was given, by key; empty where there is no store yet."""
    if not file.exists():
        return {}
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as store:
        try:
            rows = store.execute("SELECT key, answer, created FROM answers")
            return {row[0]: row[1:] for row in rows}
        except sqlite3.OperationalError:  # not made yet
            return {}


def _score(checkpoint: str | Path) -> Args:
    return ["score", "--ckpt", checkpoint, "--tasks", "task.yaml"]


def _round(run: Path) -> Path:
    return run / "checkpoints" / "fedavg" / "seed-0" / "round-0002"


def _changed(adapter: Path, **fields: Any) -> Path:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_bytes()) | fields))
    return adapter


def _with_pickle(adapter: Path, content: bytes) -> Path:
    (adapter / WEIGHTS).unlink()
    (adapter / "adapter_model.bin").write_bytes(content)
    return adapter
