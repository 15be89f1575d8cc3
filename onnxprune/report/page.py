"""What the tool printed as JSON, as one HTML page that needs nothing else.

Made of the JSON alone, so that a page can be drawn long after the run, on another machine. What each kind of JSON
holds, `forms` says; what its page shows, `pages`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import PurePath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from onnxprune.errors import nearest
from onnxprune.report import forms
from onnxprune.report.difference import Difference
from onnxprune.report.forms import Run
from onnxprune.report.pages import measured, models, result
from onnxprune.report.pages.shared import NODES as NODES
from onnxprune.report.reading import Misfit, read
from onnxprune.report.searched import Searched
from onnxprune.report.sensitivity import Sensitivity
from onnxprune.report.terminal import plain, si

if TYPE_CHECKING:
    from jinja2 import Environment

SCHEMA = 1
GIVE = "give what `onnxprune ... --json` printed"


@dataclass(frozen=True)
class Page:
    """How a kind of JSON is drawn.

    Attributes:
        form: what it holds.
        template: the page, a file in `pages`.
        shows: the form and the run -> what the template names.
    """

    form: Any
    template: str
    shows: Callable[[Any, Run], Mapping[str, Any]]


PAGES: Mapping[str, Page] = {
    "onnxprune result": Page(forms.Told, "result.html", result.result),
    "onnxprune sweep": Page(forms.Swept, "sweep.html", result.sweep),
    "onnxprune plan": Page(forms.Planned, "plan.html", models.plan),
    "onnxprune dry run": Page(forms.Previewed, "dry_run.html", models.dry_run),
    "onnxprune inspection": Page(forms.Inspected, "inspection.html", models.inspection),
    "onnxprune verification": Page(forms.Verified, "verification.html", models.verification),
    "onnxprune diff": Page(Difference, "diff.html", models.diff),
    "onnxprune bench": Page(forms.Benched, "bench.html", measured.bench),
    "onnxprune sensitivity": Page(Sensitivity, "sensitivity.html", measured.sensitivity),
    "onnxprune search": Page(Searched, "search.html", measured.search),
    "onnxprune explanation": Page(forms.Explaining, "explanation.html", measured.explanation),
    "onnxprune profile": Page(forms.Profiled, "profile.html", measured.profile),
    "onnxprune help": Page(forms.Listed, "names.html", models.names),
}
"""Every kind of JSON that a command prints."""


def render(content: Any, *, name: str, files: Mapping[str, str] | None = None) -> str:
    """The page.

    Args:
        content: what `Result.to_dict` gives, or a command with `--json` printed.
        name: what the page calls it.
        files: what it links to: what that is -> its path, from where the page will be.

    Raises:
        ValueError: it is something else, of a version that is not known, or not whole; the message says what it is.
    """
    page = _page_of(content)
    try:
        run = read(Run, content.get("run") or {}, "run")
        shown = page.shows(read(page.form, _unfolded(content)), run)
        given = {"name": plain(name), "repeat": run.get("command") or run.get("call"), "files": _linked(files or {}),
                 "samples": ()}  # fmt: skip
        return _environment().get_template(page.template).render(given | dict(shown))
    except Misfit as error:
        raise Misfit([f"an {content['kind']} that is not whole: {error}"]) from error
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:  # where a form leaves things open
        raise Misfit([f"an {content['kind']} that is not whole: {error!r}"]) from error


def _linked(files: Mapping[str, str]) -> dict[str, str]:
    """The same, as addresses; a name that begins like `http:` is a name."""
    return {title: f"./{quote(PurePath(path).as_posix())}" for title, path in files.items()}


@cache
def _environment() -> Environment:
    """The templates, compiled once."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    files = PackageLoader("onnxprune.report", "pages")
    made = Environment(
        autoescape=True, undefined=StrictUndefined, lstrip_blocks=True, loader=files,
        finalize=lambda value: plain(value) if type(value) is str else value,
    )  # fmt: skip
    made.filters |= {"plain": plain, "si": si, "unquoted": lambda address: unquote(address.removeprefix("./"))}
    for name in ("parts", "network"):
        made.globals[name] = made.get_template(f"{name}.html").module
    return made


def title_of(content: Any) -> str:
    """The name of the model's file, where the JSON knows it."""
    run = content.get("run") if isinstance(content, Mapping) else None
    name = run.get("model") if isinstance(run, Mapping) else None
    return name if isinstance(name, str) else ""


def _page_of(content: Any) -> Page:
    """How it is drawn.

    Raises:
        ValueError: it is nothing that the tool prints, or of another version.
    """
    if not isinstance(content, Mapping):
        kinds = {list: "a list", str: "text", type(None): "null", bool: "true or false"}
        raise ValueError(f"it is {kinds.get(type(content), 'a number')}, not an object; {GIVE}")
    kind = content.get("kind")
    if not isinstance(kind, str):
        keys = ", ".join(map(repr, list(content)[:5])) or "none"
        raise ValueError(f"it has no `kind` (its keys: {keys}{', …' * (len(content) > 5)}); {GIVE}")
    if kind not in PAGES:
        near = nearest(kind, PAGES)
        hint = f"did you mean {near!r}? " if near else ""
        raise ValueError(f"kind {kind!r}; {hint}there are pages for {', '.join(PAGES)}")
    if content.get("schema") != SCHEMA:
        raise ValueError(f"{kind}, schema {content.get('schema')!r}; this version reads {SCHEMA}")
    return PAGES[kind]


def _unfolded(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """One case of a benchmark is printed as itself, several as a list."""
    alone = content["kind"] == "onnxprune bench" and "results" not in content
    return {"results": [content]} if alone else content
