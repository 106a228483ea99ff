# ruff: noqa: RUF001
"""Each step changes or drops what it is for, and nothing that is almost like it."""

import subprocess
import sys
from typing import cast

import pytest
from commands import ROOT
from hypothesis import example, given, settings
from hypothesis import strategies as st

from configs.data import CleanStep, PrepareConfig
from data.prepare.cleaning.cleaner import LOCAL_STEPS, make_cleaning_step
from data.prepare.cleaning.cleaning_step import Dropped

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
STEPS = {
    name: make_cleaning_step(
        name, PrepareConfig(languages=("en", "zh"), min_characters=3), ["to be or not"]
    )
    for name in LOCAL_STEPS
}


def cleaned(name: CleanStep, text: str, **settings) -> str:
    answer = make_cleaning_step(name, PrepareConfig(**settings))(text)
    assert isinstance(answer, str), answer
    return answer


def rule(name: CleanStep, text: str, **settings) -> str | None:
    """Returns the rule that drops a text, or None where the step keeps it unchanged."""
    answer = make_cleaning_step(name, PrepareConfig(**settings))(text)
    assert isinstance(answer, Dropped) or answer == text
    return answer.rule if isinstance(answer, Dropped) else None


def lines(name: CleanStep, text: str) -> list[str]:
    return cleaned(name, text).split("\n")


def test_unicode_joins_letters_with_accents_and_changes_no_letter_for_a_like_one():
    assert cleaned("unicode", "cafe\u0301 \u1112\u1161\u11ab") == "caf\u00e9 \ud55c"
    for text in ("ﬁ ２ ㎏ x² ｶﾞ", "カ\u3000ガ", "caf\u00e9"):
        assert cleaned("unicode", text) == text


def test_unicode_ends_every_line_alike():
    assert cleaned("unicode", "a\r\nb\rc\u0085d\u2028e\u2029f\n\ng") == "a\nb\nc\nd\ne\nf\n\ng"


def test_control_characters_are_removed():
    text = "\ufeffa\u200bb\u00adc\x00\x07d\u202ee\u2060f\ufdd0\U000e0041g\x1b[31mred\x1b[0m"
    assert cleaned("control_characters", text) == "abcdefgred"
    assert cleaned("control_characters", "one\x0cpage\r\nand\x0bline") == "one\npage\nand\nline"


@pytest.mark.parametrize(
    "text",
    [
        "a\tb\nc d\u00a0e\u3000f",
        "क्\u200dष می\u200cخواهم",  # Hindi and Persian write differently without them
        "❤\ufe0f 👩\u200d🚀 👍🏽",
        "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",  # flag of England
        "\u0600\u0661 \u06dd\u180e",
        "private \ue000 use, \ufffd and \u0378, which no Unicode of today assigns",
    ],
)
def test_characters_that_carry_text_are_kept(text):
    assert cleaned("control_characters", text) == text


PAGE = """<!DOCTYPE html><html><head><title>Tides</title><script>var a = {b: 1};</script></head>
<body><nav><ul><li><a href="/">Home</a></li><li><a href="/a">About</a></li></ul></nav>
<main><article><h1>How tides work</h1><p>The Moon pulls on the ocean &amp; the ocean
<b>bulges</b>.</p><p>潮汐每天两次。</p><pre>a = 1
  b = 2</pre></article></main><div class="sidebar"><p>Related</p></div>
<footer>Copyright 2024</footer></body></html>"""


def test_a_page_becomes_the_text_of_its_main_content():
    for page in (
        PAGE,
        f"\ufeff\n<!-- made by hand -->{PAGE}",
        PAGE.removeprefix("<!DOCTYPE html>"),
    ):
        assert cleaned("html", page) == (
            "How tides work\n\nThe Moon pulls on the ocean & the ocean bulges.\n\n"
            "潮汐每天两次。\n\na = 1\n  b = 2"
        )
    assert cleaned("html", "<p>One &lt; two.</p>\n<p>Three.</p>\n") == "One < two.\n\nThree."


@pytest.mark.parametrize(
    "text",
    [
        "Use <b> for bold &amp; <i> for italics.",
        "<T> is a type variable, a < b && b > c",
        "<p> opens a paragraph in HTML, and so on.",
        "<?xml version='1.0'?><rss><channel>news</channel></rss>",
        "# Title\n\n<img src='x.png'>\n\nA README with a picture.",
        "htmlish text &eacute;",
        "",
    ],
)
def test_text_that_is_not_html_passes_unchanged(text):
    assert cleaned("html", text) == text


def test_a_page_nested_deeper_than_any_browser_shows_is_dropped():
    # The time of extraction is quadratic in the depth: at 100,000 it took 230 s.
    assert rule("html", f"<html>{'<div>' * 2001}x{'</div>' * 2001}") == "nested too deeply"
    assert cleaned("html", f"<html>{'<div>x</div>' * 2001}").count("x") == 2001


