# ruff: noqa: RUF001
"""The rules of Gopher and C4: each drops what breaks it, and keeps what is at its bound."""

import pytest

from configs.data import CleanStep, PrepareConfig
from data.prepare.cleaning.cleaner import make_cleaning_step
from data.prepare.cleaning.cleaning_step import Dropped

FIFTY = [f"word{letter}{number}" for number in range(2) for letter in "abcdefghijklmnopqrstuvwxy"]


def cleaned(name: CleanStep, text: str) -> str:
    answer = make_cleaning_step(name, PrepareConfig())(text)
    assert isinstance(answer, str), answer
    return answer


def rule(name: CleanStep, text: str) -> str | None:
    """Returns the rule that drops a text, or None where the step keeps it unchanged."""
    answer = make_cleaning_step(name, PrepareConfig())(text)
    assert isinstance(answer, Dropped) or answer == text
    return answer.rule if isinstance(answer, Dropped) else None


QUALITY = {
    "too few words": (" ".join(FIFTY[:49]), " ".join(FIFTY)),
    "too many words": ("word " * 100_001, "word " * 100_000),
    "mean word length": (" ".join(["at"] * 50), " ".join(["cat"] * 50)),
    "hash signs per word": (" ".join([*FIFTY, "#tag " * 6]), " ".join([*FIFTY, "#tag " * 5])),
    "ellipses per word": (
        " ".join(FIFTY) + " x… y..." * 3,
        " ".join(FIFTY) + " xyz… word..." * 2 + " end",
    ),
    "lines that begin with a bullet": (
        "\n".join(f"• {word}" for word in FIFTY),
        "\n\n".join([*(f"- {word}" for word in FIFTY[:45]), *FIFTY[45:]]),
    ),
    "lines that end with an ellipsis": (
        "\n".join(["one two three four five six seven eight nine..."] * 4 + ["ten eleven"] * 9),
        "\n".join(
            ["one two three four five six seven eight nine..."] * 3 + ["twelve and three more"] * 7
        ),
    ),
    "words with a letter": (" ".join(FIFTY + ["1234"] * 13), " ".join(FIFTY + ["1234"] * 12)),
}


@pytest.mark.parametrize("name", QUALITY)
def test_gopher_quality_drops_by_its_rule_and_not_at_its_bound(name):
    dropped, kept = QUALITY[name]
    assert rule("gopher_quality", dropped) == name
    assert rule("gopher_quality", kept) is None


def test_gopher_quality_knows_other_ways_to_break_its_rules():
    assert rule("gopher_quality", " ".join(["elevenchars"] * 50)) == "mean word length"
    assert (
        rule("gopher_quality", " ".join([*FIFTY, "|"] * 2 + ["->"] * 30)) == "words with a letter"
    )
    assert rule("gopher_quality", "字" * 49) == "too few words"
    assert rule("gopher_quality", "字" * 400_001) == "too many words"
    assert rule("gopher_quality", "字" * 400_000) is None
    assert rule("gopher_quality", ("他想了很久" + "……") * 20) == "ellipses per word"
    assert rule("gopher_quality", ("他想了很久还是没有说话" + "……") * 20 + "好") is None


def test_gopher_asks_for_two_different_english_stop_words():
    assert rule("gopher_stop_words", "The cat sat near THE dog.") == "English stop words"
    assert rule("gopher_stop_words", "The cat sat with a dog.") is None
    assert rule("gopher_stop_words", "Le chat est assis.") == "English stop words"


def numbered(count: int, start: int = 0) -> list[str]:
    """Words of five characters of which none occurs twice."""
    return [f"n{number}" for number in range(start + 1000, start + 1000 + count)]


def mixed(phrase: str, times: int, count: int) -> str:
    """One line with a phrase so many times, a word between, and so many words more."""
    between = " ".join(f"{phrase} {word}" for word in numbered(times, 500))
    return f"{between} {' '.join(numbered(count))}"


LONG_LINES = [" ".join(numbered(10, 10 * number)) for number in range(8)]
LONG_WORD = "w" * 40
REPETITION = {
    "duplicate lines": (LONG_LINES + ["ab"] * 5, LONG_LINES + ["ab"] * 4),  # 4 of 13, 3 of 12
    "characters in duplicate lines": (
        [LONG_WORD, LONG_WORD, *numbered(20)],
        [LONG_WORD, LONG_WORD, *numbered(24)],  # 40 of 200 characters
    ),
    "duplicate paragraphs": (
        ["ab\n"] * 4 + LONG_LINES,
        ["ab\n"] * 2 + [f"{line}\n" for line in LONG_LINES],
    ),
    "characters in duplicate paragraphs": (
        [*"abcdefghij", "", *"abcdefghij", *(f"\nk{letter}" for letter in "abcdefghijklmnopqrst")],
        [*"abcdefghij", "", *"abcdefghij", *(f"\n{word}" for word in numbered(40))],
    ),
    "most frequent 2-gram": ([mixed("very good", 6, 12)], [mixed("very good", 6, 60)]),
    "most frequent 3-gram": ([mixed("the tea pot", 6, 30)], [mixed("the tea pot", 6, 60)]),
    "most frequent 4-gram": ([mixed("one cup tea pot", 6, 50)], [mixed("one cup tea pot", 6, 80)]),
}


