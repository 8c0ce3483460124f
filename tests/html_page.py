"""What must hold of every page that the project writes."""

import re
from html.parser import HTMLParser

VOID = {"meta", "link", "img", "br", "wbr"}
SELF_CLOSED = {"line", "path", "circle", "rect", "polyline"}  # of SVG


class Page(HTMLParser):
    """A page's tags, and what is wrong with them."""

    def __init__(self, html: str):
        super().__init__()
        self.problems: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        self.problems += [f"<{tag}> is not closed" for tag in self._open]
        self._check(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, {name: value or "" for name, value in attributes}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, {name: value or "" for name, value in attributes}))

    def handle_endtag(self, tag):
        if not self._open or self._open.pop() != tag:
            self.problems.append(f"</{tag}> closes something else")

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def _check(self, html: str) -> None:
        ids = [attributes["id"] for _, attributes in self.tags if "id" in attributes]
        self.problems += [f"the id {name} is there twice" for name in set(ids) if ids.count(name) > 1]
        for tag, attributes in self.tags:
            for name in ("src", "href", "srcset", "action", "poster"):
                value = attributes.get(name, "data:")
                if not value.startswith("data:") and value[1:] not in ids:
                    self.problems.append(f"<{tag} {name}={value[:40]}> leads out of the page")
            if re.search(r"width:\s*\d{3,}px", attributes.get("style", "")):
                self.problems.append(f"<{tag}> has a fixed width")
        for image in self.all("img"):
            if not image.get("alt") or not image.get("width") or not image.get("height"):
                self.problems.append("an image without a text or a size")
        if {"name": "viewport", "content": "width=device-width, initial-scale=1"} not in self.all("meta"):
            self.problems.append("no viewport")
        style = html.partition("<style>")[2].partition("</style>")[0]
        if "prefers-color-scheme: dark" not in style or "16px/1.5" not in style:
            self.problems.append("no dark mode, or small text")
        if re.search(r"url\(|@import", style):
            self.problems.append("the style sheet reads another file")
        if "default-src 'none'" not in html:
            self.problems.append("requests are not forbidden")


def problems(html: str) -> list[str]:
    return Page(html).problems
