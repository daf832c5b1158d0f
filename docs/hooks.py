"""Pages of the site that are files outside of docs/: links to them work on a forge and in the site."""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {  # the name in the site, and the file
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "promises.md": "tests/README.md",
    "architectures.md": "tests/models/ARCHITECTURES.md",
}


def on_files(files, config):
    """Add the pages."""
    for name, path in PAGES.items():
        files.append(File.generated(config, name, content=(ROOT / path).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown, page, **_):
    """Return the text with links to files of the project as links between pages."""
    here = page.file.src_uri
    folder = posixpath.dirname(PAGES.get(here, f"docs/{here}"))
    names = {path: name for name, path in PAGES.items()}

    def linked(match):
        path = posixpath.normpath(posixpath.join(folder, match[1]))
        name = names.get(path, path.removeprefix("docs/") if path.startswith("docs/") else None)
        return f"]({posixpath.relpath(name, posixpath.dirname(here) or '.')}{match[2]})" if name else match[0]

    return re.sub(r"\]\(([^)#:\s]+\.md)((?:#[^)\s]*)?)\)", linked, markdown)
