"""Leaves the text of a link that leads out of docs/, to a file of the repository: the site does not hold that file."""

import re
from pathlib import Path
from typing import Any

LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#:\s]+)(?:#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    docs = Path(config.docs_dir).resolve()
    directory = docs.joinpath(page.file.src_uri).parent

    def shown(link: re.Match[str]) -> str:
        target = directory.joinpath(link[2]).resolve()
        inside = target.is_relative_to(docs)
        return link[0] if inside or not target.exists() else link[1]

    return LINK.sub(shown, markdown)
