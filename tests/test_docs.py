"""The site builds without a warning, has a card for every public name, and no link of it is broken."""

import functools
import importlib
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import regjax
from regjax import catalog

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """What a page links to, the anchors that it has, and its text."""

    def __init__(self, text):
        super().__init__()
        self.links, self.anchors, self.text, self._code = [], {""}, [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.links += [attrs[name] for name in ("href", "src") if attrs.get(name)]
        self.anchors |= {attrs[name] for name in ("id", "name") if attrs.get(name)}
        self._code += tag in ("pre", "script", "style")

    def handle_endtag(self, tag):
        self._code -= tag in ("pre", "script", "style")

    def handle_data(self, data):
        if not self._code:
            self.text.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    options = ["--fail-on-warning", "--keep-going", "--nitpicky", "--jobs", "2", "--doctree-dir", str(folder / "doctrees")]
    command = [sys.executable, "-m", "sphinx", "--builder", "html", *options, "docs", str(folder / "html")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-5000:]
    return folder / "html"


@functools.cache
def page(path):
    return Page(path.read_text())


def pages(site):
    return [path for path in sorted(site.rglob("*.html")) if "_static" not in path.parts]


def test_every_public_name_has_its_place(site):
    inventory = {name for path in pages(site) for name in page(path).anchors}
    public = {f"regjax.{name}" for name in regjax.__all__ if name not in catalog.STAGES and name != "__version__"}
    for stage in catalog.STAGES:
        public |= {f"regjax.{stage}.{name}" for name in importlib.import_module(f"regjax.{stage}").__all__}
    assert public <= inventory, sorted(public - inventory)


def test_no_link_is_broken(site):
    broken = []
    for path in pages(site):
        for link in page(path).links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or parts.path.startswith("mailto"):
                assert parts.scheme in ("https", "mailto", "data"), (path, link)
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            whole = target.exists() and (target.suffix != ".html" or unquote(parts.fragment) in page(target).anchors)
            if not whole:
                broken.append((path.relative_to(site), link))
    assert not broken, broken[:20]


def test_no_markup_is_left_unread(site):
    left = []
    for path in pages(site):
        if path.parts[len(site.parts)] not in ("_modules", "genindex.html", "search.html"):
            text = " ".join(page(path).text)
            left += [(path.relative_to(site), mark) for mark in (".. math::", ":math:", "``", ":class:", "{doc}") if mark in text]
    assert not left, left[:20]


def test_cards_show_formula_advice_cost_and_papers(site):
    text = " ".join(page(site / "techniques/objectives/sam.html").text)
    for part in (
        "When to use it",
        "When not",
        "Combines badly with",
        "Formula",
        "Arguments",
        "Cost",
        "Measured:",
        "Seen at work",
    ):
        assert part in text, part
    links = page(site / "techniques/objectives/sam.html").links
    for target in (
        "recipes/index.html#recipe-sam",
        "studies/scale.html",
        "arxiv.org/abs/2010.01412",
        "symptoms/sharp_minima.html",
    ):
        assert any(target in link for link in links), target
