"""The page and its siblings: true, escaped, alone in one file, the same every time."""

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from making import federation, model, results, without_answers

from fedbench.results import page
from fedbench.results.leaderboard import build
from fedbench.results.page import render_html, report, write_report
from fedbench.results.record import write_run, write_scores
from fedbench.results.renderings import render_csv, render_json, render_latex, render_markdown
from fedbench.results.run_words import run_facts
from fedbench.results.samples import Results, write_samples
from fedbench.results.specification import LeaderboardSpec, spec_for
from fedbench.results.table import Table
from fedbench.results.wording import findings, size

LIBRARY = Path(page.__file__).with_name("observable_plot.min.js")
GOLDEN = Path(__file__).parents[2] / "golden" / "leaderboard.md"


def incomplete() -> Table:
    """Two tasks and two seeds; FedProx lacks one seed on one task."""
    made = results(federation(seeds=(0, 1)), {"fpb": 120, "tfns": 90})
    gone = model("fedprox", "global", 1, round=4)
    # Without intervals of their own, all are computed here and none depends on how records do it.
    kept = [
        s.model_copy(update={"ci_low": None, "ci_high": None})
        for s in made.scores
        if not (s.model == gone and s.task == "tfns")
    ]
    made = Results(made.path, made.run, kept, made.samples)
    spec = LeaderboardSpec(
        name="made",
        title="Two tasks",
        tasks=("fpb", "tfns"),
        metrics=("weighted_f1", "accuracy"),
        averages={"Avg:2": ("fpb", "tfns")},
        seeds=(0, 1),
        sort_by="Avg:2",
    )
    return build(spec, [made])


def demo(**more: object) -> Table:
    made = results(federation(), **more)  # type: ignore[arg-type]
    return build(spec_for(made.run, made.scores), [made])


def test_markdown_is_as_it_was() -> None:
    """After a change that is meant: python tests/unit/results/test_page.py writes it anew."""
    assert render_markdown(incomplete()) == GOLDEN.read_text(encoding="utf-8")


def test_every_rendering_shows_an_incomplete_row_as_such() -> None:
    table = incomplete()
    for text in (render_markdown(table), render_html(table)):
        assert "— (1 of 2 seeds)" in text
        assert "— (incomplete: tfns)" in text
    assert "--- (1 of 2 seeds)" in render_latex(table)
    row = next(
        row
        for row in csv.DictReader(io.StringIO(render_csv(table)))
        if (row["row"], row["task"], row["metric"]) == ("fedprox", "Avg:2", "weighted_f1")
    )
    assert row["value"] == ""
    assert row["note"] == "incomplete: tfns"


def test_a_paper_has_the_methods_under_the_names_of_their_papers() -> None:
    models = {model("fedsa_lora", "client", 0, model_client=n, round=4): 0.7 for n in range(2)}
    models |= {
        model("trimmed_mean", "global", 0, round=4): 0.8,
        model("own_rule", "global", 0, round=4): 0.6,
    }
    models |= {model("fedavg", "global", 0, round=3): 0.7, model("fedavg", "global", 1): 0.8}
    made = results(models)
    rules = {3: "last", None: "best"}
    scores = [
        s.model_copy(update={"selected_by": rules[s.round]}) if s.method == "fedavg" else s
        for s in made.scores
    ]
    made = Results(made.path, made.run, scores, made.samples)
    names = re.findall(
        r"^(.*?) & ", render_latex(build(spec_for(made.run, made.scores), [made])), re.M
    )
    assert {"FedSA-LoRA, mean client", "Trimmed mean", r"own\_rule"} <= set(names)
    assert {"FedAvg (last)", "FedAvg (best)"} <= set(names)


def test_a_name_with_markup_is_escaped_everywhere() -> None:
    odd = "<script>alert(1)</script>|x"
    made = results(
        {model(odd, "global", 0, round=r): 0.8 for r in (1, 2)} | {model("base", "base"): 0.3},
        facts={"data": odd, "notes": [odd]},
        config={"notes": [odd], "description": odd},
    )
    table = build(spec_for(made.run, made.scores), [made])
    html = render_html(table)
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert" in html
    markdown = render_markdown(table)
    assert "<script>" not in markdown
    assert "/script>\\|x" in markdown  # the bar does not end the cell


