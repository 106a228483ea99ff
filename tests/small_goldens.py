"""The models that `transformers` wrote, each in a folder with its outputs for two texts."""

import pytest
from conftest import ROOT

GOLDENS = sorted(path.parent for path in (ROOT / "tests" / "huggingface").glob("*/golden.npz"))
LLAMA = ROOT / "tests" / "huggingface" / "llama"
by_golden = pytest.mark.parametrize("folder", GOLDENS, ids=lambda folder: folder.name)
