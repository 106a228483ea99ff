"""What happens in a run is recorded under names that have a message."""

import ast

from commands import ROOT

from train.record.events import LOGGED, MESSAGES

IN_FULL = {"changed", "environment_changed"}
"""Their messages name what has changed (`launch/reading/event_messages.py`)."""


def recorded_events() -> set[str]:
    """Returns the names that the code gives to add_event and emit."""
    calls = [
        node
        for folder in ("train", "launch")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant)
    ]
    return {
        str(ast.literal_eval(call.args[0]))
        for call in calls
        if ast.unparse(call.func).split(".")[-1] in ("add_event", "emit")
    }


def test_every_event_that_is_recorded_has_a_message_and_every_message_an_event():
    assert recorded_events() == MESSAGES.keys() | IN_FULL
    assert set(LOGGED) <= MESSAGES.keys()
