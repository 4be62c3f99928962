"""For the site (mkdocs.yml): every notebook of docs/ becomes a page, with what it prints and draws when run.
The notebook itself lies beside it.
"""

import posixpath
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.structure.files import File, Files
from nbclient import NotebookClient
from nbconvert import MarkdownExporter


def on_files(files: Files, *, config: Any) -> Files:
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        folder, name = posixpath.split(notebook.src_uri)
        stem = name.removesuffix(".ipynb")
        text, pictures = converted(Path(notebook.abs_src_path).read_text(encoding="utf-8"), stem)
        files.append(File.generated(config, posixpath.join(folder, f"{stem}.md"), content=text))
        for picture, content in pictures.items():
            files.append(File.generated(config, posixpath.join(folder, picture), content=content))
    return files


@cache  # `mkdocs serve` builds anew at every change
def converted(text: str, stem: str) -> tuple[str, dict[str, bytes]]:
    """Markdown, in which notebooks are linked to by their pages, and its pictures by path."""
    book = nbformat.reads(text, as_version=4)
    NotebookClient(book, timeout=300).execute()
    page, resources = MarkdownExporter().from_notebook_node(
        book, {"unique_key": stem, "output_files_dir": f"{stem}_files"}
    )
    title, _, rest = page.lstrip().partition("\n")
    page = f"{title}\n\n[This page as a notebook]({stem}.ipynb)\n{rest.replace('.ipynb)', '.md)')}"
    return page, resources["outputs"]
