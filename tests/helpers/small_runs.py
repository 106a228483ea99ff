"""A run so small that a test can afford to start it, kill it and start it again."""

import random
from pathlib import Path

RUN = Path("runs/quickstart-text")
"""Where the run of `tiny_run` is, below the folder it was started in."""
PROMPT = "sheep "
_SETTINGS = """
    --data.path text.txt --data.tokenizer bytes --data.sequence_len 16
    --model.num_layers 2 --model.embed_dim 32 --model.mlp_dim 64
    --model.num_heads 2 --model.num_kv_heads 1 --model.head_dim 16 --model.dropout 0.1
    --optim.num_warmup_steps 0
    --train.num_steps 60 --train.batch_size 8 --train.log_every_steps 1
    --checkpoint.every_steps 5 --eval.every_steps 30 --eval.batch_size 8
    --sample.every_steps 30 --sample.num_tokens 8
"""


def write_text(folder: Path) -> Path:
    """Writes 10 kB of text that a tiny model has something to learn from."""
    path = folder / "text.txt"
    draw = random.Random(0)
    lines = (
        f"{draw.randrange(1000)} sheep crossed the bridge, and then home.\n" for _ in range(225)
    )
    path.write_text("".join(lines))
    return path


def tiny_run(*more: str) -> list[str]:
    """Returns the arguments of `train` for 60 steps on text.txt, with what a test gives instead.

    Dropout is on, so that randomness is in play, and every batch divides over eight devices.
    """
    return ["quickstart", *_SETTINGS.split(), "--sample.prompts", PROMPT, *more]


def has_reached(run: Path, step: int) -> bool:
    """Says whether the log of a run shows a step: metrics.jsonl is only flushed by a save."""
    log = run / "logs" / "process-0.log"
    return log.exists() and f" step {step:>2}/60 " in log.read_text()


def content_of(folder: Path) -> dict[str, bytes]:
    """Returns the bytes of every file below a folder by its name."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
