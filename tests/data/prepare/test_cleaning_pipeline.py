# ruff: noqa: RUF001
"""The steps in their order, the report of what they did, and overlap with evaluation texts."""

import json

import pytest

from configs.data import PrepareConfig
from data.prepare.cleaning.cleaner import NUM_EXAMPLES, Cleaner, merge_reports
from data.prepare.cleaning.cleaning_step import Dropped
from data.prepare.cleaning.decontaminate import make_decontaminate

CONFIG = PrepareConfig(
    clean=("unicode", "control_characters", "boilerplate_lines", "length", "mask_personal"),
    min_characters=12,
)
NAMES = [f"document {number}" for number in range(30)]
TEXTS = [
    f"Number {number} has\r\nsome \u200btext"
    if number % 3
    else "short"
    if number % 2
    else f"Home\nMail number{number}@example.org now"
    if number % 4
    else "\u200b \n"
    for number in range(30)
]


def overlap(text: str, *evaluations: str, ngram_len: int = 5) -> str | None:
    """Returns the rule by which a document is dropped for the evaluation texts, or None."""
    config = PrepareConfig(
        clean=("decontaminate",), decontaminate_from=("x",), decontaminate_ngram_len=ngram_len
    )
    answer = make_decontaminate(config, iter(evaluations))(text)
    assert isinstance(answer, Dropped) or answer == text
    return answer.rule if isinstance(answer, Dropped) else None


def test_steps_apply_in_the_order_of_the_setting():
    text = "<p>Home</p>\n<p>The text.</p>"
    first = Cleaner(PrepareConfig(clean=("html", "boilerplate_lines")))
    assert first("a", text) == "\nThe text."
    second = Cleaner(PrepareConfig(clean=("boilerplate_lines", "html")))
    assert second("a", text) == "Home\n\nThe text."
    assert [step["step"] for step in second.report] == ["boilerplate_lines", "html"]


def test_duplicate_steps_are_left_to_the_pass_over_all_documents():
    cleaner = Cleaner(PrepareConfig(clean=("unicode", "exact_duplicates", "near_duplicates")))
    assert [cleaner(name, "The same.") for name in "ab"] == ["The same.", "The same."]
    assert [step["step"] for step in cleaner.report] == ["unicode"]


def test_a_report_says_what_each_step_did():
    config = PrepareConfig(clean=("boilerplate_lines", "length"), min_characters=6)
    cleaner = Cleaner(config)
    documents = {"a": "Home\nA long text.", "b": "Home", "c": "Short", "d": "Long enough."}
    kept = {name: cleaner(name, text) for name, text in documents.items()}
    assert kept == {"a": "A long text.", "b": None, "c": None, "d": "Long enough."}
    assert cleaner.report == [
        {
            "step": "boilerplate_lines",
            "documents": 4,
            "changed": 1,
            "dropped": 1,
            "characters_removed": 5 + 4,
            "rules": {"nothing left": 1},
            "changed_examples": [
                {"document": "a", "before": "Home\nA long text.", "after": "A long text."}
            ],
            "dropped_examples": [{"document": "b", "rule": "nothing left", "text": "Home"}],
        },
        {
            "step": "length",
            "documents": 3,
            "changed": 0,
            "dropped": 1,
            "characters_removed": 5,
            "rules": {"too short": 1},
            "changed_examples": [],
            "dropped_examples": [{"document": "c", "rule": "too short", "text": "Short"}],
        },
    ]


def test_an_example_shows_the_place_of_the_first_change():
    cleaner = Cleaner(PrepareConfig(clean=("mask_personal",)))
    cleaner("a", f"{'x ' * 5000}me@example.org{' y' * 5000}")
    example = cleaner.report[0]["changed_examples"][0]
    assert example["before"].startswith("x x x x x x x x x x me@example.org y")
    assert example["after"].startswith("x x x x x x x x x x <EMAIL> y")
    assert len(example["before"]) == len(example["after"]) == 80


@pytest.mark.parametrize("num_tasks", [1, 4, 7, 30])
def test_reports_of_tasks_merge_to_the_report_of_one(num_tasks):
    alone = Cleaner(CONFIG)
    expected = [alone(*document) for document in zip(NAMES, TEXTS, strict=True)]
    tasks = [Cleaner(CONFIG) for _ in range(num_tasks)]
    kept = []
    for number, document in enumerate(zip(NAMES, TEXTS, strict=True)):
        kept.append(tasks[number * num_tasks // 30](*document))
    assert kept == expected
    # As text: the order of rules and of examples is the same too.
    merged = merge_reports([task.report for task in tasks])
    assert json.dumps(merged) == json.dumps(alone.report)
    by_name = {step["step"]: step for step in merged}
    assert by_name["unicode"]["documents"] == 30
    assert by_name["unicode"]["changed"] == 20
    assert len(by_name["unicode"]["changed_examples"]) == NUM_EXAMPLES
    assert by_name["control_characters"]["rules"] == {"nothing left": 3}
    assert by_name["length"]["rules"] == {"too short": 5}
    assert by_name["mask_personal"]["changed"] == 2


QUESTION = "What is the largest moon of the planet Saturn, and who found it?"


def test_a_document_with_an_ngram_of_an_evaluation_text_is_dropped():
    assert overlap("They ask: the LARGEST moon -- of\nthe planet is?", QUESTION) == (
        "5-gram of an evaluation text"
    )
    assert overlap("The largest moon of a planet, the planet Saturn.", QUESTION) is None
    assert overlap("moon largest the of the planet", QUESTION) is None
    assert overlap("Saturn and who", QUESTION) is None
    assert overlap("", QUESTION) is None


def test_an_ngram_does_not_join_two_evaluation_texts():
    parts = ("one two three four five", "six seven eight nine ten")
    assert overlap("three four five six seven", *parts) is None
    assert overlap("nine one two three four five", *parts) == "5-gram of an evaluation text"
    assert overlap("He said: six seven eight nine ten.", *parts) == "5-gram of an evaluation text"


def test_an_evaluation_text_shorter_than_an_ngram_is_looked_for_as_a_whole():
    question = "How tall is Mount Everest, measured from the sea?"  # 9 words
    text = "Tell me how tall is Mount Everest measured from the sea now"
    assert overlap(text, question, ngram_len=13) == "whole evaluation text"
    assert overlap(text.replace("tall is", "is tall"), question, ngram_len=13) is None
    assert overlap("how tall is Mount Everest", question, ngram_len=13) is None
    assert overlap("anything", "", " ...", question, ngram_len=13) is None


def test_an_evaluation_text_of_a_few_words_is_not_looked_for():
    text = "one two three four five six seven eight nine"
    assert overlap(text, "two three four five six seven eight", ngram_len=13) is None
    assert overlap(text, "one two three four five six seven eight", ngram_len=13) is not None
    assert overlap(text, "four five", ngram_len=5) is None


def test_letters_are_the_words_of_an_ngram_in_chinese():
    question = "土星最大的卫星叫什么名字？"
    assert overlap("有人问，土星最大的 卫星是哪一颗。", question) == "5-gram of an evaluation text"
    assert overlap("土星的卫星最大的是哪一颗", question) is None
    assert overlap("土星最大的卫星", question, ngram_len=8) is None
    assert overlap("土星最大的卫星叫", question, ngram_len=8) == "8-gram of an evaluation text"
