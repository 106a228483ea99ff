"""The data of a run, and a mixture of sources by weights that may change."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import grain

from configs.data import DataConfig
from data.token_store import TokenStore, TokenStream
from data.tokenizers.tokenizer import Tokenizer

ENDLESS = 2**62


class Source(NamedTuple):
    """A prepared folder and its name in a mixture."""

    name: str
    store: TokenStore


@dataclass(frozen=True)
class Data:
    """The training sources and validation sets of a run; all have one tokenizer."""

    sources: tuple[Source, ...]
    """The validation split of each is a validation set, besides the further ones."""
    extra_validation: tuple[tuple[str, TokenStream], ...] = ()

    @property
    def tokenizer(self) -> Tokenizer:
        return self.sources[0].store.tokenizer

    @property
    def is_mixture(self) -> bool:
        return len(self.sources) > 1

    @property
    def digest(self) -> str:
        """SHA-256 of what determines the training tokens."""
        if not self.is_mixture:
            return self.sources[0].store.digest
        content = [source.store.digest for source in self.sources]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def folders(self) -> dict[str, str]:
        return {source.name: str(source.store.folder.absolute()) for source in self.sources}

    def validation_sets(self) -> dict[str, TokenStream]:
        """Returns the validation sets by name: those of the sources, then the further ones."""
        own = {
            name: store.validation for name, store in self.sources if store.validation.num_tokens
        }
        return own | dict(self.extra_validation)

    def bytes_per_token(self, config: DataConfig) -> float:
        """Returns the mean bytes of text per training token, under the first weights."""
        streams = [source.store.train for source in self.sources]
        weights = config.weights or [stream.num_tokens for stream in streams]
        shares = [weight / sum(weights) for weight in weights]
        return sum(
            share * stream.num_bytes / stream.num_tokens
            for share, stream in zip(shares, streams, strict=True)
        )


class MixtureSchedule(grain.transforms.DatasetSelectionMap):
    """Maps an index in the endless sequence of rows to (source, index within the source).

    Sources alternate as evenly as whole rows allow: of any n rows of a phase, each source has its
    share to within one row for each source before it. It is exact: weights are decimal fractions as
    written, and counts are integers, so without weights the first epoch has every row of every
    source once.

    Args:
        phases: (first index, weights) of each phase, in order, from index 0. A phase that begins
            with a batch has its weights in whole steps.
        taken: rows read of each source before index 0; () is none.
    """

    def __init__(self, phases: Sequence[tuple[int, Sequence[float]]], taken: Sequence[int] = ()):
        self._phases: list[tuple[int, list[Fraction], list[int]]] = []
        for first, weights in phases:
            exact = [Fraction(str(weight)) for weight in weights]
            shares = [weight / sum(exact[i:]) for i, weight in enumerate(exact)]
            before = list(taken) or [0] * len(exact)
            counts = self.counts(first) if self._phases else before
            self._phases.append((first, shares, counts))

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> tuple[int, int]:
        before, after = self.counts(index), self.counts(index + 1)
        source = next(i for i, count in enumerate(before) if after[i] > count)
        return source, before[source]

    def counts(self, index: int) -> list[int]:
        """Returns how many rows of each source come before an index."""
        first, shares, counts = self._phase(index)
        left, total = index - first, list(counts)
        for source, share in enumerate(shares):
            taken = left * share.numerator // share.denominator
            total[source] += taken
            left -= taken
        return total

    def _phase(self, index: int) -> tuple[int, list[Fraction], list[int]]:
        return next(phase for phase in reversed(self._phases) if phase[0] <= index)
