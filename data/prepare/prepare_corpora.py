"""Prepares corpora with one tokenizer: the given one, or one trained on all of them."""

from collections.abc import Callable

from configs.errors import SettingsError
from data.prepare.corpus_preparation import Preparation
from data.tokenizers.tokenizer import Tokenizer, lossy_texts
from data.tokenizers.train_tokenizer import (
    SAMPLE_CHARACTERS,
    UNK_CHARACTER,
    character_tokenizer,
    train_sentencepiece,
)

Log = Callable[[str], None]
"""Prints a line about what happens."""


def prepare(preparations: list[Preparation], tokenizer: Tokenizer | None, log: Log) -> None:
    """Prepares corpora with one tokenizer, trained on all of them if none is given."""
    notes = ""
    for preparation in preparations:
        others = ", ".join(f"{n} {name}" for name, n in preparation.corpus.not_read.items())
        note = f"; other files are ignored: {others}" if others else ""
        log(f"preparing {preparation.description}{note}")
        for line in preparation.corpus.notes:
            log(f"note: {line}")
        if tokenizer is None and preparation.corpus.has_tokens:
            config = preparation.config
            raise SettingsError(
                f"data.tokenizer={config.tokenizer} is trained on text, but data.path="
                f"{config.path} holds tokens: give the tokenizer that made them, a .model or a "
                "tokenizer.json"
            )
        preparation.scan(tokenizer)
        for line in preparation.separator_notes:
            log(f"note: {line}")
        log(preparation.split.describe())
    if preparations and tokenizer is None:
        num = sum(preparation.num_line_characters for preparation in preparations)
        preparations[0].on_progress("train the tokenizer", 0, num)
        tokenizer, notes = _train(preparations)
        preparations[0].on_progress("train the tokenizer", num, num)
        log(f"tokenizer: {tokenizer.kind}, {tokenizer.vocab_size} tokens{notes and f'; {notes}'}")
    if preparations and tokenizer is not None and (changed := lossy_texts(tokenizer)):
        log(
            "warning: this tokenizer does not decode every text to the original; it changes "
            f"{', '.join(changed)}"
        )
    for preparation in preparations:
        assert tokenizer is not None
        preparation.write(tokenizer, notes)


def _train(preparations: list[Preparation]) -> tuple[Tokenizer, str]:
    """Returns a tokenizer trained on all texts, and notes on the text it was not trained on."""
    config = preparations[0].config
    if config.tokenizer == "characters":
        return character_tokenizer(set().union(*(p.alphabet for p in preparations)), config), ""
    num_characters = sum(preparation.num_line_characters for preparation in preparations)
    stride = -(-num_characters // SAMPLE_CHARACTERS) or 1
    lines = [line for preparation in preparations for line in preparation.sample(stride)]
    num_split = sum(UNK_CHARACTER in line for line in lines)
    notes = [f"trained on one line of {stride}, in chunks of 1000 characters"] * (stride > 1)
    notes += [f"{num_split:,} lines of its training text are split at U+2585"] * bool(num_split)
    return train_sentencepiece(lines, config), ", ".join(notes)
