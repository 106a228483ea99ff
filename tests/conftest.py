"""Eight virtual devices for every test, strict JAX, and small things that many tests need."""

import os
import sys

import jax
import numpy as np
import pytest
from commands import environment_of_child
from parts import part_of

from configs.run import MeshConfig
from launch.jax_setup import prepare_jax
from sharding.mesh import make_mesh

os.environ.pop("TESSERA_COMMAND", None)  # or messages offer what it says
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or every child compiles every module anew
sys.dont_write_bytecode = False
prepare_jax(virtual_devices=8)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--part", default="1/1", help="K/N: every N-th test, beginning with the K-th")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept, left_out = part_of(items, str(config.getoption("--part")))
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def mesh():
    """All eight devices, 2 x 2 x 2."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        yield mesh


@pytest.fixture
def environment() -> dict[str, str]:
    """What a process of ours needs to run `python -m launch` from any folder."""
    return environment_of_child({"TESSERA_PYTHON": sys.executable})
