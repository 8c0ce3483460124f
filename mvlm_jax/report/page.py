"""HTML pages that need no other file, from the templates beside this module."""

import base64
import functools
import io
import re
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import markupsafe
from PIL import Image

from mvlm_jax import __version__
from mvlm_jax.errors import UserError
from mvlm_jax.files import write_text
from mvlm_jax.stores.mirror import shown

SMALL = 100  # pixels a side up to which an image is kept exact, and shown enlarged without smoothing
THUMBNAIL = 160  # pixels of the longer side of an image beside others
QUALITY = 85  # of the JPEG that a larger image becomes


class Picture(NamedTuple):
    """An image as a page holds it."""

    uri: str
    width: int
    height: int
    alt: str  # what a reader who does not see it is told

    @property
    def is_small(self) -> bool:
        return max(self.width, self.height) <= SMALL


def render(template: str, **values: Any) -> str:
    """A whole document. Every value is escaped; a name that the template uses and `values` lacks is an error."""
    return _templates().get_template(template).render(version=__version__, **values)


def write_page(file: Path, html: str, *, flag: str) -> Path:
    """Writes a page, makes its directory, and returns its path.

    Args:
      flag: that gives the directory or the file, for the error.

    Raises:
      UserError: it cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, shown(html), errors="replace")  # a caption may hold half a character
    except OSError as error:
        raise UserError(f"{file.name} cannot be written to {flag}={str(file.parent)!r}: {error.strerror}") from error
    return file


def picture(image: Image.Image, *, alt: str, small: bool | None = None) -> Picture:
    """`image` as PNG where it is small, else as JPEG."""
    exact = max(image.size) <= SMALL if small is None else small
    encoded = io.BytesIO()
    if exact:
        image.save(encoded, "PNG", optimize=True)
    else:
        image.save(encoded, "JPEG", quality=QUALITY)
    data = base64.b64encode(encoded.getvalue()).decode("ascii")
    return Picture(f"data:image/{'png' if exact else 'jpeg'};base64,{data}", image.width, image.height, alt)


def thumbnail(image: Image.Image, alt: str) -> Picture:
    """`image`, scaled down to `THUMBNAIL`."""
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return picture(small, alt=alt)


@functools.cache
def _templates() -> jinja2.Environment:
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("mvlm_jax.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["count"] = lambda number: f"{number:,}"
    templates.filters["short"] = short
    templates.filters["breakable"] = breakable
    return templates


def breakable(value: Any) -> markupsafe.Markup:
    """Escaped; long names may go on in the next line behind their dots, slashes and underscores."""
    text = str(markupsafe.escape(value))
    return markupsafe.Markup(re.sub(r"(?<=[\w])([._/])(?=[A-Za-z])", r"\1<wbr>", text))


def short(value: Any) -> str:
    """A value for a table: numbers with four digits that count, lists without brackets."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(short, value)) or "none"
    return "—" if value is None else str(value)