def test_a_name_makes_no_link_or_picture_in_markdown() -> None:
    odd = r"[a](https://elsewhere) ![](https://elsewhere/pixel) b\|c"
    made = results({model(odd, "global", 0, round=1): 0.8, model("base", "base"): 0.3})
    markdown = render_markdown(build(spec_for(made.run, made.scores), [made]))
    assert "](http" not in markdown
    assert r"| [a]\(https://elsewhere) ![]\(https://elsewhere/pixel) b\\\|c |" in markdown


def test_a_name_in_letters_that_the_drawing_lacks_is_no_warning(tmp_path: Path) -> None:
    name = "联邦平均"
    made = results({model(name, "global", 0, round=r): 0.8 for r in (1, 2)})
    write_report(tmp_path, build(spec_for(made.run, made.scores), [made]))
    assert name in (tmp_path / "curve.svg").read_text()


def test_the_page_asks_nothing_of_the_network() -> None:
    html = render_html(demo())
    parser = _Loads()
    parser.feed(html)
    assert parser.loads == []
    # The charting library refers to its own clip paths, by names that it makes up.
    own = html.replace(LIBRARY.read_text(encoding="utf-8").strip(), "")
    assert len(own) < len(html)
    assert not re.search(r"@import|url\((?!#)", own)
    assert len(html.encode()) < 1_000_000


