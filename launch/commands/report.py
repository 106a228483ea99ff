"""`./tessera report RUN`: writes one page about a run, which may be running."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.errors import SettingsError
from configs.require import require
from data.atomic_files import atomic_write
from launch.arguments import RunPath, parse_arguments
from launch.pages.run_page import run_page
from launch.printable import visible
from launch.reading.run_report import RunReport, read_report
from train.record.run_folder import RunFolder

_PAGE = "report.html"


@dataclass(frozen=True, kw_only=True)
class ReportArguments:
    """Writes a page about a run: curves, time, events, samples, settings."""

    run: RunPath
    """The run folder."""
    out: Path | None = None
    """The page; None writes RUN/report.html."""
    json: bool = False
    """Print nothing but one JSON object, on one line."""


def main(arguments: Sequence[str]) -> int:
    parsed = parse_arguments(ReportArguments, arguments, command="./tessera report")
    folder = RunFolder(parsed.run)
    report = read_report(folder)
    page = write_page(report, folder, parsed.out)
    if parsed.json:
        print(json.dumps({**report.to_json(), "page": str(page)}))
        return 0
    goodput = "" if report.goodput is None else f", goodput {report.goodput:.1%}"
    status = report.status
    steps = f"{status['step']:,} of {status['num_steps']:,} steps"
    print(f"wrote {visible(str(page))}: {status['state']}, {steps}{goodput}")
    return 0


def write_page(report: RunReport, folder: RunFolder, out: Path | None) -> Path:
    """Writes the page, whole or not at all, and returns where it is.

    Raises:
        SettingsError: it cannot be written there, or would overwrite a file of the run.
    """
    page = folder.path / _PAGE if out is None else out.expanduser()
    run = folder.path.resolve()
    require(
        page.resolve() == run / _PAGE or run not in page.resolve().parents,
        f"--out={page} is in the run folder, where only {_PAGE} may be written; give a file "
        "elsewhere, or omit --out",
    )
    content = run_page(report)
    try:
        with atomic_write(page) as temporary:
            temporary.write_text(content, encoding="utf-8")
    except OSError as error:
        way_out = "give --out FILE" if out is None else "give a file in a folder that exists"
        raise SettingsError(
            f"{'--out=' if out else ''}{page} cannot be written ({error.strerror}): {way_out}"
        ) from None
    return page
