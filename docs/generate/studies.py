"""The pages of the studies and of the notebooks, taken over from where they lie."""

import json
import re
from pathlib import Path

from docs.generate import recipes, source
from docs.generate.pages import Pages, link, title, toctree, words
from experiments import readme

RESULTS = "experiments/results"


def names(root: Path) -> list[str]:
    """The studies whose results lie in the project."""
    return [page.parent.name for page in sorted((root / RESULTS).glob("*/README.md"))]


def by_technique(root: Path) -> dict[str, list[str]]:
    """Links to the studies that use each technique, by itself or in a recipe that they name."""
    of_recipe = recipes.used(root)
    used: dict[str, set[str]] = {}
    for study in names(root):
        modules = [source.read(path) for path in sorted((root / "experiments/studies").glob(f"{study}*.py"))]
        direct = set().union(*(module.uses(module.tree) for module in modules))
        named = set().union(*(module.strings() for module in modules)) - {"baseline"}
        used[link(_title(study), f"/studies/{study}")] = direct.union(*(of_recipe.get(name, set()) for name in named))
    return {full: sorted(links) for full, links in source.inverted(used).items()}


def write(pages: Pages, root: Path) -> None:
    """Writes a page for each study, the comparison of all recipes, the notebooks, and the index of each."""
    rows = []
    for study in names(root):
        text = (root / RESULTS / study / "README.md").read_text()
        question = " ".join(text.split("\n\n")[1].split())
        command = f"```sh\npython -m experiments.studies.{study}\n```"
        include = f"```{{include}} ../../{RESULTS}/{study}/README.md\n:relative-images:\n```"
        pages.write(f"studies/{study}.md", f"{include}\n\n## Run it\n\n{command}\n")
        rows.append(f"- {link(_title(study), f'/studies/{study}')}: {_rst(question)}")
    demo = readme.demo(root / RESULTS / "demo").replace(f"]({RESULTS}", f"](../../{RESULTS}")
    demo = re.sub(r"^\| (\w+) \|(?= \d)", r"| {ref}`\1 <recipe-\1>` |", demo, flags=re.MULTILINE)
    curves = f"![Accuracy over the epochs](../../{RESULTS}/demo/curves.png)"
    pages.write("studies/demo.md", f"# All recipes on digits\n\n{demo}\n\n{curves}\n\n```sh\nmake demo\n```\n")
    rows.insert(0, f"- {link('All recipes on digits', '/studies/demo')}: how do {len(recipes.used(root))} recipes compare?")
    intro = "Questions beyond one technique, each answered by one command with tables, pictures and every seed's numbers."
    index = [title("Studies"), intro, "\n".join(rows), toctree(["demo", *names(root)])]
    pages.write("studies/index.rst", "\n\n".join(index) + "\n")
    _notebooks(pages, root)


def _notebooks(pages: Pages, root: Path) -> None:
    rows, entries = [], []
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        pages.copy(path, f"notebooks/{path.name}")
        cells = json.loads(path.read_text())["cells"]
        head, _, rest = "".join(cells[0]["source"]).partition("\n")
        first = " ".join(rest.strip().split("\n\n")[0].split())
        entries.append(path.stem)
        rows.append(f"- {link(head.removeprefix('# ').replace('`', ''), f'/notebooks/{path.stem}')}: {_rst(first)}")
    intro = "Each runs in under three minutes on two cores, and on Colab, where the first cell installs what it needs."
    pages.write("notebooks/index.rst", "\n\n".join([title("Notebooks"), intro, "\n".join(rows), toctree(entries)]) + "\n")


def _title(study: str) -> str:
    return words(study).capitalize()


def _rst(markdown: str) -> str:
    """The literals and links of a line of Markdown in reStructuredText."""
    text = re.sub(r"`([^`]+)`", r"``\1``", markdown)
    return re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", text).replace("**", "").replace("*", r"\*")
