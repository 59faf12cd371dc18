"""Which techniques a piece of source code uses."""

import ast
import dataclasses
import functools
from pathlib import Path

from regjax import catalog


@dataclasses.dataclass(frozen=True)
class Module:
    """A parsed source file.

    Attributes:
      path: the file.
      functions: its top-level functions by name.
      tree: the whole of it.
    """

    path: Path
    functions: dict[str, ast.FunctionDef]
    tree: ast.Module

    def uses(self, node: ast.AST) -> set[str]:
        """The full names of the techniques that a node uses, also through functions and constants of the file."""
        found: set[str] = set()
        todo, seen = [node], set()
        while todo:
            current = todo.pop()
            for part in ast.walk(current):
                found |= self._technique(part)
                if isinstance(part, ast.Name) and part.id not in seen:
                    seen.add(part.id)
                    todo += [where[part.id] for where in (self.functions, self._assigned) if part.id in where]
        return found

    def strings(self) -> set[str]:
        """Every string constant of the file."""
        return {n.value for n in ast.walk(self.tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}

    def _technique(self, node: ast.AST) -> set[str]:
        if isinstance(node, ast.Call) and _dotted(node.func).endswith("Hooks"):  # a rate of the model's own layers
            return {f"layers.{keyword.arg}" for keyword in node.keywords} & set(_known())
        return {self._full(_dotted(node)).removeprefix("regjax.")} & set(_known())

    def _full(self, dotted: str) -> str:
        """A dotted name as regjax has it, through the file's imports and the names that it gives to stages."""
        head, _, rest = dotted.partition(".")
        alias = _dotted(self._assigned[head]) if head in self._assigned else ""
        means = self._imported.get(head) or (self._full(alias) if alias and alias != head else "")
        return ".".join(filter(None, (means, rest)))

    @functools.cached_property
    def _assigned(self) -> dict[str, ast.expr]:
        """What the names of the file stand for, also those assigned together."""
        found: dict[str, ast.expr] = {}
        for node in self.tree.body:
            for target in node.targets if isinstance(node, ast.Assign) else ():
                several = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
                pairs = zip(target.elts, node.value.elts, strict=True) if several else [(target, node.value)]
                found |= {name.id: value for name, value in pairs if isinstance(name, ast.Name)}
        return found

    @functools.cached_property
    def _imported(self) -> dict[str, str]:
        """What the names of the file's imports from regjax stand for."""
        found = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found |= {a.asname or a.name: a.name for a in node.names if a.name.split(".")[0] == "regjax"}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "regjax":
                stage = ".".join((node.module or "").split(".")[:2])  # a technique is public in its stage, wherever its code lies
                found |= {a.asname or a.name: f"{stage}.{a.name}" for a in node.names}
        return found


def read(path: Path) -> Module:
    """Parses a file."""
    tree = ast.parse(path.read_text())
    return Module(path, {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}, tree)


def _dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = _dotted(node.value)
        return f"{before}.{node.attr}" if before else ""
    return ""


@functools.cache
def _known() -> tuple[str, ...]:
    return tuple(catalog.techniques())


def inverted(links: dict[str, set[str]]) -> dict[str, list[str]]:
    """From who uses which techniques to who uses each technique."""
    found: dict[str, list[str]] = {}
    for user, used in links.items():
        for full in used:
            found.setdefault(full, []).append(user)
    return found
