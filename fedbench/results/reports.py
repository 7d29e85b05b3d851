"""The check for machines and reviewers: JUnit XML, and Markdown that fits a comment."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from xml.etree import ElementTree

from fedbench.results.check import CheckRecord
from fedbench.results.verdicts import (
    SYMBOLS,
    number,
    remarks,
    score_name,
    tally,
    tolerance,
    why,
    with_interval,
    worst_first,
)

COMMENT_LIMIT = 60_000
"""Characters; a comment on GitHub holds 65,536."""
_SHOWN = 50
"""Rows before the rest is folded away."""
_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_HEAD = "| | score | model | baseline | candidate | better by (95 %) | margin |"
_RULE = "|---|---|---|---:|---:|---:|---:|"


def junit(records: Sequence[CheckRecord], strict: bool = False) -> str:
    """One test case per score: regressed is a failure, missing an error, inconclusive skipped.

    Args:
        records: the verdicts.
        strict: inconclusive is a failure as well, as it is of the exit code.
    """
    failing = {"regressed", *(("inconclusive",) if strict else ())}
    counts = {
        "tests": len(records),
        "failures": sum(r.verdict in failing for r in records),
        "errors": sum(r.verdict == "missing" for r in records),
        "skipped": sum(r.verdict == "inconclusive" and not strict for r in records),
    }
    numbers = {name: str(count) for name, count in counts.items()}
    suites = ElementTree.Element("testsuites", numbers)
    suite = ElementTree.SubElement(suites, "testsuite", {"name": "fedbench check"} | numbers)
    for record in records:
        name = score_name(record.task, record.variant, record.metric)
        attributes = {"classname": _xml(record.model), "name": _xml(name), "time": "0"}
        case = ElementTree.SubElement(suite, "testcase", attributes)
        kind = {"missing": "error", "ok": None}.get(record.verdict, "skipped")
        kind = "failure" if record.verdict in failing else kind
        if kind:
            child = ElementTree.SubElement(case, kind, {"message": _xml(why(record))})
            if kind != "skipped":
                child.set("type", record.verdict)
                child.text = _xml("\n".join(_details(record)))
        output = ElementTree.SubElement(case, "system-out")
        output.text = _xml("\n".join(_details(record)))
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def markdown(records: Sequence[CheckRecord], candidate: str, baseline: str) -> str:
    """A summary for a pull request: the verdict, what needs a look, and the rest folded away.

    Args:
        records: the verdicts.
        candidate: what was checked, in words.
        baseline: what it was held against, in words.
    """
    ordered = worst_first(records)
    worst = ordered[0].verdict if ordered else "ok"
    title = {"ok": "no regression", "regressed": "regressed", "missing": "a score is missing"}
    needing = [record for record in ordered if record.verdict != "ok"]
    looked_at = (needing or ordered)[:_SHOWN]
    lines = [
        f"### {SYMBOLS[worst]} fedbench check: {title.get(worst, worst)}",
        "",
        f"`{_code(candidate)}` against `{_code(baseline)}`: {tally(records)}.",
        "",
        *(_table(looked_at) if looked_at else []),
        *(f"- {SYMBOLS[r.verdict]} {_said(r)}" for r in looked_at if r.verdict != "ok"),
        *([""] if needing else []),
    ]
    rest = [record for record in ordered if record not in looked_at]
    if rest:
        lines += ["<details>", f"<summary>{tally(rest)}</summary>", "", *_table(rest)]
        lines += ["</details>", ""]
    lines.append(
        "<sub>Paired differences on the same items, positive where the candidate is better; shares "
        "in points. <i>Regressed</i> holds over all rows together (Holm), <i>ok</i> for each row "
        "by itself.</sub>"
    )
    return _fitting("\n".join(lines))


def _table(records: Sequence[CheckRecord]) -> list[str]:
    return [_HEAD, _RULE, *map(_row, records), ""]


def _row(record: CheckRecord) -> str:
    metric = record.metric
    cells = [
        f"{SYMBOLS[record.verdict]} {record.verdict}",
        _cell(score_name(record.task, record.variant, metric)),
        _cell(record.model),
        number(record.baseline_value, metric),
        number(record.value, metric),
        with_interval(record.delta, record.ci_low, record.ci_high, metric),
        tolerance(record.margin, metric),
    ]
    return f"| {' | '.join(cells)} |"


def _said(record: CheckRecord) -> str:
    name = score_name(record.task, record.variant, record.metric)
    return _cell(f"**{name}**, {record.model}: {'; '.join([why(record), *remarks(record)])}")


def _details(record: CheckRecord) -> Iterator[str]:
    metric = record.metric
    interval = with_interval(record.delta, record.ci_low, record.ci_high, metric)
    yield f"verdict: {record.verdict} ({why(record)})"
    yield f"baseline: {number(record.baseline_value, metric)}"
    yield f"candidate: {number(record.value, metric)}"
    yield f"better by: {interval}, margin {tolerance(record.margin, metric)}"
    if record.num_better is not None:
        yield f"items: {record.num_items}, {record.num_better} better, {record.num_worse} worse"
    yield from remarks(record)


def _fitting(text: str) -> str:
    """Cut between lines, so that no table is torn and nothing is lost in silence."""
    if len(text) <= COMMENT_LIMIT:
        return text + "\n"
    kept = text[:COMMENT_LIMIT].rpartition("\n")[0]
    closing = "\n\n</details>" if "<details>" in kept else ""
    return f"{kept}{closing}\n\n… cut: the JSON has all rows.\n"


def _cell(text: str) -> str:
    """Names come from files: they must not end a cell, or begin markup of their own."""
    return re.sub(r"([\\|<>`\[\]])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    return " ".join(text.split()).replace("`", "'")


def _xml(text: str) -> str:
    return _NOT_XML.sub("�", text)
