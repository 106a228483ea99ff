"""Arguments of the commands that use a saved run: which run, and on which mesh."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from configs.run import MeshConfig
from launch.arguments import parse_arguments
from train.record.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class SavedRunArguments:
    """The arguments that all of them have."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder."""
    step: int | None = None
    """Which checkpoint; None is the newest."""
    mesh: MeshConfig = field(default_factory=lambda: MeshConfig(data=1))
    """The mesh of the model. If none is given, that of the run where it fits the devices here, else
    fully sharded over all of them; axes that are not given are as in the run."""
    virtual_devices: int | None = None
    """Split the CPU into this many devices, to try a mesh on one machine."""


Arguments = TypeVar("Arguments", bound=SavedRunArguments)


def parse_saved_run(
    kind: type[Arguments], arguments: Sequence[str], *, command: str
) -> tuple[Arguments, MeshConfig | None]:
    """Returns the parsed arguments, and the mesh they name, None if they name none.

    Raises as parse_arguments does, and SettingsError if a mesh is given without a run folder.
    """
    own = [each.name for each in dataclasses.fields(kind) if each.name != "mesh"]
    of_mesh = [f"mesh.{each.name}" for each in dataclasses.fields(MeshConfig)]
    names = [f"--{name}" for name in (*own, *of_mesh)]
    parsed = parse_arguments(kind, arguments, command=command, names=names)
    if not any(word.startswith("--mesh.") for word in arguments):
        return parsed, None
    default = dataclasses.replace(parsed, mesh=RunFolder(parsed.run).read_config().mesh)
    parsed = parse_arguments(kind, arguments, command=command, default=default, names=names)
    return parsed, parsed.mesh
