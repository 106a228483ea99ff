"""Which module a model's settings describe."""

from flax import nnx

from configs.model import ModelConfig
from model.language_model import LanguageModel
from model.recurrent import Recurrent
from model.transformer import Transformer
from sharding.pipeline import Pipeline


def build_model(
    config: ModelConfig, pipeline: Pipeline | None = None, *, rngs: nnx.Rngs
) -> LanguageModel:
    """Returns the model with new parameters, its layers in the order of pipeline.layer_order."""
    kind = Recurrent if config.is_recurrent else Transformer
    return kind(config, pipeline, rngs=rngs)
