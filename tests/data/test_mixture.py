"""Mixtures: which source each row is from, and that nothing but the settings decides it."""

import hashlib
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_data import (
    assert_same_batch,
    batches_of,
    data_config,
    item,
    open_quietly,
    sequence_of,
    steps_of,
)
from small_model import cross_entropy, mesh_of, quick_jit, random_params, small_model

from configs.data import DataConfig
from configs.errors import SettingsError
from data.batch import Batch
from data.batches import batch_digest
from data.mixture import Data, MixtureSchedule
from data.prepare import validation_split
from data.prepare.plan import Plan
from train.loss import inputs_of
from train.state import shape_of

LENGTHS = {"web": 4000, "code": 1500, "wiki": 700}
"""Characters of each source."""


def write_sources(folder: Path) -> tuple[str, ...]:
    """Writes three sources of many documents each, of which every token can be told apart."""
    folder.mkdir(exist_ok=True)
    draw = np.random.default_rng(0)
    first = 0x4E00
    for name, length in LENGTHS.items():
        text = "".join(map(chr, range(first, first + length)))
        first += length
        cuts = np.sort(draw.choice(length, length // 40, replace=False)).tolist()
        lines = [text[a:b] for a, b in zip([0, *cuts], [*cuts, length], strict=True)]
        content = "".join(json.dumps({"text": line}) + "\n" for line in lines if line)
        (folder / f"{name}.jsonl").write_text(content)
    return tuple(f"{name}={folder / name}.jsonl" for name in LENGTHS)


def mixed(mixture: tuple[str, ...], **changes) -> DataConfig:
    settings = {"tokenizer": "characters", "sequence_len": 16, "packing": "best_fit", **changes}
    return data_config(mixture=mixture, **settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("mixture")


@pytest.fixture(scope="module")
def mixture(folder) -> tuple[str, ...]:
    return write_sources(folder / "texts")


@pytest.fixture(scope="module")
def data(folder, mixture) -> Data:
    """Split as before whole documents validated, so that the golden is that of the same tokens."""

    def at_one_place(plan: Plan, tails: list[int], *cut: Any) -> Iterator[np.ndarray]:
        return validation_split._split_at_end(plan, len(tails), *cut)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(validation_split, "_split_by_digest", at_one_place)
        return open_quietly(mixed(mixture), folder / "cache")


WEIGHTS = {"weights": (5.0, 3.0, 2.0), "phases": ("100:1,1,8", "150:2,1,1")}


READ = """
import json, os, sys
from pathlib import Path
import numpy as np
from configs.data import DataConfig
sys.path.append(os.path.join(os.environ['PYTHONPATH'], 'tests/helpers'))
from small_data import batches_of
from data.open_data import open_data

mixture, cache, settings, jobs = json.loads(sys.argv[1])
settings = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
config = DataConfig(mixture=tuple(mixture), **settings)

def read(rows, steps, out):
    data = open_data(config, Path(cache), lambda line: None)
    batches = batches_of(
        data, config, batch_size=16, seed=5, rows=rows, passed_over=(3, 4, 90, 120)
    )
    np.savez(out, *(np.stack(field) for field in zip(*(batches[step] for step in range(*steps)))))

for job in jobs:
    if os.fork() == 0:  # a process each, and the imports paid once
        read(*job)
        os._exit(0)
sys.exit(any([os.wait()[1] for _ in jobs]))
"""
HOSTS = {
    "1": [(1, (0, 200))],
    "2": [(2, (0, 200))],
    "4": [(4, (0, 200))],
    "8": [(8, (0, 200))],
    "8, then 2, then 4": [(8, (0, 70)), (2, (70, 131)), (4, (131, 200))],
}


def test_200_global_batches_are_the_same_on_any_number_of_hosts(
    folder, mixture, data, tmp_path, environment
):
    config = mixed(mixture, **WEIGHTS)
    jobs = [
        (list(range(16))[host::num_hosts], steps, str(tmp_path / f"{i}-{stage}-{host}.npz"))
        for i, stages in enumerate(HOSTS.values())
        for stage, (num_hosts, steps) in enumerate(stages)
        for host in range(num_hosts)
    ]
    changes = {"tokenizer": "characters", "sequence_len": 16, "packing": "best_fit", **WEIGHTS}
    said = json.dumps([mixture, str(folder / "cache"), changes, jobs])
    subprocess.run([sys.executable, "-c", READ, said], env=environment, check=True, timeout=300)
    batches = batches_of(data, config, batch_size=16, seed=5, passed_over=(3, 4, 90, 120))
    wanted = [batch_digest(item(batches, step)) for step in range(200)]
    for i, stages in enumerate(HOSTS.values()):
        found = [np.full((200, 16, 16), -1, d) for d in ("<i4", "<i4", "<f4", "<i4", "<i4")]
        for stage, (num_hosts, steps) in enumerate(stages):
            for host in range(num_hosts):
                with np.load(tmp_path / f"{i}-{stage}-{host}.npz") as read:
                    for n, field in enumerate(found):
                        field[slice(*steps), host::num_hosts] = read[f"arr_{n}"]
        digests = [batch_digest(Batch(*(field[step] for field in found))) for step in range(200)]
        assert digests == wanted, f"hosts: {list(HOSTS)[i]}"


# What decides it is Grain's permutation, our schedule and our packing; as in test_batches, a run
# that is continued must see what it would have seen.
GOLDEN = "3be270ee2206"


def test_the_batches_of_a_mixture_are_the_golden_ones(data, mixture):
    batches = batches_of(data, mixed(mixture, **WEIGHTS), batch_size=16, seed=5)
    digests = "".join(batch_digest(item(batches, step)) for step in (0, 99, 100, 160, 10**6))
    assert hashlib.sha256(digests.encode()).hexdigest()[:12] == GOLDEN


def test_step_a_million_takes_under_a_second(data, mixture):
    passed_over = tuple(range(0, 1000, 7))
    batches = batches_of(
        data, mixed(mixture, **WEIGHTS), batch_size=16, seed=5, passed_over=passed_over
    )
    started = time.process_time()
    item(batches, 10**6)
    assert time.process_time() - started < 1, "it is promised; it takes a few milliseconds"


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_without_weights_an_epoch_is_every_token_of_every_source_once(data, mixture, packing):
    config = mixed(mixture, packing=packing)
    sequence = sequence_of(data, config, batch_size=16, seed=5)
    num_rows = sum(map(len, sequence.rows))
    for epoch in range(2):
        places = range(epoch * num_rows, (epoch + 1) * num_rows)
        targets = [
            t for place in places for ids in sequence.read(place).spans for t in ids[1:].tolist()
        ]
        separator = data.tokenizer.separator
        texts = [
            source.store.train.read(1, source.store.train.num_tokens).tolist()
            for source in data.sources
        ]
        assert Counter(targets) == Counter(t for text in texts for t in text)
        assert targets.count(separator) == sum(s.store.train.num_documents for s in data.sources)


def test_each_source_has_its_share_of_every_stretch_of_rows():
    weights = (0.5, 0.3, 0.15, 0.05)
    schedule = MixtureSchedule([(0, weights)])
    for start, length in ((0, 100), (17, 1000), (10**9, 20), (2**50, 5000)):
        taken = Counter(schedule[place][0] for place in range(start, start + length))
        for source, weight in enumerate(weights):
            assert abs(taken[source] - weight * length) <= source + 1


def test_a_source_gives_its_rows_in_its_own_order_without_a_gap():
    schedule = MixtureSchedule([(0, (3, 2)), (50, (1, 9)), (77, (0.5, 0.25))])
    nths: dict[int, list[int]] = {0: [], 1: []}
    for place in range(300):
        source, nth = schedule[place]
        assert schedule.counts(place)[source] == nth
        nths[source].append(nth)
    assert nths == {0: list(range(len(nths[0]))), 1: list(range(len(nths[1])))}


def test_a_phase_changes_the_shares_from_its_step_on_and_nothing_before(data, mixture):
    before = sequence_of(data, mixed(mixture, weights=(1, 1, 2)), batch_size=16, seed=5)
    phased = mixed(mixture, weights=(1, 1, 2), phases=("10:8,1,1",))
    after = sequence_of(data, phased, batch_size=16, seed=5)
    assert [before.address(p) for p in range(144)] == [after.address(p) for p in range(144)]
    shares = Counter(after.address(place).source for place in range(144, 144 + 1000))
    assert [abs(shares[source] / 1000 - w / 10) < 0.005 for source, w in enumerate((8, 1, 1))]


def test_a_source_is_gone_through_again_when_it_is_used_up(data, mixture):
    sequence = sequence_of(data, mixed(mixture, weights=(1, 1, 8)), batch_size=16, seed=5)
    num_rows = len(sequence.rows[2])
    addresses = [sequence.address(place) for place in range(3000)]
    wiki = [address for address in addresses if address.source == 2]
    epochs = Counter(address.epoch for address in wiki)
    assert epochs[0] == epochs[1] == num_rows
    for epoch in (0, 1):
        assert sorted(a.row for a in wiki if a.epoch == epoch) == list(range(num_rows))


def test_an_address_is_where_the_row_is_read(data, mixture):
    sequence = sequence_of(data, mixed(mixture, **WEIGHTS), batch_size=16, seed=5)
    for place in (0, 5, 1600, 2401, 99_999):
        address = sequence.address(place)
        for found, wanted in zip(
            sequence.read(place).spans, sequence.rows[address.source].read(address.row), strict=True
        ):
            np.testing.assert_array_equal(found, wanted)


def test_documents_of_a_batch_do_not_share_a_segment(data, mixture):
    batch = item(batches_of(data, mixed(mixture), batch_size=16, seed=0), 3)
    separator = data.tokenizer.separator
    for tokens, segments in zip(batch.tokens_BT, batch.segments_BT, strict=True):
        for segment in range(1, segments.max() + 1):
            inside = tokens[segments == segment]
            assert separator not in inside[1:]


def test_a_mixture_of_one_source_is_the_source_itself(folder, mixture):
    config = mixed(mixture[:1])
    alone = data_config(mixture[0].split("=")[1], tokenizer="characters", sequence_len=16)
    mixed_data = open_quietly(config, folder / "one")
    plain = open_quietly(alone, folder / "one")
    assert mixed_data.digest == plain.digest
    kind = {"sequence_len": 16, "tokenizer": "characters"}
    assert_same_batch(
        item(batches_of(mixed_data, data_config(**kind), batch_size=4, seed=1), 7),
        item(batches_of(plain, data_config(**kind), batch_size=4, seed=1), 7),
    )


def test_sources_with_two_tokenizers_are_refused(folder, mixture):
    paths = [entry.split("=")[1] for entry in mixture]
    stores = [
        open_quietly(data_config(path, tokenizer=kind), folder / "two").sources[0].store
        for path, kind in zip(paths, ("characters", "bytes"), strict=False)
    ]
    entries = tuple(f"{name}={store.folder}" for name, store in zip("ab", stores, strict=True))
    with pytest.raises(SettingsError) as refused:
        open_quietly(mixed(entries), folder / "two")
    for part in ("data.mixture", "one tokenizer", "characters", "bytes", "--data.tokenizer"):
        assert part in str(refused.value)


def test_shares_are_of_whole_steps(mixture):
    config = mixed(mixture, weights=(1, 1, 2), phases=("10:8,1,1",))
    schedule = MixtureSchedule(steps_of(config, batch_size=6, seed=0).phases)
    assert schedule.counts(52) == [13, 13, 26]
    first, second = schedule.counts(54), schedule.counts(54 + 100)
    assert [b - a for a, b in zip(first, second, strict=True)] == [80, 10, 10]


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_a_document_of_a_batch_gets_no_gradient_from_another(data, mixture, packing):
    # All characters of the sources differ, so the row of the embedding that a token has is its own.
    config = mixed(mixture, packing=packing, sequence_len=128)
    host_batch = item(batches_of(data, config, batch_size=4, seed=0), 2)
    batch = host_batch.map(jnp.asarray)
    vocab_size, separator = data.tokenizer.vocab_size, data.tokenizer.separator
    model = small_model(vocab_size=vocab_size, tied_embeddings=False, num_kv_heads=4)
    params, shape = random_params(model), shape_of(model)

    def loss_of(params, weights_BT):
        decoder = shape.merge(params)
        hidden_BTD = decoder(inputs_of(batch))
        return cross_entropy(decoder.logits(hidden_BTD), batch._replace(weights_BT=weights_BT))

    gradient = quick_jit(jax.grad(loss_of))
    num_documents = 0
    for row in range(4):
        for segment in range(1, host_batch.segments_BT[row].max() + 1):
            mine_BT = np.zeros_like(host_batch.weights_BT)
            mine_BT[row] = host_batch.segments_BT[row] == segment
            with jax.set_mesh(mesh_of()):
                grads = gradient(params, mine_BT * host_batch.weights_BT)
            reached = np.flatnonzero(np.abs(np.asarray(grads["embedding"])).sum(axis=1))
            inside = set(host_batch.tokens_BT[mine_BT > 0].tolist())
            assert set(reached.tolist()) - {separator} == inside - {separator}
            num_documents += 1
    assert num_documents > 8, "the batch must have rows of several documents"
