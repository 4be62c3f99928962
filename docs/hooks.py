"""For the site (mkdocs.yml): links of pages to files outside docs/, which GitHub follows, lead to the
repository there, or are text where its address (`repo_url`) is not known.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

LINK = re.compile(r"\[([^\]]+)\]\((\.\./[^)#\s]*)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    folder = posixpath.dirname(f"docs/{page.file.src_uri}")

    def outside(link: re.Match[str]) -> str:
        text, target, anchor = link.groups()
        path = posixpath.normpath(posixpath.join(folder, target))
        if path.startswith("docs/"):
            return link[0]
        if not (Path(config.config_file_path).parent / path).exists():
            raise PluginError(f"{page.file.src_uri} links to {path}, which is not there")
        return f"[{text}]({config.repo_url}/blob/HEAD/{path}{anchor or ''})" if config.repo_url else text

    return LINK.sub(outside, markdown)
