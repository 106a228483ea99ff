"""The tokenizer files of a Hugging Face folder, and its names of special tokens."""

from pathlib import Path

import tokenizers

from data.atomic_files import write_json
from data.tokenizers.export_tokenizer import to_tokenizer_json
from data.tokenizers.tokenizer import Tokenizer

_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
"""In order of preference."""
TOKEN_ID_KEYS = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "cls_token_id",
    "sep_token_id",
)
"""Keys of config.json that hold the ids of special tokens."""


def find_tokenizer_file(folder: Path) -> Path | None:
    """Returns the tokenizer file of a folder, None if it has none that can be read."""
    return next((folder / name for name in _FILES if (folder / name).is_file()), None)


def write_tokenizer_files(folder: Path, tokenizer: Tokenizer, max_sequence_len: int) -> None:
    """Writes tokenizer.model or tokenizer.json and tokenizer_config.json, as far as possible."""
    if tokenizer.kind == "sentencepiece":
        (folder / "tokenizer.model").write_bytes(tokenizer.content())
    content = to_tokenizer_json(tokenizer)
    if content is not None:
        (folder / "tokenizer.json").write_bytes(content)
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": max_sequence_len,
            **special_tokens_map(tokenizer, content),
        }
        write_json(folder / "tokenizer_config.json", settings)


def special_tokens_map(tokenizer: Tokenizer, content: bytes) -> dict[str, str]:
    """Returns the special tokens by their keys in tokenizer_config.json, such as eos_token.

    Args:
        content: tokenizer.json; a token is spelled as there, since another spelling adds a token.
    """
    made = tokenizers.Tokenizer.from_str(content.decode())
    ids = {**config_token_ids(tokenizer), "mask_token_id": tokenizer.special.get("[MASK]")}
    del ids["decoder_start_token_id"]
    tokens = {
        key.removesuffix("_id"): made.id_to_token(i) for key, i in ids.items() if i is not None
    }
    return {key: token for key, token in tokens.items() if token is not None}


def config_token_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Returns the ids of special tokens by their keys in config.json.

    The separator is both bos and eos.
    """
    separator, special = tokenizer.separator, tokenizer.special
    pad = special.get("[PAD]", separator)
    cls_sep = (special.get("[CLS]"), special.get("[SEP]"))
    ids = zip(TOKEN_ID_KEYS, (separator, separator, pad, separator, *cls_sep), strict=True)
    return {key: token_id for key, token_id in ids if token_id is not None}
