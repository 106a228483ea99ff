"""Bad input: a short plain message, exit code 2, and nothing is half written."""

import re
from pathlib import Path

import pytest
from commands import call
from small_runs import content_of, tiny_run, write_text

from launch.train_settings import parse
from train.record.run_folder import RunFolder

RUN_FILES = ("config.json", "events.jsonl", "metrics.jsonl", ".lock")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a good text and several bad ones."""
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "small.txt").write_text("a")
    (tmp_path / "latin.txt").write_bytes("un café, s'il vous plaît\n".encode("latin-1") * 100)
    (tmp_path / "text.docx").write_text("a,b\n")
    (tmp_path / "bad.jsonl").write_text('{"body": "a text"}\n' * 50)
    (tmp_path / "bad.model").write_text("not a model")
    (tmp_path / "no_texts").mkdir()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("precious")
    return tmp_path


def assert_refused(arguments: list[str], *said: str) -> None:
    """Fails unless the command ends with 2 and few words, `said` among them, and starts no run."""
    before = content_of(Path())
    code, output = call(*arguments)
    assert code == 2, output
    assert len(output.splitlines()) < 12, output
    assert "Traceback" not in output
    words = " ".join(re.sub(r"[─-╿]|-{9,}", " ", output).split())  # without tyro's boxes
    for part in said:
        assert part in words, f"{part!r} is not in: {words}"
    after = content_of(Path())
    assert {name: after[name] for name in before} == before
    begun = [name for name in set(after) - set(before) if Path(name).name in RUN_FILES]
    assert not begun


def refuse_train(settings: str, *said: str) -> None:
    assert_refused(["train", *tiny_run(*settings.split())], *said)


def test_an_unknown_command_is_answered_with_the_nearest():
    assert_refused(["trian", "quickstart"], "trian", "did you mean train?", "generate")


def test_an_unknown_preset_is_answered_with_the_nearest():
    assert_refused(["train", "quikstart"], "quikstart", "did you mean quickstart?", "llama_1b")


@pytest.mark.parametrize(
    ("field", "nearest"),
    [
        ("--model.num_layer", "did you mean --model.num-layers?"),
        ("--train.num-step", "did you mean --train.num-steps?"),
        ("--train.steps", "--train.num-steps"),
        ("--steps", "-steps"),
        ("--run_dirr", "did you mean --run-dir?"),
    ],
)
def test_an_unknown_field_is_answered_with_the_nearest(field: str, nearest: str):
    refuse_train(f"{field} 3", field, nearest)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("--model.num_heads many", ("--model.num-heads", "many", "integer")),
        ("--optim.peak_lr fast", ("--optim.peak-lr", "fast", "number")),
        ("--model.norm rmss", ("--model.norm", "rmss", "rms", "layer")),
        ("--mesh.data all", ("--mesh.data", "all", "rest")),
        ("--sample.top_k many", ("--sample.top-k", "many", "INT")),
        ("--checkpoint.every_steps None", ("--checkpoint.every-steps", "None", "integer")),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(settings: str, said: tuple[str, ...]):
    refuse_train(settings, *said)


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        (["eval", "runs/a", "--mesh.fsd", "2"], "--mesh.fsdp"),
        (["prepare", "--data.tokeniser", "bytes"], "--data.tokenizer"),
    ],
)
def test_an_unknown_field_in_a_group_of_any_command_is_answered_with_the_nearest(
    arguments: list[str], nearest: str
):
    assert_refused(arguments, f"did you mean {nearest}?")


def test_a_setting_that_was_replaced_is_refused_with_the_new_name():
    refuse_train("--guard.save_limit_sec 3", "an earlier version", "--guard.hang-limit-sec")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("--optim.peak_lr -1", ("optim.peak_lr=-1.0", "above zero")),
        ("--model.dropout 1", ("model.dropout=1.0", "below 1")),
        ("--train.num_steps 0", ("train.num_steps=0", "at least 1")),
        ("--train.seed -1", ("train.seed=-1", "at least 0")),
        ("--data.validation_fraction 1", ("data.validation_fraction=1.0", "below 1")),
        ("--data.tokenizer words", ("data.tokenizer=words", "sentencepiece, bytes, characters")),
        (
            "--optim.num_warmup_steps 61",
            ("optim.num_warmup_steps=61", "train.num_steps=60"),
        ),
        (
            "--optim.schedule wsd",
            ("optim.num_decay_steps=None", "optim.schedule=wsd"),
        ),
        ("--virtual-devices 0", ("--virtual-devices=0", "at least 1")),
    ],
)
def test_a_value_out_of_range_is_refused(settings: str, said: tuple[str, ...]):
    refuse_train(settings, *said)


def test_heads_that_do_not_divide_are_refused():
    settings = "--model.num_heads 3 --model.num_kv_heads 2"
    refuse_train(settings, "model.num_heads=3", "multiple of", "model.num_kv_heads=2")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            "--train.batch_size 12",
            ("train.batch_size=12", "multiple of 8", "mesh.data=8"),
        ),
        (
            "--train.batch_size 16 --train.num_microbatches 4",
            ("train.batch_size=16", "multiple of 32", "mesh.data=8", "train.num_microbatches=4"),
        ),
        (
            "--train.batch_size 16 --train.num_microbatches 3",
            ("train.batch_size=16", "multiple of", "train.num_microbatches=3"),
        ),
        (
            "--eval.batch_size 4 --mesh.fsdp 2",
            ("eval.batch_size=4", "multiple of 8", "mesh.data=4", "mesh.fsdp=2"),
        ),
    ],
)
def test_a_batch_that_does_not_divide_is_refused(settings: str, said: tuple[str, ...]):
    refuse_train(settings, *said)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("--mesh.data 3", ("mesh.data=3", "8 devices", "--virtual-devices")),
        ("--mesh.fsdp 5", ("mesh.fsdp=5", "8 devices", "--virtual-devices")),
        ("--mesh.data 2 --mesh.fsdp 2", ("mesh.data=2", "mesh.fsdp=2", "8 devices")),
        ("--mesh.fsdp rest", ("mesh.data", "mesh.fsdp", "rest")),
        ("--mesh.tensor 4", ("model.num_heads=2", "mesh.tensor=4", "may be 1, 2")),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(settings: str, said: tuple[str, ...]):
    refuse_train(settings, *said)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("--data.path nowhere.txt", ("data.path=nowhere.txt", "does not exist")),
        ("--data.path empty.txt", ("data.path=empty.txt", "not empty")),
        ("--data.path small.txt", ("data.path=small.txt", "data.validation-fraction")),
        ("--data.path latin.txt", ("latin.txt", "0xe9", "--data.invalid-utf8 replace")),
        ("--data.path text.docx", ("data.path=text.docx", ".txt", ".jsonl")),
        ("--data.path no_texts", ("data.path=no_texts", ".txt", ".jsonl")),
        ("--data.path bad.jsonl", ("data.text_field=text", "body", "line 1")),
        ("--data.tokenizer no.model", ("data.tokenizer=no.model", "must be a file")),
        ("--data.tokenizer bad.model", ("data.tokenizer=bad.model", "SentencePiece model")),
        (
            "--data.tokenizer sentencepiece --data.vocab_size 100000",
            ("data.vocab_size=100000", "--data.tokenizer bytes"),
        ),
        (
            "--model.vocab_size 200",
            ("model.vocab_size=200", "257", "data.tokenizer=bytes", "--model.vocab-size tokenizer"),
        ),
        (
            "--model.position learned --model.num_positions 8",
            ("data.sequence_len=16", "at most", "model.num_positions=8"),
        ),
    ],
)
def test_a_text_or_tokenizer_that_cannot_be_used_is_refused(settings: str, said: tuple[str, ...]):
    refuse_train(settings, *said)


def test_a_preset_without_a_text_asks_for_one():
    said = ("data.path=None", "--data.path", ".txt", "stdlib")
    assert_refused(["train", "shakespeare_cpu", "--train.batch_size", "16"], *said)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("--train.seed 1", ("train.seed", "has 0", "now 1", "--allow-changes", "--run-dir")),
        ("--model.num_layers 4", ("model.num_layers", "has 2", "now 4", "--run-dir")),
        ("--model.num_layers 4 --allow-changes", ("model.num_layers", "--run-dir")),
        (
            "--train.seed 1 --model.dropout 0 --optim.b1 0.8 --optim.b2 0.8 --optim.epsilon 1 "
            "--optim.peak_lr 1 --train.num_steps 61 --optim.weight_decay 0",
            ("--allow-changes", "2 more"),
        ),
    ],
)
def test_a_run_made_with_other_settings_is_refused(settings: str, said: tuple[str, ...]):
    _, parsed = parse(tiny_run("--model.vocab_size", "257"))
    run = RunFolder(Path("runs/quickstart-text"))
    run.path.mkdir(parents=True)
    run.begin(parsed.config, {})
    run.add_event("started")
    refuse_train(settings, "runs/quickstart-text", *said)


@pytest.mark.parametrize(
    ("run_dir", "said"), [("thesis", "chapter1.tex"), ("text.txt", "text.txt")]
)
def test_a_run_dir_that_is_no_run_folder_is_refused(run_dir: str, said: str):
    refuse_train(f"--run-dir {run_dir}", "--run-dir", run_dir, said)


@pytest.mark.parametrize("command", ["status", "eval", "generate"])
@pytest.mark.parametrize("folder_", ["thesis", "nowhere"])
def test_a_command_on_a_folder_that_is_no_run_is_refused(command: str, folder_: str):
    assert_refused([command, folder_], folder_, "not a run folder", "runs/quickstart")


@pytest.mark.parametrize("command", ["eval", "generate"])
def test_a_command_on_a_run_without_a_checkpoint_is_refused(command: str, folder: Path):
    _, parsed = parse(tiny_run())
    run = RunFolder(folder / "run")
    run.path.mkdir()
    run.begin(parsed.config, {})
    assert_refused([command, "run"], "run has no checkpoint")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"train.num_steps": 3}', '{"a.b.c": 1}'])
def test_a_config_that_cannot_be_read_is_refused(content: str, folder: Path):
    (folder / "run").mkdir()
    (folder / "run" / "config.json").write_text(content)
    assert_refused(["status", "run"], "run/config.json", "cannot be read")
    refuse_train("--run-dir run", "run/config.json", "cannot be read")


def test_a_run_with_another_text_is_refused_and_stays_as_it_was(tmp_path: Path):
    arguments = ["train", *tiny_run("--train.num_steps", "2", "--run-dir", "run")]
    assert call(*arguments)[0] == 0
    (Path("text.txt")).write_text("another text " * 100)
    assert_refused(arguments, "data.path=", "another text", "--run-dir")
