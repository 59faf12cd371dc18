"""What single backticks in a docstring mean: the card of a technique, a type, or else a piece of code."""

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxRole

from docs.generate import names


class Backticks(SphinxRole):
    """``maxsup``, ``losses.maxsup`` and ``regjax.losses.maxsup`` lead to a card; what is no public name is code."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Makes a reference that Sphinx resolves, and warns of where it cannot."""
        literal = nodes.literal(self.text, self.text)
        found = names.meant(self.text, near=self.env.docname)
        if found is None:
            return [literal], []
        kind, target = found
        reference = pending_xref(
            "",
            literal,
            refdomain="std" if kind == "doc" else "py",
            reftype=kind,
            reftarget=target,
            refexplicit=True,
            refwarn=True,
            refdoc=self.env.docname,
        )
        return [reference], []


def setup(app: Sphinx) -> None:
    """Registers the role."""
    app.add_role("card", Backticks())
