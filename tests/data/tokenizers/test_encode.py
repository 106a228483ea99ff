"""A long document has the ids that it has when it is encoded whole, wherever it is cut."""

from pathlib import Path

import numpy as np
import pytest
import tokenizers
from small_corpora import corpus_config, prepared
from small_prepare import sentences, small_sizes
from small_tokenizers import byte_level, content_of, open_content, trained_elsewhere
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

import data.prepare.encode
from data.tokenizers.tokenizer import open_tokenizer

TEXT = "".join(sentences(300)) + "a▁b  c\n\n\nd\n e\t"


def trained(normalizer: normalizers.Normalizer | None, scheme: str | None) -> bytes:
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    if normalizer:
        tokenizer.normalizer = normalizer
    if scheme:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace()
    special = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    return content_of(tokenizer)


def prefixed_bytes() -> bytes:
    tokenizer = byte_level("</s>")
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return content_of(tokenizer)


LLAMA = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
TOKENIZERS = {
    "metaspace first.json": lambda: trained(None, "first"),
    "metaspace always.json": lambda: trained(None, "always"),
    "prepended.json": lambda: trained(LLAMA, None),
    "bytes with a prefix.json": prefixed_bytes,
    "bytes.json": lambda: content_of(byte_level("</s>")),
    "dummy prefix.model": lambda: trained_elsewhere(
        sentence_iterator=iter(TEXT.splitlines()),
        model_type="bpe",  # in the sums of a unigram model, what is as likely may be either
        vocab_size=600,
        byte_fallback=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
    ),
    "extra spaces dropped.model": lambda: trained_elsewhere(
        sentence_iterator=iter(TEXT.splitlines()),
        model_type="bpe",
        vocab_size=600,
        byte_fallback=True,
    ),
}


@pytest.mark.parametrize("part_bytes", [997, 10**6])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_document_in_pieces_has_the_ids_of_the_whole(tmp_path, monkeypatch, name, part_bytes):
    path = tmp_path / name
    path.write_bytes(TOKENIZERS[name]())
    monkeypatch.setattr(data.prepare.encode, "_CHUNK_CHARACTERS", 100)
    small_sizes(monkeypatch, part_bytes=part_bytes, task_bytes=10**6)
    (tmp_path / "a.txt").write_text(TEXT)
    config = corpus_config(tmp_path / "a.txt", tokenizer=str(path), validation_fraction=0)
    tokenizer = open_tokenizer(config)
    assert tokenizer is not None
    store = prepared(config, tmp_path / "out")
    found = store.train.read(1, store.train.num_tokens - 1)
    np.testing.assert_array_equal(found, tokenizer.encode(TEXT))


def test_text_within_a_document_begins_without_a_space():
    for name, make in TOKENIZERS.items():
        tokenizer = open_content(make(), Path(name).suffix)
        (ids,) = tokenizer.encode_batch(["bad cab"], mid_document=True)
        assert tokenizer.decode([*tokenizer.encode("a"), *ids]).strip() == "abad cab", name
