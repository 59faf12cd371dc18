"""Which page of the site is whose."""

import functools
import importlib
import inspect
from collections.abc import Iterable
from typing import Any

import regjax
from regjax import catalog


@functools.cache
def _techniques() -> dict[str, Any]:
    return catalog.techniques()


@functools.cache
def _types() -> dict[str, Any]:
    """Public names of the stages that are no techniques, by full name: states, results and constants."""
    found = {}
    for stage in catalog.STAGES:
        module = importlib.import_module(f"regjax.{stage}")
        found |= {f"{stage}.{name}": getattr(module, name) for name in module.__all__ if f"{stage}.{name}" not in _techniques()}
    return found


def types(stage: str) -> dict[str, Any]:
    """The states, results and constants of a stage, by name."""
    return {full.split(".")[1]: value for full, value in _types().items() if full.startswith(stage + ".")}


def slug(full_name: str) -> str:
    """The page of a technique: ``techniques/losses/maxsup``; never two that differ in capitals alone."""
    stage, name = full_name.split(".")
    twin = any(other != full_name and other.lower() == full_name.lower() for other in _techniques())
    return f"techniques/{stage}/{name}{'_module' if twin and inspect.isclass(_techniques()[full_name]) else ''}"


def source(full_name: str) -> str:
    """The file in which a technique's code lies, below the root of the project."""
    return inspect.unwrap(_techniques()[full_name]).__module__.replace(".", "/") + ".py"


@functools.cache
def kin(full_name: str) -> tuple[str, str | None]:
    """The stage and the folder of kin in which a technique's code lies; None where it lies in the stage itself."""
    stage = full_name.split(".")[0]
    parts = inspect.unwrap(_techniques()[full_name]).__module__.split(".")
    return stage, parts[2] if len(parts) > 3 and parts[1] == stage else None


def meant(text: str, near: str = "") -> tuple[str, str] | None:
    """What a name in backticks means, near a page: ``("doc", page)`` of a card, ``("obj", name)``, or None: plain code.

    A short name that several stages share means that of the stage on whose page it stands, else the first.
    """
    text = text.removeprefix("regjax.").removeprefix("rj.")
    stage = near.removeprefix("techniques/").split("/")[0] if near.startswith("techniques/") else ""
    if full := _nearest(text, _techniques(), stage):
        return "doc", f"/{slug(full)}"
    if full := _nearest(text, _types(), stage):
        return "obj", f"regjax.{full}"
    if text in regjax.__all__ and text not in catalog.STAGES:
        return "obj", f"regjax.{text}"
    return None


def _nearest(text: str, known: Iterable[str], stage: str) -> str | None:
    same = [full for full in known if text in (full, full.split(".")[1])]
    return next((full for full in same if full.startswith(f"{stage}.")), same[0] if same else None)