@pytest.mark.parametrize("name", REPETITION)
def test_gopher_repetition_drops_by_its_rule_and_not_below_its_bound(name):
    dropped, kept = REPETITION[name]
    assert rule("gopher_repetition", "\n".join(dropped)) == name
    assert rule("gopher_repetition", "\n".join(kept)) is None


@pytest.mark.parametrize(
    ("n", "count"), [(5, 42), (6, 45), (7, 49), (8, 54), (9, 60), (10, 66), (None, 80)]
)
def test_gopher_repetition_bounds_the_characters_of_duplicate_ngrams_by_n(n, count):
    # Ten words of two letters stand there twice: 40 characters of 40 + 10 + 5 * count are 15.4,
    # 14.5, 13.6, 12.5, 11.4, 10.5 and 8.9 %: each above the bound of one n, and of none less.
    phrase = "aa bb cc dd ee ff gg hh ii jj"
    expected = n and f"duplicate {n}-gram"
    assert rule("gopher_repetition", mixed(phrase, 2, count)) == expected


def test_gopher_repetition_counts_no_phrase_that_occurs_once():
    assert rule("gopher_repetition", "Six words, of which none repeats.") is None
    assert rule("gopher_repetition", "Hello.\n\n\n\n\nWorld.\n\n\n\nGood day.") is None


def test_gopher_repetition_does_not_take_a_name_in_chinese_for_a_phrase():
    other = [chr(0x4E00 + number) for number in range(56)]
    name = "中华人民共和国"
    # 14 of 70 letters are in 7-grams of letters that occur twice, in words a 4-gram or less.
    assert rule("gopher_repetition", name + "".join(other) + name) is None
    assert rule("gopher_repetition", "今天天气真的很好，" * 10) == "most frequent 2-gram"
    twice = "我们昨天在图书馆里看了书"
    more = "".join(chr(0x5000 + number) for number in range(90))
    text = f"{twice}，{more}，{twice}"
    assert rule("gopher_repetition", text) == "duplicate 5-gram"


FOUR = "One day it rained hard. Nobody went out of doors!\nWould it ever stop again?\n"


@pytest.mark.parametrize(
    "line",
    [
        *("It has no terminal mark at all", "Only four words here.", "Now, Javascript can be fun."),
        *("You must accept our terms of use.", "The site uses cookies for its work.", "短句。"),
        *("- Home and News and Sport and More", "他们在公园里散步，看花看鸟", "", "1, 2, 3, 4, 5;"),
    ],
)
def test_c4_removes_the_line(line):
    assert cleaned("c4", f"{FOUR}{line}\n") == FOUR.strip()


@pytest.mark.parametrize(
    "line",
    [
        *('She said it "with five words"', "And it was so good!", "Five words are enough here."),
        *(
            "他们在公园里散步。",
            "你今天想去哪里？",
            "下雨了怎么办！",
            "他想了又想……",
            "他说：「我们走吧」",
        ),
        *("مرحبا بكم في هذا المكان؟", "यह एक बहुत अच्छा दिन है।", "ဒီနေ့ ရာသီဥတု ကောင်းတယ်။"),
        *("วันนี้อากาศดีมาก", "ມື້ນີ້ອາກາດດີຫຼາຍ"),
    ],
)
def test_c4_keeps_the_line(line):
    assert cleaned("c4", f"{FOUR}{line}\n") == f"{FOUR}{line}"


def test_c4_drops_pages_by_its_rules():
    assert rule("c4", f"{FOUR}Lorem ipsum dolor sit amet, it says.") == "lorem ipsum"
    assert rule("c4", f"{FOUR}if (x) {{ return the sum of it. }}") == "curly bracket"
    assert (
        rule("c4", "One day it rained hard. Nobody went out of doors!") == "fewer than 3 sentences"
    )
    assert rule("c4", "It cost 3.5 or 4.5 dollars. Nobody paid.") == "fewer than 3 sentences"
    assert rule("c4", "他们在公园里散步。你今天想去哪里？") == "fewer than 3 sentences"
    assert rule("c4", "他们在公园里散步。你今天想去哪里？下雨了！") is None
    assert rule("c4", "วันนี้อากาศดีมาก เราไปเดินเล่นกัน") == "fewer than 3 sentences"
    assert rule("c4", "วันนี้อากาศดีมาก เราไปเดินเล่นกัน แล้วกลับบ้าน") is None


def test_c4_removes_citation_marks():
    text = (
        "The town is old.[1] It has a wall of stone.[citation needed] Nobody knows why.[23][edit]"
    )
    assert cleaned("c4", text) == "The town is old. It has a wall of stone. Nobody knows why."
