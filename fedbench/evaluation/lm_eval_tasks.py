"""The tasks of lm-eval (EleutherAI's lm-evaluation-harness) by name, without its slow start.

``TaskManager()`` parses 13,000 files in every process, which takes five to ten seconds; here that
is done once per version of lm-eval and kept in the cache directory.

lm-eval is an optional package, imported where it is used. What is used of its insides (its index
of tasks, its template environment) is that of 0.4.13.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import Field

from fedbench.data.rows import open_mirror
from fedbench.errors import ConfigError, DataError, MissingExtraError
from fedbench.evaluation.lm_eval_rows import replaced, rows_from
from fedbench.resources import cache_directory
from fedbench.results.record import write_atomically
from fedbench.schema import Part, validated

PACKAGE = "lm_eval"
PREFIX = f"{PACKAGE}/"
_EXTRA = "lm-eval"
_log = logging.getLogger(__name__)


class HarnessConfig(Part):
    """A task, group or tag of lm-eval, and how it is asked; the names are those of lm-eval."""

    task: str
    num_fewshot: int | None = Field(default=None, ge=0)
    """None leaves what the task says; a task that says 0 keeps it, as in lm-eval."""
    fewshot_seed: int = 1234
    system_instruction: str | None = None
    apply_chat_template: bool = False
    fewshot_as_multiturn: bool = True
    """With a chat template: each example as a turn of its own."""
    gen_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Overrides of the task's ``generation_kwargs``."""


class Entry(NamedTuple):
    """What the index knows of a name."""

    kind: str
    """``TASK``, ``PY_TASK``, ``GROUP`` or ``TAG``."""
    file: str | None
    """Relative to lm-eval's directory of tasks."""
    tags: list[str]
    """Of a tag, the tasks that bear it."""


def harness_config(name: str, variant: str = "") -> HarnessConfig:
    """The configuration of a name such as ``gsm8k`` with a variant such as ``num_fewshot=5``.

    Raises:
        ConfigError: the variant is not of that form, or names no option.
    """
    raw: dict[str, Any] = {}
    for part in filter(None, re.split(r",(?=\w+=)", variant)):
        option, equals, value = part.partition("=")
        try:
            raw[option] = yaml.safe_load(value)
        except yaml.YAMLError:
            equals = ""
        if not equals:
            raise ConfigError(
                f"{PREFIX}{name}:{variant}: {part!r} is no option; write num_fewshot=5, or several "
                "with commas"
            )
    return validated(HarnessConfig, {"task": name, **raw}, f"{PREFIX}{name}:{variant}")


def is_known(name: str) -> bool:
    """Whether lm-eval is installed and has a task, group or tag of that name."""
    if importlib.util.find_spec(PACKAGE) is None:
        return False
    # A slip of the pen should not wait for the index to be made.
    return (_index_file().is_file() or _is_mentioned(name)) and name in task_index()


def names_at_hand() -> list[str]:
    """The names that lm-eval has, where it is installed and their index is made."""
    if importlib.util.find_spec(PACKAGE) is None or not _index_file().is_file():
        return []
    return list(task_index())


@cache
def task_index() -> dict[str, Entry]:
    """All names of lm-eval.

    Raises:
        MissingExtraError: lm-eval is not installed.
    """
    file = _index_file()
    if file.is_file():
        try:
            return {name: Entry(*row) for name, row in json.loads(file.read_bytes()).items()}
        except (ValueError, TypeError):
            _log.warning("%s: is damaged; it is made again", file)
    _log.warning("listing the tasks of lm-eval %s, once (about ten seconds)", _version())
    index = _scan()
    write_atomically(file, json.dumps(index).encode())
    return index


