"""The pages of the claims: published statements that tests try by training."""

import ast
import inspect
from pathlib import Path

from docs.generate import source
from docs.generate.pages import Pages, block, link, title, toctree, words
from regjax.catalog import STAGES

_INTRO = """What papers state about their techniques, tried by training small networks. Each stands as a test, so that it holds in
every release; ``make test-claims`` runs all. Sizes are small: what holds here need not hold at scale, and the
other way round."""


def found(root: Path) -> dict[str, list[tuple[source.Module, ast.FunctionDef]]]:
    """The tests of claims by stage."""
    claims: dict[str, list[tuple[source.Module, ast.FunctionDef]]] = {}
    for stage in STAGES:
        for path in sorted((root / "tests" / stage).glob("test_*.py")):
            module = source.read(path)
            for fn in module.functions.values():
                if any("slow" in ast.unparse(decorator) for decorator in fn.decorator_list):
                    claims.setdefault(stage, []).append((module, fn))
    return claims


def by_technique(root: Path) -> dict[str, list[str]]:
    """Links to the claims of each technique."""
    used = {
        f":ref:`{_title(fn)} <{_anchor(module, fn)}>`": module.uses(fn) for tests in found(root).values() for module, fn in tests
    }
    return source.inverted(used)


def write(pages: Pages, root: Path) -> None:
    """Writes a page for each stage, and their index."""
    claims = found(root)
    for stage, tests in claims.items():
        parts = [title(f"Claims: {stage}")]
        for module, fn in tests:
            path = module.path.relative_to(root)
            used = ", ".join(f"`{full}`" for full in sorted(module.uses(fn)))
            doc = ast.get_docstring(fn)
            code = block("literalinclude", "", f"/../{path}", pyobject=fn.name).rstrip()
            parts += [f".. _{_anchor(module, fn)}:", title(_title(fn), "-"), *filter(None, [doc and inspect.cleandoc(doc), used])]
            parts.append(block("dropdown", code, f"``{path}``"))
        pages.write(f"claims/{stage}.rst", "\n\n".join(parts) + "\n")
    listed = "\n".join(f"- {link(stage, f'/claims/{stage}')}: {len(tests)} tests" for stage, tests in claims.items())
    pages.write("claims/index.rst", "\n\n".join([title("Claims"), _INTRO, listed, toctree(claims)]) + "\n")


def _title(fn: ast.FunctionDef) -> str:
    text = words(fn.name.removeprefix("test_"))
    return text[:1].upper() + text[1:]


def _anchor(module: source.Module, fn: ast.FunctionDef) -> str:
    return f"claim-{module.path.parent.name}-{module.path.stem.removeprefix('test_')}-{fn.name}".replace("_", "-")