class _Loads(HTMLParser):
    """Collects every attribute that would make a browser fetch something."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            is_link = name in ("src", "href", "xlink:href", "srcset", "action", "data")
            if is_link and not (value or "").startswith("#"):
                self.loads.append(f"{tag} {name}={value}")
        if tag in ("link", "img", "iframe", "object"):
            self.loads.append(tag)


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    made = results(federation())
    write_scores(tmp_path / "run", made.scores)
    assert made.run is not None
    write_run(tmp_path / "run", made.run)
    for table in made.samples.values():
        write_samples(tmp_path / "run", table)
    spec = spec_for(made.run, made.scores)
    pages = [report([tmp_path / "run"], spec, tmp_path / name) for name in ("a", "b")]
    assert [page.name for page in pages] == ["index.html", "index.html"]
    for name in ("index.html", "README.md", "table.csv", "table.tex", "curve.svg"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_finding_speaks_of_every_federated_method_and_of_the_references() -> None:
    sentences = findings(demo())
    assert [s.split(", ")[1].split()[0] for s in sentences] == ["fedavg", "fedprox"]
    for other in ("mean local", "base", "centralised", "majority"):
        assert other in sentences[0]


def test_a_finding_does_not_claim_what_the_interval_leaves_open() -> None:
    made = results(
        {model("fedavg", "global", 0, round=1): 0.6, model("base", "base"): 0.6},
        {"headlines": 60},
    )
    (sentence,) = findings(build(spec_for(made.run, made.scores), [made]))
    assert "no clear difference from base" in sentence
    assert "above" not in sentence


def test_a_finding_without_intervals_says_why() -> None:
    made = results(federation(), keep_samples=False)
    sentence = findings(build(spec_for(made.run, made.scores), [made]))[0]
    assert "no interval: the answers to its items are not kept" in sentence


def test_the_asterisk_says_where_its_p_comes_from() -> None:
    table = demo()
    markdown = render_markdown(table)
    assert "\\* |" in markdown  # at least one difference is marked
    for text in (markdown, render_html(table)):
        assert "an asterisk marks p ≤ 0.05" in text
        assert "p comes from a normal approximation" in text


def test_a_method_without_a_result_is_spoken_of_too() -> None:
    made = results(federation(seeds=(0, 1)), config={"seeds": [0, 1]})
    made = without_answers(made, model("fedavg", "global", 1, round=4))
    sentence = findings(build(spec_for(made.run, made.scores), [made]))[0]
    assert sentence == "fedavg has no result on headlines (weighted_f1): 1 of 2 seeds."


def test_what_was_not_recorded_is_a_dash_with_the_reason() -> None:
    made = results(federation(), facts={"dropped_rows": {"fpb": 2, "tfns": 1040}})
    assert made.run is not None
    facts = dict(run_facts(made.run))
    assert facts["Private data"] == "— (not recorded)"
    assert facts["Training rows dropped"] == "fpb: 2, tfns: 1,040"


@pytest.mark.parametrize(
    ("config", "label", "text"),
    [
        ({"federation": {"num_clients": 6}}, "Federation", "6 clients, 6 in each of "),
        ({"local": {}, "methods": ["fedavg"]}, "Budgets", " samples per client and round "),
        ({"model": {"name": "tiny", "lora": {}}}, "Model", "tiny at revision not pinned; LoRA"),
    ],
)
def test_keys_that_a_recorded_configuration_lacks_have_their_defaults(
    config: dict[str, object], label: str, text: str
) -> None:
    made = results(federation(), config=config)
    assert made.run is not None
    assert text in dict(run_facts(made.run))[label]


def test_the_page_says_what_each_client_held() -> None:
    held = {"num_train": 160, "num_validation": 20, "num_test": 20, "labels": {"positive": 112}}
    html = render_html(demo(facts={"clients": {"0": [held] * 3}}))
    assert "positive: 112" in html
    assert "3 models of single clients" in html


def test_a_page_of_scores_without_a_run_record_can_be_made() -> None:
    made = results({model("base", "base"): 0.4})
    table = build(spec_for(None, made.scores), [Results(made.path, None, made.scores, {})])
    assert "no run.json beside the scores" in render_html(table)
    assert "base" in render_markdown(table)


def test_what_was_sent_sorts_by_bytes_and_not_by_the_digits_of_its_unit() -> None:
    made = results(federation())
    sent = {"fedavg": 2_000_000_000, "fedprox": 12_500_000}
    scores = [
        s.model_copy(update={"bytes_communicated": sent[s.method]}) if s.method in sent else s
        for s in made.scores
    ]
    made = Results(made.path, made.run, scores, made.samples)
    html = render_html(build(spec_for(made.run, made.scores), [made]))
    assert '<td data-sort="2000000000">2 GB</td>' in html
    assert '<td data-sort="12500000">12.5 MB</td>' in html


def test_every_link_within_the_page_leads_somewhere() -> None:
    empty = build(LeaderboardSpec(name="made", tasks=("fpb",), metrics=("accuracy",)), [])
    for table in (demo(), empty):
        html = render_html(table)
        targets = set(re.findall(r'href="#([^"]*)"', html))
        assert targets <= set(re.findall(r' id="([^"]*)"', html))


def test_rows_as_json_hold_plain_numbers() -> None:
    rows = json.loads(render_json(demo()))
    fedavg = next(r for r in rows if r["row"] == "fedavg" and r["metric"] == "weighted_f1")
    assert fedavg["ci_low"] < fedavg["value"] < fedavg["ci_high"]
    assert fedavg["train_examples_max"] == 960
    assert fedavg["num_answers"] == 150


@pytest.mark.parametrize(
    ("span", "text"),
    [(None, "—"), ((0, 0), "0 B"), ((1500, 1500), "1.5 kB"), ((10, 12_500_000), "10 B–12.5 MB")],
)
def test_bytes_are_given_in_units_for_people(span: tuple[int, int] | None, text: str) -> None:
    assert size(span) == text


def test_no_picture_is_written_when_there_is_no_curve(tmp_path: Path) -> None:
    made = results({model("base", "base"): 0.4})
    write_report(tmp_path, build(spec_for(made.run, made.scores), [made]))
    assert not (tmp_path / "curve.svg").exists()
    assert "curve.svg" not in (tmp_path / "README.md").read_text()


if __name__ == "__main__":
    GOLDEN.write_text(render_markdown(incomplete()), encoding="utf-8")
