"""Shows at a terminal what a step of a run read, and how two runs differ at a step."""

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from data.batch_report import RowReport, SegmentReport, SpanReport, StepReport
from launch.printable import first_lines, shortened, visible, visible_lines
from launch.reading.step_report import Comparison

_NUM_ROWS, _NUM_NAMES = 8, 3  # of a difference that are shown
_NAME_CHARACTERS = 60


def show_step(report: StepReport, where: str, *, full: bool) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(
        f"{where}, {report.num_rows} sequences of {report.sequence_len} tokens, sha256 "
        f"{report.batch_sha256[:16]}",
        style="bold",
        soft_wrap=True,
    )
    for row in report.rows:
        _show_row(console, row, full=full)


def _show_row(console: Console, row: RowReport, *, full: bool) -> None:
    place = f"{visible(row.source)}, epoch {row.epoch}, sequence {row.row:,} of {row.num_rows:,}"
    padding = f", {row.num_padding:,} padding" if row.num_padding else ""
    console.print()
    console.print(Text.assemble((f"row {row.index}", "bold cyan"), f"  {place}{padding}"))
    for span in row.spans:
        where = (
            f"  document {span.document:,}, tokens {span.start:,} to {span.stop:,}"
            f" ({'separator + ' if span.begins else ''}{span.stop - span.start:,})"
        )
        name = (visible(span.name), "green")
        console.print(Text.assemble("  ", name, where), soft_wrap=True)
        text = visible_lines(span.text) if full else first_lines(span.text, console.width - 4)
        if text:
            shown = Text(text, "dim", overflow="fold")
            console.print(Padding(shown, (0, 0, 0, 4), expand=False))
    for segment in row.segments:
        _show_segment(console, segment, full=full)


def _show_segment(console: Console, segment: SegmentReport, *, full: bool) -> None:
    for name, text in (("inputs", segment.inputs), ("targets", segment.targets)):
        shown = visible_lines(text) if full else first_lines(text, console.width - 11)
        lines = Text(shown, "dim", overflow="fold")
        console.print(Text(f"  {name}", "green"))
        console.print(Padding(lines, (0, 0, 0, 4), expand=False))
    if segment.is_next is not None:
        is_next = "yes" if segment.is_next else "no"
        console.print(Text.assemble(("  next sentence ", "green"), is_next))


def show_comparison(comparison: Comparison, *, full: bool) -> None:
    """Shows whether two runs read the same batch, and which settings and sequences differ."""
    console = Console(highlight=False, markup=False, emoji=False)

    def show(line: str, style: str | None = None) -> None:
        console.print(line, style=style, soft_wrap=True)

    verdict = "the same batch" if comparison.is_same else "different batches"
    style = "bold green" if comparison.is_same else "bold red"
    show(f"step {comparison.reports[0].step}: {verdict}", style)
    paths = [visible(str(run.path)) for run in comparison.runs]
    names = [f"{path:<{max(map(len, paths))}}" for path in paths]
    for name, run, report, steps in zip(
        names, comparison.runs, comparison.reports, comparison.steps, strict=True
    ):
        num_skipped = sum(stop - start for start, stop in steps.skipped)
        show(
            f"  {name}  from sequence {report.first_row:,}, sha256 {report.batch_sha256[:16]}, "
            f"data {run.data.digest[:16]}, {num_skipped:,} sequences skipped"
        )
    if comparison.settings:
        show("\nsettings that differ", "bold")
    for setting, (one, two) in comparison.settings.items():
        show(f"  {setting}: {visible(str(one))} | {visible(str(two))}")
    different = comparison.different_rows
    if different:
        show("\nsequences that differ", "bold")
    shown = different if full else different[:_NUM_ROWS]
    for pair in shown:
        index = next(row.index for row in pair if row)
        for name, row in zip(names, pair, strict=True):
            show(f"  row {index:<4} {name}  {_row_label(row)}")
    if len(shown) < len(different):
        show(f"  and {len(different) - len(shown)} more; --full shows all")


def _row_label(row: RowReport | None) -> str:
    if row is None:
        return "not in this batch"
    spans = ", ".join(map(_span_label, row.spans[:_NUM_NAMES]))
    more = f" and {len(row.spans) - _NUM_NAMES} more" if len(row.spans) > _NUM_NAMES else ""
    return f"{visible(row.source)}, epoch {row.epoch}, sequence {row.row}: {spans}{more}"


def _span_label(span: SpanReport) -> str:
    return f"{shortened(span.name, _NAME_CHARACTERS)} {span.start}-{span.stop}"
