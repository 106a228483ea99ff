"""What each token depends on, for every kind of model and objective."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_families import KINDS, Kind, batch_of_kind
from small_model import SEQUENCE_LEN, quick_jit, random_params

from data.batch import Batch, EncoderInputs
from model.transformer import Transformer
from train.loss import inputs_of
from train.optimizer import Params
from train.state import shape_of

ENCODED = 60
"""Ids of encoded tokens begin here, beyond those of any row."""
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def distinct(batch: Batch[np.ndarray]) -> Batch[np.ndarray]:
    """Returns the batch with another token in each place, and in each place of encoded texts."""
    batch = batch._replace(tokens_BT=batch.tokens_BT * 0 + np.arange(batch.tokens_BT.shape[1]))
    if batch.encoder is None:
        return batch
    ids = ENCODED + np.arange(batch.encoder.tokens_BS.shape[1])
    return batch._replace(
        encoder=batch.encoder._replace(tokens_BS=0 * batch.encoder.tokens_BS + ids)
    )


def one_row(batch: Batch[np.ndarray], row: int) -> Batch[np.ndarray]:
    return batch.map(lambda array: array[row : row + 1])


def reach_of(kind: Kind):
    """Returns (params, batch of one row) -> which token [V] each place [T] depends on."""

    def sums_T(params: Params, batch: Batch, weights_D) -> jax.Array:
        model = shape_of(kind.model).merge(params)
        return jnp.sum(model(inputs_of(batch))[0] * weights_D[None], axis=-1)

    def run(params: Params, batch: Batch, weights_D) -> jax.Array:
        _, pull = jax.vjp(
            lambda table: sums_T({**params, "embedding": table}, batch, weights_D),
            params["embedding"],
        )
        # One place after the other: the products of experts cannot be made for all at once.
        jacobian_TVD = jax.lax.map(lambda place_T: pull(place_T)[0], jnp.eye(SEQUENCE_LEN))
        return jnp.any(jacobian_TVD != 0, axis=-1)

    return quick_jit(run)


def visible(kind: Kind, batch: Batch[np.ndarray]) -> np.ndarray:
    """Returns which tokens [T, V] the first row depends on, by the definition of each kind."""
    segments_T = batch.segments_BT[0]
    T = len(segments_T)
    seen = np.zeros((T, kind.model.num_padded_tokens), bool)
    for t in range(T):
        for s in range(T):
            ahead = kind.model.architecture == "encoder"
            ahead |= batch.prefix_BT is not None and bool(batch.prefix_BT[0, s])
            seen[t, s] = segments_T[s] == segments_T[t] and (s <= t or ahead)
        if batch.encoder is not None:
            for s, segment in enumerate(batch.encoder.segments_BS[0]):
                seen[t, ENCODED + s] = segment == segments_T[t]
    return seen


@every_kind
def test_a_token_depends_on_exactly_those_it_attends_to(rng, kind):
    params = random_params(kind.model)
    batch = distinct(batch_of_kind(rng, kind.run(), 6))
    rows = [one_row(batch, i) for i in range(6)]
    crowded = max(rows, key=lambda row: len(np.unique(row.segments_BT)))
    assert crowded.segments_BT.max() > 1
    weights_D = rng.standard_normal(kind.model.embed_dim).astype(np.float32)
    reach_TV = np.asarray(reach_of(kind)(params, crowded, weights_D))
    is_token_T = crowded.segments_BT[0] > 0
    np.testing.assert_array_equal(reach_TV[is_token_T], visible(kind, crowded)[is_token_T])


def alone(batch: Batch[np.ndarray], segment: int) -> Batch[np.ndarray]:
    """Returns the first row with one of its segments alone, moved to the beginning."""

    def moved(array: np.ndarray, segments: np.ndarray) -> np.ndarray:
        kept = array[:, segments[0] == segment]
        return np.pad(kept, ((0, 0), (0, array.shape[1] - kept.shape[1])))

    encoder = batch.encoder
    row = batch._replace(encoder=None).map(lambda array: moved(array, batch.segments_BT))
    if encoder is None:
        return row
    return row._replace(
        encoder=EncoderInputs(*(moved(array, encoder.segments_BS) for array in encoder))
    )


@every_kind
def test_a_packed_document_is_computed_as_if_it_were_alone(rng, kind):
    params = random_params(kind.model)
    batch = batch_of_kind(rng, kind.run(), 6)
    row = one_row(batch, int(np.argmax(batch.segments_BT.max(axis=1))))
    segments = [int(s) for s in np.unique(row.segments_BT) if s > 0]
    assert len(segments) > 1
    rows = [row, *(alone(row, segment) for segment in segments)]
    together = jax.tree.map(lambda *arrays: np.concatenate(arrays), *rows)
    hidden = quick_jit(lambda params, batch: shape_of(kind.model).merge(params)(inputs_of(batch)))
    hidden_BTD = np.asarray(hidden(params, together))
    for number, segment in enumerate(segments, 1):
        packed = hidden_BTD[0][row.segments_BT[0] == segment]
        # The same sums in float32, zeros between them.
        np.testing.assert_allclose(
            packed, hidden_BTD[number][: len(packed)], rtol=0, atol=1e-5 * np.abs(packed).max()
        )


def test_multi_token_prediction_depends_on_as_many_more_tokens(rng):
    kind = KINDS["future"]
    params = random_params(kind.model)
    batch = one_row(distinct(batch_of_kind(rng, kind.run(), 1)), 0)
    T = batch.tokens_BT.shape[1]
    batch = batch._replace(segments_BT=np.ones((1, T), np.int32), targets_BT=batch.tokens_BT + 1)

    @quick_jit
    def reach(table):
        def sums(table):
            model = shape_of(kind.model).merge({**params, "embedding": table})
            assert isinstance(model, Transformer)
            inputs = inputs_of(batch)
            next_tokens = [jnp.asarray(batch.targets_BT + k) for k in range(2)]
            hidden = model.run_mtp(model(inputs), inputs, next_tokens)
            return [jnp.sum(x_BTD[0] ** 2, axis=-1) for x_BTD in hidden]

        return [jnp.any(j_TVD != 0, axis=-1) for j_TVD in jax.jacrev(sums)(table)]

    for further, reach_TV in enumerate(reach(params["embedding"]), 1):
        for t in range(T):
            assert np.flatnonzero(reach_TV[t]).tolist() == list(range(t + further + 1))
