import jax
import numpy as np
import pytest
from small_model import quick_jit

from model.moe.grouped_matmul import grouped_matmul

K, D, F = 4, 5, 3


@pytest.mark.parametrize(
    "sizes",
    [(2, 0, 3, 1), (0, 0, 6, 0), (0, 0, 0, 0), (130, 1, 300, 128), (128, 128, 0, 129)],
    ids=str,
)
def test_rows_are_multiplied_by_the_matrix_of_their_group(rng, sizes):
    total = sum(sizes)
    M = total + 7  # what is behind the last group is nobody's
    x = rng.standard_normal((M, D), np.float32)
    slope = rng.standard_normal((M, F), np.float32)
    weights = rng.standard_normal((K, D, F), np.float32)
    slope[total:] = 0

    def product(x, weights, sizes):
        y = grouped_matmul(x, weights, sizes)
        return (y[:total] * slope[:total]).sum(), y

    (dx, dweights), y = quick_jit(jax.grad(product, (0, 1), has_aux=True))(
        x, weights, np.array(sizes, np.int32)
    )
    group = np.repeat(np.arange(K), sizes)
    x, slope, weights = (array.astype(np.float64) for array in (x, slope, weights))
    expected = {
        "y": np.einsum("md,mdf->mf", x[:total], weights[group]),
        "dx": np.einsum("mf,mdf->md", slope[:total], weights[group]),
        "dweights": np.stack(
            [x[:total][group == k].T @ slope[:total][group == k] for k in range(K)]
        ),
    }
    got = {"y": y[:total], "dx": dx[:total], "dweights": dweights}
    for name, array in expected.items():
        # float32 sums of up to 300 products of size one.
        np.testing.assert_allclose(got[name], array, rtol=0, atol=5e-5, err_msg=name)