def members(name: str) -> list[str]:
    """The tasks that a name stands for: itself, or what a tag or a group without a score holds.

    Raises:
        ConfigError: lm-eval has no such name.
    """
    entry = _entry(name)
    if entry.kind == "TAG":
        return [task for tag in sorted(entry.tags) for task in members(tag)]
    if entry.kind == "GROUP" and not _raw(entry.file).get("aggregate_metric_list"):
        children = _children(_raw(entry.file))
        if all(isinstance(child, str) for child in children):
            return [task for child in children for task in members(str(child))]
    return [name]


def definitions(name: str) -> dict[str, Mapping[str, Any]]:
    """The YAML of a task, or of a group and all that it holds, with functions as names.

    Raises:
        ConfigError: lm-eval has no such name, or it runs generated code.
    """
    found: dict[str, Mapping[str, Any]] = {}
    _define(name, found)
    unsafe = [task for task, raw in found.items() if raw.get("unsafe_code")]
    if unsafe:
        raise ConfigError(
            f"{PREFIX}{name}: {unsafe[0]} runs code that the model writes, which lm-eval does "
            "unprotected in this process; choose a task that does not"
        )
    return found


def digest(config: HarnessConfig) -> str:
    """Hash of everything in a task's definition that can change a score."""
    shape = [
        {name: _portable(raw) for name, raw in definitions(config.task).items()},
        config.model_dump(mode="json"),
    ]
    return hashlib.sha256(json.dumps(shape, sort_keys=True, default=str).encode()).hexdigest()[:16]


def version_of(name: str) -> int:
    """lm-eval's version of a task as a whole number, at least 1; `digest` tells the rest apart."""
    raw = definitions(name).get(name, {}).get("metadata") or {}
    try:
        return max(int(float(raw.get("version", 1))), 1)
    except (TypeError, ValueError):
        return 1


def build(config: HarnessConfig, mirror: str | None = None) -> Any:
    """lm-eval's own task object, or its group with the tasks in it, with their rows.

    Raises:
        ConfigError: lm-eval has no such task, or it needs packages that are missing.
        DataError: neither the mirror nor the hub gives the rows.
    """
    definitions(config.task)  # refused before any of its functions is imported
    missing: set[str] = set()
    try:
        with rows_from(open_mirror(mirror), missing), _quiet():
            loaded = _manager().load([config.task])
    except ImportError as error:
        raise ConfigError(
            f"{PREFIX}{config.task}: needs a package that is not installed ({error}); install it, "
            "or lm-eval with the extra that its documentation names for the task"
        ) from error
    except (IndexError, KeyError) as error:
        if not missing:
            raise
        raise DataError(_not_held(config.task, missing)) from error
    tasks = list(loaded["tasks"].values())
    for task in tasks:
        _configure(task, config)
        if task.config.num_fewshot and not task.sampler.df:
            raise DataError(_not_held(config.task, missing) + " (examples are taken from it)")
    return loaded.get("groups", {}).get(config.task, tasks[0])


@contextlib.contextmanager
def templates_compiled_once() -> Iterator[None]:
    """Let lm-eval keep compiled templates: it compiles each again for every document."""
    from lm_eval import utils

    with replaced(utils.env, "from_string", lru_cache(maxsize=1024)(utils.env.from_string)):
        yield


def _version() -> str:
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingExtraError("scoring tasks of lm-eval", _EXTRA) from error


def _root() -> Path:
    """lm-eval's directory of tasks, found without importing it."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise MissingExtraError("scoring tasks of lm-eval", _EXTRA)
    return Path(found.origin).parent / "tasks"


def _index_file() -> Path:
    return cache_directory() / PACKAGE / f"index-{_version()}.json"


def _is_mentioned(name: str) -> bool:
    """Whether any of lm-eval's files of tasks holds that name as a word."""
    word = re.compile(rb"(?<![\w-])%b(?![\w-])" % re.escape(name.encode()))
    return any(word.search(file.read_bytes()) for file in _root().glob("**/*.yaml"))


