"""What each rule reads out of answers as models write them."""

from __future__ import annotations

import pytest

from fedbench.evaluation.extract import EXTRACTS, get_extract
from fedbench.evaluation.readings import RULES

LETTERS = ("A", "B", "C", "D")
DECISIONS = ("yes", "no", "maybe")


def read(rule: str, completion: str, labels: tuple[str, ...] = ()) -> str | None:
    return get_extract(rule)(completion, labels)


@pytest.mark.parametrize(
    ("completion", "letter"),
    [
        ("B", "B"),
        (" b)", None),  # lower case counts only where it is stated
        ("(C) Reassure the patient", "C"),
        ("D. Amlodipine", "D"),
        ("**B**", "B"),
        (r"$\boxed{C}$", "C"),
        ("The answer is D because the murmur is systolic.", "D"),
        ("The correct option is (a).", "A"),
        ("Answer: B\n\nExplanation: A, C and D are contraindicated.", "B"),
        ("At first the answer is A. But with fever, the answer is C.", "C"),
        ("Options A and B are wrong, so it must be (C).", "C"),
        ("A patient with this history needs an ECG.", None),
        ("Either (A) or (B).", None),
        ('Answer: "C"', "C"),
        ("Answer: [C]", "C"),
        (r"Answer: \(\boxed{C}\)", "C"),
        ("The answer is “C”.", "C"),
        ("<answer>C</answer>", "C"),
        ("Answer：Ｃ。", "C"),
        ("Therefore, C is the correct answer.", "C"),
        ("Option C (metformin) is the best choice.\nA is wrong because it is slow.", "C"),
        ("C is the correct answer\nA is wrong because it is slow.", "C"),
        ("B is correct in children. But the answer is C.", "C"),
        ("B is correct only in children.", None),
        ("C is incorrect.", None),
        ("Answer: A and C", None),
        ("The answer is (B) or (D).", None),
        ("A, B and C are all correct.", None),
        ("A and C are wrong, so it must be (B).", "B"),
        ("Neither A nor B is correct.", None),
        ("The answer is not A.", None),
        ("It isn't (A), it is (C).", "C"),
        ("The answer is a matter of taste.", None),
        ("E", None),
        ("", None),
    ],
)
def test_the_letter_of_an_option(completion: str, letter: str | None) -> None:
    assert read("choice_letter", completion, LETTERS) == letter


@pytest.mark.parametrize(
    ("completion", "instruct_eval", "flowertune"),
    # pred.strip().startswith(label), and the first letter of what is left without punctuation.
    [
        (" B. Yes", "B", "B"),
        ("Aspirin", "A", "A"),
        ("(C)", None, "C"),
        ("d", None, "D"),
        ("The answer is A", None, None),
        ("\n## b\n", None, "B"),  # the reading looks behind a headline
        ("", None, None),
    ],
)
def test_letters_by_the_rules_of_protocols(
    completion: str, instruct_eval: str | None, flowertune: str | None
) -> None:
    assert read("starts_with_label", completion, LETTERS) == instruct_eval
    assert read("flowertune_letter", completion, LETTERS) == flowertune


@pytest.mark.parametrize(
    ("completion", "ours", "flowertune"),
    [
        ("yes", "yes", "yes"),
        ("No.", "no", "no"),
        ("Maybe", "maybe", "maybe"),
        (" maybe", "maybe", None),  # FlowerTune cleans yes and no only
        ("yesyes", None, "yes"),
        ("noyes", None, "no"),
        ("The answer is **maybe**.", "maybe", None),
        ("Nothing in the abstract says so.", None, None),
        ("There is no doubt: answer: yes", "yes", None),
        ("It depends: yes in mice, no in men.", None, None),
        ("", None, None),
    ],
)
def test_yes_no_and_maybe(completion: str, ours: str | None, flowertune: str | None) -> None:
    assert read("yes_no_maybe", completion, DECISIONS) == ours
    assert read("flowertune_boolean", completion, DECISIONS) == flowertune


@pytest.mark.parametrize(
    ("completion", "last", "hashes", "stated"),
    [
        ("She has 3 + 4 = 7 apples.\n#### 7", "7", "7", "7"),
        ("He pays $1,250.50 in all.", "1250.50", None, "1250.50"),
        ("#### -12\nSo 3 are left over.", "3", "-12", "3"),
        ("Answer: 35 pieces", "35", None, "35"),
        ("Answer: $4.", "4", None, "4"),
        ("It starts at 5. Answer: 5:45", "45", None, "5:45"),
        ("3 > 2.\nAnswer: Bryan", "2", None, "Bryan"),
        ("**Answer:** 45, 45 and 90 degrees", "90", None, "45"),
        ("Answer: 2,400", "2400", None, "2400"),
        ("I do not know.", None, None, None),
    ],
)
def test_numbers(completion: str, last: str | None, hashes: str | None, stated: str | None) -> None:
    assert read("last_number", completion) == last
    assert read("number_after_hashes", completion) == hashes
    assert read("stated_answer", completion) == stated


@pytest.mark.parametrize(
    ("completion", "in_box", "formula"),
    [
        (r"Thus \boxed{\frac{1}{2}}.", r"\frac{1}{2}", r"\frac{1}{2}"),
        (r"First \boxed{3}, no: \boxed{4}", "4", "4"),
        (r"$\boxed 7$", "7", "7"),
        (r"Cut off: \boxed{\frac{1}{2", None, None),
        (r"The final answer is $x^2+1$. I hope it is correct.", None, "x^2+1"),
        ("Adding up, the answer is 42.", None, "42"),
        ("**Answer:** 42", None, "42"),
        ("**Answer: 2**10**", None, "2**10"),
        ("The answer is [0, 1).", None, "[0, 1)"),
        ("The answer is x = 5.", None, "x = 5"),
        ("The answer is a matter of taste.", None, None),
        ("Since $a=1$ and $b=2$ we find $a+b=3$", None, "a+b=3"),
        ("No idea.", None, None),
    ],
)
def test_formulas(completion: str, in_box: str | None, formula: str | None) -> None:
    assert read("boxed", completion) == in_box
    assert read("math_answer", completion) == formula


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("Let's see. So the answer is (B).", "(B)"),
        ("So the answer is (B)", "(B)"),  # lm-eval's expression gives "(B"
        ("So the answer is 24", "24"),  # lm-eval's expression gives "2"
        ("The answer is (A) blue, so the answer is **(C) green**.", "(C)"),
        ("] ) >", "] ) >"),
        ("barn damp dot", "barn damp dot"),
        ("Answer: valid", "valid"),
        ("Monsters, Inc", "Monsters, Inc"),
        ("\nyes\nbecause it is", "yes"),
        ("", None),
    ],
)
def test_answers_to_big_bench_hard_keep_their_last_character(
    completion: str, answer: str | None
) -> None:
    assert read("bbh_answer", completion) == answer


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("17", "17"),
        ("The passage says 3.7 percent.\nAnswer: 3.7", "3.7"),
        ("**Answer: Peyton Manning.**", "Peyton Manning"),
        ("Tom Brady.\nHe threw twice.", "Tom Brady"),
        ("", None),
    ],
)
def test_short_answers(completion: str, answer: str | None) -> None:
    assert read("short_answer", completion) == answer


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_rule_is_known_by_name_and_reads_nothing_in_nothing(rule: object) -> None:
    name = rule.__name__  # type: ignore[attr-defined]
    assert EXTRACTS[name] is rule
    for labels in (LETTERS, DECISIONS):
        assert read(name, "", labels) is None
        assert read(name, " \n", labels) is None
