"""Settings of the data: how text is prepared once, and how its tokens become training sequences."""

import string
from dataclasses import dataclass
from typing import Annotated, Literal

from configs.objective import ObjectiveConfig
from configs.require import (
    Count,
    CountFromZero,
    CountOrNone,
    Incompatible,
    Rate,
    Safe,
    ShareOrNone,
    at_least,
    below_power_of_2,
    check_bounds,
    require,
    require_at_least,
)

STDLIB = "stdlib"
"""The value of data.path that means the text which comes with every Python."""

CleanStep = Literal[
    "unicode",
    "html",
    "control_characters",
    "boilerplate_lines",
    "length",
    "gopher_quality",
    "gopher_stop_words",
    "gopher_repetition",
    "c4",
    "language",
    "mask_personal",
    "decontaminate",
    "exact_duplicates",
    "near_duplicates",
]
DUPLICATE_STEPS = ("exact_duplicates", "near_duplicates")
"""Steps that compare documents with one another, and so come after all that look at one."""

SpecialTokens = Literal["masked", "span", "infill"]

_TOKENIZERS = ("sentencepiece", "bytes", "characters")
TOKENIZER_FILES = (".model", ".json", ".tiktoken", "merges.txt")


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """What is read, and how it becomes tokens on disk."""

    path: Safe[str | None] = None
    """A file, folder, glob or prepared folder, local or s3:// gs://; stdlib: the text that comes
    with Python; or hf:OWNER/NAME of the Hugging Face hub (:CONFIG after it; needs the package
    datasets). Formats: .txt .jsonl .json .csv .tsv (.gz .zst) .parquet .arrow .arrayrecord .npy
    .bin, .md and source code, folders of them, and datasets saved to disk."""
    tokenizer: Incompatible[str] = "sentencepiece"
    """sentencepiece (trained on the text), bytes, characters, a .model, a tokenizer.json, a
    vocab.json beside its merges.txt, a .tiktoken, or a prepared folder, whose tokenizer is used."""
    split_pattern: Incompatible[str | None] = None
    """Pre-tokenization of a .tiktoken or vocab.json: gpt2, cl100k_base, o200k_base, or a regular
    expression. None is gpt2 for a vocab.json; a .tiktoken needs one."""
    vocab_size: Incompatible[Annotated[int, at_least(2)]] = 2048
    """Vocabulary size of a SentencePiece tokenizer trained here; 2048 suits a text of a few MB."""
    sentencepiece_model: Incompatible[Literal["unigram", "bpe"]] = "unigram"
    """Model type of a SentencePiece tokenizer trained here; both have byte fallback."""
    separator_token: Incompatible[str | None] = None
    """Document separator of a .model or tokenizer.json; None is its end-of-text token."""
    special_tokens: Incompatible[tuple[SpecialTokens, ...]] = ()
    """Special tokens of objectives other than causal: masked, span, infill."""
    text_field: Safe[str] = "text"
    """The field of a record (.jsonl .json .csv .parquet ...) that holds the text; a.b is b in a. A
    column of integer lists holds token ids."""
    text_template: Safe[str | None] = None
    r"""Text composed of several fields, in place of text_field: {title}\n\n{text}; {{ is a
    brace."""
    token_dtype: Safe[Literal["uint8", "uint16", "uint32", "int32", "int64"] | None] = None
    """Dtype of a .bin of token ids; None: as its header or .idx says, else uint32 for a vocabulary
    above 65,536, else uint16."""
    document_separator: Safe[str | None] = None
    """What separates documents in a .txt, such as <|endoftext|>; None: a file is one document."""
    split_files: Safe[Literal["by_name", "ignore"]] = "by_name"
    """by_name: files or folders named train are trained on, those named validation, valid, val or
    dev validate, test is excluded; ignore: file names mean nothing."""
    validation_fraction: Incompatible[ShareOrNone] = None
    """Fraction of the text held out for validation and never trained on: whole documents, or the
    end of a single text; None is 10 %, at most 100 MB."""
    validation_seed: Incompatible[Annotated[int, below_power_of_2(64)]] = 0
    """Seed that selects the validation documents; the same documents and seed give the same
    split."""
    invalid_utf8: Safe[Literal["refuse", "replace"]] = "refuse"
    """Text that is not UTF-8: refuse it, or replace invalid bytes by U+FFFD."""
    bad_records: Safe[Literal["stop", "skip"]] = "stop"
    """A record or file that cannot be read: stop, or skip and count it."""
    clean: Safe[tuple[CleanStep, ...]] = ()
    """Cleaning and filtering steps, in this order; ./tessera inspect shows what each one did."""
    min_characters: Safe[CountFromZero] = 1
    """Shorter documents are dropped by the step length."""
    max_characters: Safe[CountOrNone] = None
    """Longer documents are dropped by the step length; None is no limit."""
    languages: Safe[tuple[str, ...]] = ("en",)
    """ISO 639-1 codes that the step language keeps."""
    duplicate_similarity: Safe[Rate] = 0.8
    """Jaccard similarity of character 5-grams above which near_duplicates drops the later
    document."""
    decontaminate_from: Safe[tuple[str, ...]] = ()
    """Evaluation texts (as in path) whose n-grams the step decontaminate removes."""
    decontaminate_ngram_len: Safe[Count] = 13
    """Words in such an n-gram (13 as for GPT-3); a character counts as a word in scripts without
    spaces."""

    def __post_init__(self) -> None:
        check_bounds(self, "data")
        require(
            self.tokenizer in _TOKENIZERS
            or self.tokenizer.endswith(TOKENIZER_FILES)
            or "/" in self.tokenizer,
            f"data.tokenizer={self.tokenizer} must be {', '.join(_TOKENIZERS)}, the path of a "
            "SentencePiece .model, of a Hugging Face tokenizer.json, or ./FOLDER of prepared data",
        )
        require(
            self.text_template is None or self.text_field == "text",
            f"data.text_field={self.text_field} and data.text_template={self.text_template} must "
            "not both be given; name the field within the template",
        )
        template_parts(self.text_template or "{text}")
        separator = self.document_separator
        require(
            separator is None or (separator.strip() != "" and "\n" not in separator),
            f"data.document_separator={separator!r} must be something that stands within a line, "
            "such as <|endoftext|>",
        )
        for name in DUPLICATE_STEPS:
            later = self.clean[self.clean.index(name) :] if name in self.clean else ()
            after = [step for step in later if step not in DUPLICATE_STEPS]
            require(
                not after,
                f"data.clean={' '.join(self.clean)} must have {name} after {' '.join(after)}: "
                "duplicates are found among documents that are otherwise clean",
            )
        require(
            len(set(self.clean)) == len(self.clean),
            f"data.clean={' '.join(self.clean)} must name each step once",
        )
        require(
            ("decontaminate" in self.clean) == bool(self.decontaminate_from),
            f"data.decontaminate_from={' '.join(self.decontaminate_from) or None} must name texts "
            f"just where data.clean={' '.join(self.clean) or None} has the step decontaminate",
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig(ObjectiveConfig, PrepareConfig):
    """What is read, and how it becomes sequences of tokens."""

    sequence_len: Count
    """Tokens in a sequence [T]."""
    packing: Literal["concat", "best_fit"] = "concat"
    """concat: documents are concatenated and chunked every T tokens (GPT-2); best_fit: whole
    documents are packed, cut only if longer than T."""
    mixture: Safe[tuple[str, ...]] = ()
    """NAME=PATH of each source, in place of path; PATH is anything path may be. The
    stdlib of a preset gives way to it."""
    weights: tuple[float, ...] = ()
    """Relative weights of the sources, normalized to fractions of sequences; empty: proportional to
    their sizes."""
    phases: tuple[str, ...] = ()
    """Mixture schedule, STEP:W,W,...: new weights from a step on; 9000:1,1,8 gives the third source
    80 % from step 9000."""
    validation: Safe[tuple[str, ...]] = ()
    """NAME=PATH of further validation sets; of raw text all of it, of a prepared folder its
    validation part."""
    verify: Safe[Literal["digests", "sizes"]] = "digests"
    """What is checked of prepared data before a run: checksums, or file sizes only."""
    num_read_threads: Safe[Count] = 2
    """Threads that read sequences ahead of the step."""
    num_prefetch_batches: Safe[Count] = 8
    """Batches kept ready in host memory."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_objective()
        require(
            self.validation_fraction != 1,
            f"data.validation_fraction={self.validation_fraction} must be below 1, or nothing is "
            "left to train on; a text that only validates goes into data.validation",
        )
        require(
            self.path in (None, STDLIB) or not self.mixture,
            f"data.path={self.path} and data.mixture={' '.join(self.mixture)} must not both be "
            "given; put the path into the mixture as NAME=PATH",
        )
        names = [*named(self.mixture, "data.mixture"), *named(self.validation, "data.validation")]
        require(
            len(set(names)) == len(names),
            f"data.mixture and data.validation must not use a name twice: {' '.join(names)}",
        )
        _check_weights("data.weights", self.weights, self.mixture)
        steps = [step for step, _ in self.weight_phases()]
        require(
            steps == sorted(set(steps)) and 0 not in steps[1:],
            f"data.phases={' '.join(self.phases)} must be in the order of their steps, from 1 on",
        )

    def weight_phases(self) -> list[tuple[int, tuple[float, ...]]]:
        """Returns (first step, weights) of each phase; the first begins at step 0.

        Raises:
            SettingsError: a phase cannot be read, or does not fit the mixture.
        """
        phases = [(0, self.weights)]
        for phase in self.phases:
            step, _, weights = phase.partition(":")
            try:
                phases.append((int(step), tuple(map(float, weights.split(",")))))
            except ValueError:
                require(False, f"data.phases={phase} must be STEP:WEIGHT,WEIGHT,...")
            _check_weights("data.phases", phases[-1][1], self.mixture)
            require_at_least("data.phases", phases[-1][0], 1)
        return phases


def template_parts(template: str) -> tuple[tuple[str, str | None], ...]:
    """Returns (text, name of the field that follows) of data.text_template; \\n is a line's end.

    Raises:
        SettingsError: it cannot be read, or has no field.
    """
    parts, why = [], "no field in braces"
    try:
        for text, name, form, conversion in string.Formatter().parse(template):
            parts.append((text.replace("\\n", "\n").replace("\\t", "\t"), name))
            if name == "" or form or conversion:
                parts, why = [], "more or less than a name in braces"
                break
    except ValueError as error:
        parts, why = [], str(error)
    require(
        any(name is not None for _, name in parts),
        f"data.text_template={template} must be like '{{title}}: {{text}}', but has {why}; braces "
        "of the text itself are {{ and }}",
    )
    return tuple(parts)


def named(entries: tuple[str, ...], field: str) -> dict[str, str]:
    """Returns {name: path} of entries NAME=PATH; raises SettingsError where one is not."""
    pairs = {}
    for entry in entries:
        name, equals, path = entry.partition("=")
        require(
            bool(equals and path) and name.replace("_", "").replace("-", "").isalnum(),
            f"{field}={entry} must be NAME=PATH, the name of letters, digits, - and _",
        )
        require(name not in pairs, f"{field}={' '.join(entries)} must not use {name} twice")
        pairs[name] = path
    return pairs


def _check_weights(field: str, weights: tuple[float, ...], mixture: tuple[str, ...]) -> None:
    shown = " ".join(map(str, weights))
    require(
        not weights or len(weights) == len(mixture),
        f"{field}={shown} must have one weight for each of data.mixture={' '.join(mixture)}",
    )
    for weight, entry in zip(weights, mixture, strict=False):
        require(
            0 < weight < float("inf"),
            f"{field}={shown} must all be above zero, but {entry} has {weight}; leave it out of "
            "data.mixture instead",
        )
