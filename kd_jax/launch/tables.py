"""Tables of results as aligned text, Markdown and CSV."""

import csv
import io
import sys
from typing import Any

from kd_jax.launch.claims import Effect, Table
from kd_jax.launch.config import plain


def cell(value: Any) -> str:
    """Numbers in four significant digits, an `Effect` as estimate [low, high], None as a dash."""
    if value is None:
        return "–"
    if isinstance(value, Effect):
        return f"{cell(value.estimate)} [{cell(value.low)}, {cell(value.high)}]"
    if hasattr(value, "tolist"):
        return cell(value.tolist())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def columns(table: Table) -> list[str]:
    return list(dict.fromkeys(name for row in table.rows for name in row))


def as_text(table: Table) -> str:
    """Aligned columns; numbers to the right."""
    names = columns(table)
    lines = [names, *([cell(row.get(name)) for name in names] for row in table.rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    left = [any(isinstance(row.get(name), str) for row in table.rows) for name in names]
    shown = [
        "  ".join(
            text.ljust(width) if to_left else text.rjust(width)
            for text, width, to_left in zip(line, widths, left, strict=True)
        ).rstrip()
        for line in lines
    ]
    return "\n".join([table.title, "", *shown, ""])


def as_markdown(table: Table) -> str:
    names = columns(table)

    def line(texts: list[str]) -> str:
        return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"

    rows = [line([cell(row.get(name)) for name in names]) for row in table.rows]
    return "\n".join(
        [f"**{table.title}**", "", line(names), "|" + " --- |" * len(names), *rows, ""]
    )


def as_csv(table: Table) -> str:
    """Full precision; an `Effect` fills three columns: name, name.low, name.high."""
    flat = []
    for row in table.rows:
        line: dict[str, Any] = {}
        for name, value in row.items():
            if isinstance(value, Effect):
                line |= {name: value.estimate, f"{name}.low": value.low, f"{name}.high": value.high}
            else:
                line[name] = plain(value)
        flat.append(line)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns(Table("", flat)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def show(table: Table) -> None:
    """Prints the table: with rich on a terminal, else as aligned text."""
    if not sys.stdout.isatty():
        print(as_text(table))
        return
    import rich.table

    drawn = rich.table.Table(title=table.title, title_justify="left")
    for name in columns(table):
        text = any(isinstance(row.get(name), str) for row in table.rows)
        drawn.add_column(name, justify="left" if text else "right")
    for row in table.rows:
        drawn.add_row(*(cell(row.get(name)) for name in columns(table)))
    rich.print(drawn)
