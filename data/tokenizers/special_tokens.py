"""Special tokens: those that objectives need, and their names in other tokenizers."""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from configs.data import SpecialTokens

NO_SPECIAL_TOKENS: Mapping[str, int] = MappingProxyType({})

SEPARATOR = "separator"
"""Key of the separator among special tokens, if data.separator_token is not the usual one."""

END_OF_TEXT = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "<eos>",  # before </s>, which is an HTML tag in Gemma's vocabulary
    "</s>",
    "<|eos|>",
    "<EOS>",
    "[EOS]",
    "<|eot_id|>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",  # DeepSeek's, with full-width bars
    "<|im_end|>",
    "[SEP]",
)
"""Usual names of the end-of-text token; the first one in a vocabulary is its separator."""

_ALIASES: Mapping[SpecialTokens, Mapping[str, tuple[str, ...]]] = {
    "masked": {
        "[PAD]": ("<pad>", "<|pad|>", "<PAD>"),
        "[CLS]": ("<cls>",),
        "[SEP]": ("<sep>",),
        "[MASK]": ("<mask>", "<|mask|>", "<MASK>"),
    },
    "span": {f"<extra_id_{i}>": () for i in range(100)},
    "infill": {
        "<|fim_prefix|>": (
            "<fim_prefix>",
            "<fim-prefix>",
            "<PRE>",
            "[PREFIX]",
            "<\uff5cfim\u2581begin\uff5c>",
        ),
        "<|fim_middle|>": (
            "<fim_middle>",
            "<fim-middle>",
            "<MID>",
            "[MIDDLE]",
            "<\uff5cfim\u2581end\uff5c>",
        ),
        "<|fim_suffix|>": (
            "<fim_suffix>",
            "<fim-suffix>",
            "<SUF>",
            "[SUFFIX]",
            "<\uff5cfim\u2581hole\uff5c>",
        ),
        "<|fim_pad|>": ("<fim_pad>", "<fim-pad>"),
    },
}
_ROBERTA = {"[CLS]": "<s>", "[SEP]": "</s>"}


def special_token_ids(
    groups: Iterable[SpecialTokens],
    vocab_size: int,
    id_of: Callable[[str], int | None] = lambda token: None,
    separator: int | None = None,
) -> dict[str, int]:
    """Returns the id of each special token of the groups by its canonical name.

    A token that the tokenizer has, under this name or an alias, keeps its id; the others get ids
    from vocab_size up. Only [SEP] may be the separator. The order of groups makes no difference.
    """
    # In others <s> begins a text that nothing ends, or both are HTML tags, as in Gemma.
    roberta = separator is not None and id_of("</s>") == separator and id_of("<s>") is not None
    chosen = [names for group, names in _ALIASES.items() if group in groups]
    found, next_id = {}, vocab_size
    for name, aliases in (entry for names in chosen for entry in names.items()):
        tokens = [name, *aliases]
        if roberta and name in _ROBERTA:
            tokens.append(_ROBERTA[name])
        known = _first_known(tokens, id_of)
        if known is None or (known == separator and name != "[SEP]"):
            known, next_id = next_id, next_id + 1
        found[name] = known
    return found


def _first_known(tokens: Iterable[str], id_of: Callable[[str], int | None]) -> int | None:
    for token in tokens:
        for spelling in (token, "\u2581" + token):  # mT5 and Code Llama prepend a space
            known = id_of(spelling)
            if known is not None:
                return known
    return None
