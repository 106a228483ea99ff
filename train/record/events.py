"""The events of a run (events.jsonl), declared once: their messages and which are issues."""

ISSUES = {
    "nonfinite_step": "step {step} is not finite: loss {loss}, gradient norm {grad_norm}; "
    "its update was not applied; its batch: {rows}",
    "rolled_back": "rolled back from step {step} to step {to_step}, skipping {rows}: {cause}",
    "save_failed": "the checkpoint of step {step} could not be saved: {cause}",
    "copy_failed": "the checkpoint of step {step} could not be copied: {cause}",
    "not_removed": "after step {step} was saved, an older checkpoint could not be removed: {cause}",
    "quarantined": "the checkpoint of step {step} is damaged and was moved to {path}: {cause}",
    "hung": "{phase} took {seconds} s, more than the limit of {limit_sec} s; stack traces are in "
    "{stacks}",
    "corrupted": "step {step}, computed twice, gave two results: devices {devices}, arrays "
    "{arrays}",
    "failed": "ended with exit code {exit_code}",
    "slow_process": "process {process} slows down the others: {cause}",
    "clock_set_back": "the system clock was set back by {seconds} s",
    "restarted": "restarted {wait_sec} s after exit code {exit_code} "
    "(restart {restarts} since the newest checkpoint)",
}
"""{kind: message with the details of the event} of what a person should look into."""

MESSAGES = ISSUES | {
    "started": "process started: {command}",
    "resumed": "resumed from the checkpoint of step {step}",
    "compiled": "compiled the training step in {compile_sec} s",
    "branched": "initialized from {run}, step {step}; with its optimizer state: {with_optimizer}",
    "imported": "imported the model in {source}",
    "data_changed": "the data order changes after step {step} ({settings}): it continues from "
    "sequence {first_row}; tokens of the unfinished epoch that were not read: {unseen_tokens}",
    "saved": "saved the checkpoint of step {step}: {bytes} bytes; training paused for {stall_sec} "
    "s",
    "copied": "copied the checkpoint of step {step} to {url}",
    "fetched": "fetched the checkpoint of step {step} from {url}",
    "stopped": "stopped at step {step} by {cause}",
    "finished": "finished at step {step}; SHA-256 of the parameters: {params_sha256}",
}
"""The same of all kinds but `changed` and `environment_changed`, which name what has changed."""

LOGGED = ("save_failed", "copy_failed", "not_removed", "quarantined", "slow_process")
"""Kinds that are also logged as warnings where they occur."""
