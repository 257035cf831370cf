"""Reports as self-contained HTML: a page of sweeps with their pictures, or one table as a fragment.

The templates escape all values; they and the style sheet are in `templates/`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from pforce.results.report import Report


@dataclass
class Section:
    """A section of the page: one sweep."""

    title: str
    about: str = ""
    report: Report | None = None
    """The sweep's table."""
    summary: Sequence[str] = ()
    """Sentences above the findings."""
    findings: Sequence[tuple[str, str, str]] = ()
    """Findings as (statement, word, numbers)."""
    figures: Sequence[tuple[bytes, str]] = ()
    """Figures as (PNG, caption)."""
    pictures: Sequence[tuple[bytes, str]] = ()
    """Small pictures side by side, as (PNG, caption): sample grids, uncertainty maps."""
    facts: Sequence[tuple[str, str]] = ()
    """Facts on cost and environment, as (name, value)."""
    commands: Sequence[str] = field(default_factory=list)


def png(figure: Figure, *, dpi: int = 160) -> bytes:
    """A figure as the bytes of a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi)
    return file.getvalue()


@cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pforce.results"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    loader = environment.loader
    assert loader is not None
    style, _, _ = loader.get_source(environment, "style.css")
    environment.globals["style"] = Markup(style)
    return environment


def _render(template: str, **values: object) -> str:
    """A rendered template in ASCII, so that no encoding can spoil ± and λ."""
    text = _templates().get_template(template).render(**values)
    lines = [line for line in text.split("\n") if line.strip()]
    return "\n".join(lines).encode("ascii", "xmlcharrefreplace").decode() + "\n"


def page(title: str, intro: str, sections: Sequence[Section]) -> str:
    """A whole page, for desktop and phone, light and dark."""
    return _render("page.html.j2", title=title, intro=intro, sections=sections)


def to_html(report: Report) -> str:
    """A report as a fragment, with the text colour and background of the page that it is put into."""
    return _render("fragment.html.j2", report=report)
