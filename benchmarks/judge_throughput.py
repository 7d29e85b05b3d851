"""How fast judgments are had from a server, and how much memory that takes.

1,000 judgments from a server on loopback that answers after 50 ms, 32 at once: 1.6 seconds if
nothing else took time. The server is a process of its own. Memory is that of the asking process, at
half of the judgments and at the end, and with ten times as many.

    python benchmarks/judge_throughput.py
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import multiprocessing
import resource
import tempfile
import time
from asyncio import SelectorEventLoop
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path
from selectors import SelectSelector

from fedbench.data.templates import Turn, get_template
from fedbench.evaluation.evaluate import table_of
from fedbench.evaluation.task import Item, Task
from fedbench.generation.backend import Answer, Question, Sampling
from fedbench.generation.server.backend import OpenAIBackend
from fedbench.generation.server.client import ServerClient
from fedbench.generation.server.served import server_checkpoint
from fedbench.generation.store import AnswerStore
from fedbench.judging.conversations import Answered, OpenEndedAnswers
from fedbench.judging.judge import Judge
from fedbench.judging.judged import case_of, judge_case
from fedbench.judging.rubric import get_rubric
from fedbench.results.record import ModelId
from fedbench.schema import validated

REPLY = json.dumps(
    {
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Good, but short. Rating: [[7]]"},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 400, "completion_tokens": 9},
    }
).encode()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
ANSWER = HEAD % len(REPLY) + REPLY


def serve(port: Connection, seconds: float) -> None:
    """A server that reads requests and answers each after so long."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                if head.startswith(b"get"):  # of the list of models, which it does not have
                    writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                    continue
                length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                await asyncio.sleep(seconds)
                writer.write(ANSWER)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionResetError):
            writer.close()

    async def run() -> None:
        server = await asyncio.start_server(handle, "127.0.0.1", 0, backlog=512)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    # The default selector rounds each wait up to a millisecond.
    with asyncio.Runner(loop_factory=lambda: SelectorEventLoop(SelectSelector())) as runner:
        runner.run(run())


def answers(count: int) -> OpenEndedAnswers:
    """As many questions, with an answer of some 1,500 characters to each."""
    task = validated(
        Task,
        {
            "name": "made",
            "dataset": {"path": "rows.jsonl", "columns": ["text"]},
            "prompt": "{{ text }}",
            "rubric": "vicuna-fedbench",
            "metrics": ["judge_score"],
        },
        "made",
    )
    items = [
        Item(f"test/{n}", str(n), Question((Turn(f"Question {n}?"),), "generate", Sampling()), "")
        for n in range(count)
    ]
    turns = [[Answer(text=f"Answer {n}. " + "It depends on the case. " * 60)] for n in range(count)]
    model = Answered(ModelId(method="m", model_kind="global"), turns)
    return OpenEndedAnswers(task, items, table_of(task, items, None), [model])


def megabytes() -> float:
    """Resident memory of this process at its highest."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def judged_in(url: str, count: int, concurrency: int) -> tuple[float, float, float, float]:
    """Seconds, seconds of work, and megabytes at half of the judgments and at the end."""
    case = case_of(answers(count), get_rubric("vicuna-fedbench"))
    client = ServerClient(url, "judge", concurrency=concurrency)
    judge = Judge(OpenAIBackend(client), server_checkpoint(client), "judge", get_template("chat"))
    half = math.nan

    def tell(what: str, done: int, total: int) -> None:
        nonlocal half
        if done == total // 2:
            half = megabytes()

    with (
        tempfile.TemporaryDirectory() as place,
        closing(judge),
        closing(AnswerStore(Path(place) / "store.sqlite")) as store,
    ):
        start, worked = time.perf_counter(), time.process_time()
        judged = judge_case(case, judge, store, tell)
        seconds, work = time.perf_counter() - start, time.process_time() - worked
    assert judged.num_asked == count
    return seconds, work, half, megabytes()


def main() -> None:
    """Print a line per run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=0.05)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--many", type=int, default=0, help="judgments of a last, long run")
    options = parser.parse_args()
    port, of_server = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(of_server, options.seconds), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{port.recv()}/v1"
    judged_in(url, options.concurrency, options.concurrency)  # imports, connections
    counts = [options.count] * options.repeats + ([options.many] if options.many else [])
    for count in counts:
        ideal = math.ceil(count / options.concurrency) * options.seconds
        seconds, work, half, end = judged_in(url, count, options.concurrency)
        print(
            f"{count} judgments: {seconds:.2f} s, {seconds / ideal:.2f} times the ideal "
            f"{ideal:.2f} s; {work:.2f} s of work; memory {half:.0f} MB at half, {end:.0f} MB at "
            "the end"
        )
    server.terminate()


if __name__ == "__main__":
    main()
