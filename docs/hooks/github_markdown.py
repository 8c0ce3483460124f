"""Reads pages as GitHub does, for which they are written too: what differs is put right before the site is made.

A link that leads out of docs/, to a file of the repository, becomes its text: the site does not hold that file. A bar
within code in a table is written \\| for GitHub, whose backslash would be shown.
"""

import re
from pathlib import Path
from typing import Any

LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#:\s]+)(?:#[^)\s]*)?\)")
CODE = re.compile(r"`[^`]*`")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    docs = Path(config.docs_dir).resolve()
    directory = docs.joinpath(page.file.src_uri).parent

    def shown(link: re.Match[str]) -> str:
        target = directory.joinpath(link[2]).resolve()
        return link[0] if target.is_relative_to(docs) or not target.exists() else link[1]

    lines = [with_bars(line) if line.startswith("|") else line for line in markdown.split("\n")]
    return LINK.sub(shown, "\n".join(lines))


def with_bars(row: str) -> str:
    return CODE.sub(lambda code: code[0].replace(r"\|", "|"), row)
