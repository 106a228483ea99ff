"""Settings of the training objective."""

from dataclasses import dataclass
from typing import Annotated, Literal

from configs.require import CountOrNone, ProperShare, Share, at_least, require

Objective = Literal["causal", "prefix", "infill", "masked", "masked_pairs", "span", "ul2", "mixed"]
NUM_SENTINELS = 100
"""Tokens that stand for spans; a row has no more spans than that."""
SPECIAL_OF = {
    "infill": "infill",
    "masked": "masked",
    "masked_pairs": "masked",
    "span": "span",
    "ul2": "span",
}
"""The special tokens that objectives need."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The training objective: which tokens are inputs and which are targets."""

    objective: Objective = "causal"
    """causal: the next token (GPT); prefix: causal with a prefix that is attended to in both
    directions (prefix LM); infill: fill-in-the-middle (FIM); masked: masked language modeling
    (BERT); masked_pairs: the same with pairs of texts for next-sentence prediction (NSP); span:
    span corruption (T5); ul2: UL2's mixture of denoisers; mixed: objective_mixture."""
    objective_mixture: tuple[str, ...] = ()
    """NAME=WEIGHT of each objective, sampled per sequence; only with objective=mixed."""
    target_len: CountOrNone = None
    """Tokens of the decoder's sequence in an encoder-decoder, whose encoder has sequence_len; for
    prefix, span and ul2. None puts inputs and targets into one sequence."""
    mask_rate: ProperShare = 0.15
    """Fraction of tokens that are predicted; of these 80 % become [MASK], 10 % a random token and
    10 % stay (masked; BERT's recipe)."""
    whole_words: bool = False
    """Whole-word masking: all pieces of a word are masked together (masked)."""
    span_density: ProperShare = 0.15
    """Fraction of tokens that are corrupted (span; T5's 15 %)."""
    span_len: Annotated[float, at_least(1)] = 3.0
    """Mean length of a corrupted span, in tokens (span; T5's 3)."""
    infill_rate: Share = 0.5
    """Fraction of documents that are rearranged for FIM, half of them suffix first (infill)."""

    def check_objective(self) -> None:
        """Raises SettingsError where settings of objectives cannot be or do not fit each other."""
        require(
            bool(self.objective_mixture) == (self.objective == "mixed"),
            f"data.objective_mixture={' '.join(self.objective_mixture) or None} must name some "
            f"with data.objective=mixed and none otherwise, but data.objective={self.objective}",
        )
        kinds = [name for name, _ in self.objectives()]
        others = sorted({*kinds} - {"prefix", "span", "ul2"})
        require(
            self.target_len is None or not others,
            f"data.target_len={self.target_len} must be None with data.objective="
            f"{' '.join(others)}, which has one text",
        )
        masked = [kind for kind in kinds if kind.startswith("masked")]
        require(
            not masked or len(masked) == len(kinds),
            f"data.objective_mixture={' '.join(self.objective_mixture)} must not mix "
            f"{' '.join(masked)} with objectives of decoders",
        )

    def objectives(self) -> list[tuple[str, float]]:
        """Returns (name, weight) of each objective that rows have.

        Raises:
            SettingsError: an entry of the mixture cannot be read.
        """
        if self.objective != "mixed":
            return [(self.objective, 1.0)]
        found = []
        for entry in self.objective_mixture:
            name, _, weight = entry.partition("=")
            names = ("causal", "prefix", "infill", "masked", "masked_pairs", "span", "ul2")
            require(
                name in names and weight.replace(".", "", 1).isdigit() and float(weight) > 0,
                f"data.objective_mixture={entry} must be NAME=WEIGHT, the name one of "
                f"{', '.join(names)}, the weight above zero",
            )
            found.append((name, float(weight)))
        return found

    @property
    def special_groups(self) -> list[str]:
        """The groups of special tokens that the objectives need."""
        return sorted({SPECIAL_OF[name] for name, _ in self.objectives() if name in SPECIAL_OF})
