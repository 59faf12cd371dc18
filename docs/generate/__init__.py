"""The site's generated pages: a card for each technique, stages, symptoms, recipes, claims, studies, notebooks, benchmarks.

A Sphinx extension: before reading, it writes the pages beside the hand-written ones (in folders that git ignores) from the
docstrings, the recipes, the tests and the results. Files are written only where they change, and those that nothing
generates any more are removed.
"""

from pathlib import Path

from sphinx.application import Sphinx

from docs.generate import benchmarks, cards, claims, directives, recipes, roles, stages, studies
from docs.generate.pages import Pages

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("techniques", "symptoms", "recipes", "claims", "studies", "notebooks", "benchmarks")


def write(app: Sphinx) -> None:
    """Writes all generated pages into the source folder."""
    pages = Pages(Path(app.srcdir), FOLDERS)
    for part in (stages, cards, recipes, claims, studies, benchmarks):
        part.write(pages, ROOT)
    pages.finish()


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the role of single backticks, the directives, and the writing of the pages."""
    roles.setup(app)
    directives.setup(app)
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
