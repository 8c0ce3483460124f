"""HTML pages that need no other file."""

import base64
import html
import io

from PIL import Image

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1c2430; background: #fff; max-width: 1160px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; } h2 { font-size: 1.15em; margin: 2em 0 .4em; }
table { border-collapse: collapse; } td, th { text-align: left; padding: .25em .9em .25em 0; vertical-align: top; }
tr + tr td { border-top: 1px solid #e3e7ec; } td.number { text-align: right; font-variant-numeric: tabular-nums; }
.muted { color: #667080; } .bad { color: #b3261e; font-weight: 600; } .good { color: #1b7a3d; font-weight: 600; }
.cards { display: flex; flex-wrap: wrap; gap: 14px; }
figure { margin: 0; font-size: 13px; overflow-wrap: anywhere; } figcaption { margin-top: 3px; }
img { display: block; } .pair { display: flex; gap: 4px; } code, .id { font-family: ui-monospace, monospace; font-size: 12px; }
"""  # noqa: E501


def page(*, title: str, body: str) -> str:
    """A whole document; `body` is HTML already, `title` is text."""
    name = html.escape(title)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>{name}</h1>\n{body}\n</body></html>\n"
    )


def text(value: object) -> str:
    """Any value as HTML."""
    return html.escape(str(value))


def table(rows: list[list[str]], *, head: list[str]) -> str:
    """Cells are HTML already; those that hold a number alone are set to the right."""
    lines = ["<tr>" + "".join(f"<th>{text(cell)}</th>" for cell in head) + "</tr>"]
    for row in rows:
        cells = (f'<td class="number">{cell}</td>' if _is_number(cell) else f"<td>{cell}</td>" for cell in row)
        lines.append("<tr>" + "".join(cells) + "</tr>")
    return "<table>" + "\n".join(lines) + "</table>"


def image(picture: Image.Image, *, file_format: str = "PNG", alt: str = "") -> str:
    """An `<img>` that carries its pixels."""
    encoded = io.BytesIO()
    picture.save(encoded, file_format)
    data = base64.b64encode(encoded.getvalue()).decode("ascii")
    return (
        f'<img width="{picture.width}" height="{picture.height}" alt="{text(alt)}" '
        f'src="data:image/{file_format.lower()};base64,{data}">'
    )


def _is_number(cell: str) -> bool:
    return cell.replace(",", "").replace(".", "").removesuffix("%").isdigit()