@pytest.mark.parametrize(
    "line",
    [
        *("Skip to content", "* Home", "Share this post on Facebook", "1,204 likes", "Read more »"),
        *("Log in or Register", "© 2023 Acme Inc. All rights reserved.", "Home > News > Sport"),
        *("2 items in cart", "[Leave a comment]", "Powered by WordPress", "Next post →"),
        "We use cookies to improve your experience. By going on you accept our cookie policy.",
        "Please enable JavaScript to view this page.",
        *(
            "首页 > 新闻 > 体育",
            "分享到：微信 微博",
            "上一篇：春天的花",
            "版权所有 © 2020 某某公司",
        ),
        *("本网站使用Cookie改善您的体验。", "阅读量：1234", "京ICP备12345678号", "登录/注册"),
        *("続きを読む", "本サイトはCookieを使用しています。", "ページトップへ"),
    ],
)
def test_lines_that_a_site_puts_on_every_page_go(line):
    assert lines("boilerplate_lines", f"Before it.\n{line}\n\nAfter it.") == [
        *("Before it.", "", "After it.")
    ]


@pytest.mark.parametrize(
    "line",
    [
        *("JavaScript is a programming language.", "He bakes cookies with sugar.", "print(x)"),
        *("The home of the bear is in the woods.", "Read more books, she said.", "| a | b |"),
        *("Next morning we left.", "Registered nurses work here.", "3 likes a day are enough."),
        *(
            "登录失败的原因有很多。",
            "上一篇文章我们讲了春天。",
            "分享一下我的经验",
            "ホームに電車が来た。",
        ),
        *("", "42", "CHAPTER ONE", "A privacy policy " + "has many words " * 13),
    ],
)
def test_lines_of_text_stay(line):
    assert cleaned("boilerplate_lines", f"Before it.\n{line}\nAfter it.").split("\n")[1] == line


def test_length_keeps_its_bounds():
    bounds = {"min_characters": 3, "max_characters": 5}
    found = [rule("length", "漢" * size, **bounds) for size in (2, 3, 5, 6)]
    assert found == ["too short", None, None, "too long"]
    assert rule("length", "x" * 10**6) is None


def test_the_language_step_says_which_package_it_needs():
    code = (
        "import sys; sys.modules['py3langid'] = None\n"
        "from configs.data import PrepareConfig\n"
        "from data.prepare.cleaning.cleaner import make_cleaning_step\n"
        "make_cleaning_step('language', PrepareConfig())"
    )
    done = subprocess.run((sys.executable, "-c", code), cwd=ROOT, capture_output=True, text=True)
    error = done.stderr.splitlines()[-1]
    assert error.startswith("configs.errors.SettingsError: data.clean=language needs the package ")
    assert error.endswith(f"install -c {ROOT}/constraints.txt py3langid".replace(f"{ROOT}/", ""))


def test_cleaning_loads_neither_jax_nor_packages_of_steps_not_asked_for():
    code = (
        "import sys, data.prepare.cleaning.cleaner, data.prepare.cleaning.duplicates\n"
        "assert not {'jax', 'flax', 'grain', 'resiliparse', 'py3langid'} & {*sys.modules}"
    )
    subprocess.run((sys.executable, "-c", code), cwd=ROOT, check=True)


def test_a_step_that_does_not_exist_is_no_step():
    for name in ("exact_duplicates", "near_duplicates", "unicod"):
        with pytest.raises(KeyError):
            make_cleaning_step(cast(CleanStep, name), PrepareConfig())


@pytest.mark.parametrize("name", LOCAL_STEPS)
@settings(max_examples=40, deadline=None)
@given(ANY_TEXT)
@example("")
@example("\n \n")
@example("<p>\x00</p>")
@example("0" * 300)
def test_no_step_fails_on_any_text(name, text):
    for whole in (text, f"<html>{text}</html>", f"{text} {text}\n{text}"):
        assert isinstance(STEPS[name](whole), str | Dropped)


@pytest.mark.parametrize("name", ["unicode", "control_characters", "mask_personal"])
@settings(max_examples=150, deadline=None)
@given(ANY_TEXT)
@example("\r\r\n\x85a\u0301\u0308")
@example("\x1b\x1b[31m[31m\U0001f3f4\u200b\U000e0067\U000e007f")
@example("x" * 60 + "%+4915112345678%y@example.org")  # too long for an address until it is masked
def test_cleaning_twice_is_cleaning_once(name, text):
    once = STEPS[name](text)
    assert isinstance(once, str)
    assert STEPS[name](once) == once