def _scan() -> dict[str, Entry]:
    from lm_eval.tasks._index import TaskIndex

    root = _root()
    with _quiet():
        found = TaskIndex.build([root])
    return {
        name: Entry(
            entry.kind.name,
            entry.yaml_path.relative_to(root).as_posix() if entry.yaml_path else None,
            sorted(entry.tags),
        )
        for name, entry in found.items()
    }


@cache
def _manager() -> Any:
    """lm-eval's `TaskManager` with the index put in."""
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._index import Entry as TheirEntry
    from lm_eval.tasks._index import Kind

    manager = TaskManager(include_defaults=False)
    root = _root()
    for name, entry in task_index().items():
        file = root / entry.file if entry.file else None
        manager.task_index[name] = TheirEntry(name, Kind[entry.kind], file, tags=set(entry.tags))
    return manager


def _entry(name: str) -> Entry:
    import difflib

    index = task_index()
    if name not in index:
        near = difflib.get_close_matches(name, index, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"lm-eval has no task {name!r}: {hint}`lm_eval ls tasks` shows them all")
    return index[name]


@cache
def _raw(file: str | None) -> Mapping[str, Any]:
    """The YAML of an index entry, with what it includes; nothing where it has no file."""
    raw: Mapping[str, Any] = (
        _yaml_loader().load_yaml(_root() / file, resolve_func=False) if file else {}
    )
    return raw


@cache
def _yaml_loader() -> Any:
    """lm-eval's reader of YAML by itself: its package takes seconds to import."""
    spec = importlib.util.spec_from_file_location("_lm_eval_yaml", _root() / "_yaml_loader.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _children(raw: Mapping[str, Any]) -> Sequence[Any]:
    children = raw.get("task") or []
    return [children] if isinstance(children, str) else children


def _define(name: str, found: dict[str, Mapping[str, Any]]) -> None:
    if name in found:
        return
    entry = _entry(name)
    if entry.kind == "TAG":
        for task in sorted(entry.tags):
            _define(task, found)
        return
    found[name] = _raw(entry.file)
    if entry.kind == "GROUP":
        _define_children(found[name], found)


def _define_children(raw: Mapping[str, Any], found: dict[str, Mapping[str, Any]]) -> None:
    for child in _children(raw):
        named = child if isinstance(child, str) else child.get("group", child.get("task"))
        if isinstance(named, str) and named in task_index():
            _define(named, found)
        elif isinstance(child, Mapping):
            found[f"{raw.get('group')}::{named}"] = child
            if "group" in child:
                _define_children(child, found)


def _portable(value: Any) -> Any:
    """A definition without places of this machine: a function is its name and its file's hash."""
    if isinstance(value, Mapping):
        return {str(key): _portable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_portable(item) for item in value]
    root = str(_root()) + "/"
    if not (isinstance(value, str) and value.startswith(root)):
        return value
    file = Path(value.rpartition(".")[0] + ".py")
    content = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""
    return [value.removeprefix(root), content]


def _configure(task: Any, config: HarnessConfig) -> None:
    """As `lm_eval.simple_evaluate` applies its arguments to a task."""
    if config.gen_kwargs and task.get_config("output_type") == "generate_until":
        task.set_config("generation_kwargs", dict(config.gen_kwargs), update=True)
    own = task.get_config("num_fewshot")
    if config.num_fewshot is None or own == 0:
        task.set_config("num_fewshot", own or 0)
    else:
        task.set_config("num_fewshot", config.num_fewshot)
    task.set_fewshot_seed(config.fewshot_seed)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without lm-eval's remarks on its own task files, and bars for each of its data sets."""
    import datasets

    logger = logging.getLogger(PACKAGE)
    level, bars = logger.level, not datasets.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()


def _not_held(task: str, missing: set[str]) -> str:
    return (
        f"{PREFIX}{task}: the mirror does not hold {', '.join(sorted(missing))}; add it there, or "
        "unset FEDBENCH_DATA to take the whole data set from the hub"
    )
