"""The arguments of commands that use a saved run: which one, and where its model is put."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from configs.run import MeshConfig
from launch.arguments import RunPath, parse_arguments
from train.record.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class SavedRunArguments:
    """What all of them have."""

    run: RunPath
    """The run folder."""
    step: int | None = None
    """Which checkpoint; None is the newest."""
    mesh: MeshConfig = field(default_factory=lambda: MeshConfig(data=1))
    """Where the model is put. Without any of it that is as the run was trained, where this fits the
    devices here, else cut over all of them; with some of it the rest is as the run was trained."""
    virtual_devices: int | None = None
    """Split the CPU into this many devices, to try a mesh on one machine."""


Arguments = TypeVar("Arguments", bound=SavedRunArguments)


def parse_saved_run(
    kind: type[Arguments], arguments: Sequence[str], *, command: str
) -> tuple[Arguments, MeshConfig | None]:
    """Returns what the words ask for, and the mesh that they name, None where they name none.

    Raises as parse_arguments does, and SettingsError where a mesh is for no run folder.
    """
    parsed = parse_arguments(kind, arguments, command=command)
    if not any(word.startswith("--mesh.") for word in arguments):
        return parsed, None
    default = dataclasses.replace(parsed, mesh=RunFolder(parsed.run).read_config().mesh)
    parsed = parse_arguments(kind, arguments, command=command, default=default)
    return parsed, parsed.mesh
