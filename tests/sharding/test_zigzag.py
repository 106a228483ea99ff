"""The zigzag order of a row's columns."""

import jax
import numpy as np
import pytest
from small_model import mesh_of, small_batch

from sharding.zigzag import along_context, zigzag_order


def test_a_part_holds_a_chunk_from_the_front_and_one_from_the_back():
    assert zigzag_order(8, 2).tolist() == [0, 1, 6, 7, 2, 3, 4, 5]


@pytest.mark.parametrize("num_parts", [1, 2, 4, 8])
def test_every_part_has_the_same_causal_work(num_parts):
    places = zigzag_order(64, num_parts).reshape(num_parts, -1)
    assert sorted(places.ravel()) == list(range(64))
    keys_seen = (places + 1).sum(axis=1)
    assert len(set(keys_seen)) == 1


def test_columns_stay_together_and_are_as_they_were_without_a_cut(rng):
    batch = small_batch(rng, 8)
    with jax.set_mesh(mesh_of(context=4)):
        arranged, places_T = jax.jit(along_context)(batch)
    assert places_T is not None
    for before, after in zip(*map(jax.tree.leaves, (batch, arranged)), strict=True):
        np.testing.assert_array_equal(after, before[:, np.asarray(places_T)])
    with jax.set_mesh(mesh_of(data=4)):
        same, places_T = along_context(batch)
    assert same is batch
    assert places_T is None
