"""Arguments of the commands that use a saved run: which run, and on which mesh."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from configs.run import MeshConfig
from launch.arguments import RunPath, parse_arguments
from train.record.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class SavedRunArguments:
    """The arguments that all of them have."""

    run: RunPath
    """The run folder."""
    step: int | None = None
    """Step of the checkpoint; None is the newest."""
    mesh: MeshConfig = field(default_factory=lambda: MeshConfig(data=1))
    """The layout of the model. Without these flags it is that of the run where that fits the
    devices here, else fully sharded; with some of them the others are those of the run."""
    virtual_devices: int | None = None
    """Split the CPU into this many devices, to try a mesh on one machine."""


Arguments = TypeVar("Arguments", bound=SavedRunArguments)


def parse_saved_run(
    kind: type[Arguments], arguments: Sequence[str], *, command: str
) -> tuple[Arguments, MeshConfig | None]:
    """Returns the parsed arguments, and the mesh they name, None if they name none.

    Raises as parse_arguments does, and SettingsError if a mesh is given without a run folder.
    """
    parsed = parse_arguments(kind, arguments, command=command)
    if not any(word.startswith("--mesh.") for word in arguments):
        return parsed, None
    default = dataclasses.replace(parsed, mesh=RunFolder(parsed.run).read_config().mesh)
    parsed = parse_arguments(kind, arguments, command=command, default=default)
    return parsed, parsed.mesh
