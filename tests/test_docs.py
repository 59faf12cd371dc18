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


def build(folder):
    """The folder of the built site."""
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


def without_a_place(site):
    """The public names of which no page tells."""
    inventory = {name for path in pages(site) for name in page(path).anchors}
    public = {f"regjax.{name}" for name in regjax.__all__ if name not in catalog.STAGES and name != "__version__"}
    for stage in catalog.STAGES:
        public |= {f"regjax.{stage}.{name}" for name in importlib.import_module(f"regjax.{stage}").__all__}
    return sorted(public - inventory)


def broken_links(site):
    """Links within the site to pages or anchors that are not there, and links elsewhere by anything but https."""
    broken = []
    for path in pages(site):
        for link in page(path).links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                whole = parts.scheme in ("https", "mailto", "data")
            else:
                target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
                whole = target.exists() and (target.suffix != ".html" or unquote(parts.fragment) in page(target).anchors)
            if not whole:
                broken.append((path.relative_to(site), link))
    return broken


def unread_markup(site):
    """Pages that show markup as text."""
    marks = (".. math::", ":math:", "``", ":class:", "{doc}", "{ref}")
    shown = {path: " ".join(page(path).text) for path in pages(site) if path.name not in ("genindex.html", "search.html")}
    return [(path.relative_to(site), mark) for path, text in shown.items() for mark in marks if mark in text]


@pytest.mark.slow
def test_the_site_is_whole(tmp_path):
    site = build(tmp_path)
    assert not without_a_place(site)
    assert not broken_links(site)
    assert not unread_markup(site)
    card = page(site / "techniques/objectives/sam.html")
    text = " ".join(card.text)
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
    for target in (
        "recipes/index.html#recipe-sam",
        "studies/scale.html",
        "arxiv.org/abs/2010.01412",
        "symptoms/sharp_minima.html",
    ):
        assert any(target in link for link in card.links), target


def test_what_is_wrong_with_a_page_is_found(tmp_path):
    (tmp_path / "index.html").write_text(
        '<p id="here">:math:`x`</p><a href="#here"></a><a href="#there"></a><a href="no.html"></a>'
    )
    (tmp_path / "other.html").write_text('<pre>:math:</pre><a href="index.html#here"></a><a href="http://example.org"></a>')
    assert [link for _, link in broken_links(tmp_path)] == ["#there", "no.html", "http://example.org"]
    assert [(str(path), mark) for path, mark in unread_markup(tmp_path)] == [("index.html", ":math:")]
    assert "regjax.losses.maxsup" in without_a_place(tmp_path)
