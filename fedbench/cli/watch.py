"""``fedbench watch``: a run while it trains, in the terminal."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fedbench.live import LiveRound, Snapshot

BARS = "▁▂▃▄▅▆▇█"
MOST_ROUNDS = 16
"""Of a method's losses, the newest are drawn."""
MOST_CLIENTS = 20
WIDTH = 60


@click.command("watch")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--once", is_flag=True, help="Print what there is now, and end.")
@click.option(
    "--every",
    type=click.FloatRange(min=0.2),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="How often to look.",
)
def command(run: Path, once: bool, every: float) -> None:
    """Show rounds, losses, clients, bytes, scores and time left of the run in directory RUN.

    It reads the run's files, from any terminal, also of a run that has ended; Ctrl-C ends it and
    leaves the run alone.
    """
    from rich.console import Console

    from fedbench.live import snapshot

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 10_000  # a pipe has no width to fit into
    if once or not console.is_terminal:
        console.print(frame(snapshot(run), time.time()))
        return
    from rich.live import Live

    with Live(frame(snapshot(run), time.time()), console=console, screen=False) as live:
        while True:
            shot = snapshot(run)
            live.update(frame(shot, time.time()))
            if shot.is_trained and shot.scores:
                return
            time.sleep(every)


def frame(shot: Snapshot, now: float) -> RenderableType:
    """One picture of a run.

    Args:
        shot: what its directory holds.
        now: seconds since the epoch, to say how old the newest round is.
    """
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [_head(shot, now)]
    if shot.trainings:
        parts += [Text(), _methods(shot)]
    if shot.current and not shot.is_trained:
        parts += [Text(), _clients(shot.current[-1])]
    if shot.scores:
        parts += [Text(), _scores(shot)]
    return Group(*parts)


def _head(shot: Snapshot, now: float) -> RenderableType:
    from rich.text import Text

    done, planned = shot.rounds_done, shot.rounds_planned
    facts = [
        f"{done:,} of {planned:,} rounds",
        f"{shot.trainings_done} of {shot.planned} trainings",
    ]
    left = shot.seconds_left
    if shot.is_trained:
        facts.append("trained" if not shot.scores else "trained and scored")
    elif left is not None:
        facts.append(f"about {duration(left)} of training left")
    if shot.last_change is not None:
        facts.append(f"last round {duration(max(now - shot.last_change, 0))} ago")
    else:
        facts.append("no round yet: data and the base model come first")
    filled = WIDTH * done // max(planned, 1)
    return Text.assemble(
        (shot.name, "bold"),
        "\n",
        ("━" * filled, "green"),
        ("━" * (WIDTH - filled), "dim"),
        f"\n{', '.join(facts)}",
    )


def _methods(shot: Snapshot) -> RenderableType:
    """One line per method and seed: local models of a seed share theirs."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading, justify in (
        ("training", "left"), ("rounds", "right"), ("loss", "right"), ("over rounds", "left"),
        ("samples", "right"), ("sent", "right"),
    ):  # fmt: skip
        table.add_column(heading, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    groups: dict[tuple[str, int], list[list[LiveRound]]] = {}
    for rounds in shot.trainings.values():
        groups.setdefault((rounds[0].method, rounds[0].seed), []).append(rounds)
    for (method, seed), trainings in groups.items():
        table.add_row(Text(f"{method} seed {seed}"), *map(Text, _training_texts(trainings)))
    return table


def _training_texts(trainings: list[list[LiveRound]]) -> list[str]:
    """Rounds, newest loss, its course, samples and bytes of a method under one seed."""
    newest = [rounds[-1] for rounds in trainings]
    losses = [loss for last in newest if (loss := last.loss) is not None]
    course = [live.loss for live in trainings[-1] if live.loss is not None]
    sent = sum(last.bytes_sent for last in newest)
    rounds = f"{newest[-1].round}/{newest[-1].last_round}"
    if newest[0].client is not None:
        rounds = f"{len(newest)} × {rounds}"
    return [
        rounds,
        f"{sum(losses) / len(losses):.4f}" if losses else "—",
        bars(course[-MOST_ROUNDS:]),
        f"{sum(last.train_examples for last in newest):,}",
        size((sent, sent)) if sent else "—",
    ]


def _clients(live: LiveRound) -> RenderableType:
    """The losses of the clients of the newest round, as bars."""
    from rich.text import Text

    highest = max(live.losses, default=0.0)
    text = Text(f"{live.what}, round {live.round}\n", style="bold")
    for client, loss in list(zip(live.cohort, live.losses, strict=False))[:MOST_CLIENTS]:
        width = round(30 * loss / highest) if highest > 0 else 0
        text.append(f"client {client:>3} ", style="not bold")
        text.append("█" * width, style="not bold cyan")
        text.append(f" {loss:.4f}\n", style="not bold")
    if len(live.losses) > MOST_CLIENTS:
        text.append(f"and {len(live.losses) - MOST_CLIENTS} more clients", style="not bold dim")
    return text


def _scores(shot: Snapshot) -> RenderableType:
    """Headline scores of the models that stand for their methods, the mean over seeds."""
    from statistics import fmean

    from rich import box
    from rich.table import Table
    from rich.text import Text

    from fedbench.cli._output import number

    cells: dict[str, dict[tuple[str, str], list[float | None]]] = {}
    for score in shot.scores:
        if score.headline and score.selected_by and score.group is None:
            name = score.method
            if score.model_client is not None:
                name = "mean local" if name == "local" else f"{name}, mean client"
            place = cells.setdefault(name, {})
            place.setdefault((score.task_key, score.metric), []).append(score.value)
    columns = list(dict.fromkeys(column for row in cells.values() for column in row))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("score")
    for task, metric in columns:
        table.add_column(Text(f"{task}\n{metric}"), justify="right")
    for name, row in cells.items():
        texts = []
        for column in columns:
            values = row.get(column, [None])
            known = [value for value in values if value is not None]
            whole = fmean(known) if len(known) == len(values) else None
            texts.append(number(whole, column[1]))
        table.add_row(Text(name), *texts)
    return table


def bars(values: list[float]) -> str:
    """A line of bars, the lowest value the lowest bar."""
    if not values:
        return ""
    low, high = min(values), max(values)
    if high <= low:
        return BARS[0] * len(values)
    steps = len(BARS) - 1
    return "".join(BARS[round((value - low) / (high - low) * steps)] for value in values)


def duration(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(span: tuple[int, int]) -> str:
    """Bytes for people."""
    from fedbench.results.wording import size as in_words

    return in_words(span)
