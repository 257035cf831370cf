"""A report as one page of HTML that needs nothing else: tables, findings, pictures inside it; light and dark."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

from matplotlib.figure import Figure

STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--dim:#57606a;--paper:#fff;--line:#d0d7de;--soft:#f6f8fa;
--yes:#116329;--yes-bg:#dafbe1;--no:#a40e26;--no-bg:#ffebe9;--open:#7d4e00;--open-bg:#fff8c5}
@media (prefers-color-scheme:dark){:root{--ink:#e6edf3;--dim:#9198a1;--paper:#0d1117;--line:#3d444d;--soft:#151b23;
--yes:#7ee787;--yes-bg:#12261e;--no:#ffa198;--no-bg:#2d1517;--open:#f2cc60;--open-bg:#272115}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,sans-serif}
main{max-width:68rem;margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:1.7rem;line-height:1.2;margin:.5rem 0}
h2{font-size:1.25rem;margin:2.5rem 0 .3rem;padding-top:1rem;border-top:1px solid var(--line)}
h3{font-size:1rem;margin:1.4rem 0 .3rem}
p{margin:.4rem 0}.dim{color:var(--dim)}
nav{display:flex;flex-wrap:wrap;gap:.3rem 1rem;margin:1rem 0}
nav a{color:inherit}
ul.findings{list-style:none;padding:0;margin:.8rem 0}
ul.findings li{display:grid;grid-template-columns:8.5rem 1fr;gap:.2rem .8rem;padding:.5rem 0;
border-bottom:1px solid var(--line)}
ul.findings .numbers{grid-column:2;color:var(--dim);font-size:.9rem}
.word{align-self:start;justify-self:start;padding:.05rem .55rem;border-radius:1rem;font-size:.85rem;font-weight:600}
.reproduced{color:var(--yes);background:var(--yes-bg)}.not-reproduced{color:var(--no);background:var(--no-bg)}
.undecided{color:var(--open);background:var(--open-bg)}
figure{margin:1rem 0}figure img{max-width:100%;height:auto;background:#fff;border-radius:.4rem;display:block}
figcaption{color:var(--dim);font-size:.9rem;margin-top:.3rem}
.pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(13rem,1fr));gap:1rem}
.pictures figure{margin:0}.pictures img{width:100%;image-rendering:pixelated}
pre{background:var(--soft);border:1px solid var(--line);border-radius:.4rem;padding:.7rem;overflow-x:auto;
font-size:.85rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1rem;margin:.5rem 0}dt{color:var(--dim)}
dd{margin:0;overflow-wrap:anywhere}
@media (max-width:40rem){ul.findings li{grid-template-columns:1fr}ul.findings .numbers{grid-column:1}
dl{grid-template-columns:1fr}dd{margin-bottom:.4rem}}
"""


@dataclass
class Section:
    """A sweep on the page."""

    title: str
    about: str = ""
    table: str = ""
    """Fragment of `pforce.results.to_html`."""
    summary: Sequence[str] = ()
    """Sentences above the findings."""
    findings: Sequence[tuple[str, str, str]] = ()
    """(statement, word, numbers)."""
    figures: Sequence[tuple[bytes, str]] = ()
    """(PNG, caption)."""
    pictures: Sequence[tuple[bytes, str]] = ()
    """Small ones, side by side: sample grids, uncertainty maps."""
    facts: Sequence[tuple[str, str]] = ()
    """Cost and environment."""
    commands: Sequence[str] = field(default_factory=list)


def png(figure: Figure) -> bytes:
    """A figure as bytes."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=160)
    return file.getvalue()


def _image(data: bytes, caption: str) -> str:
    text = html.escape(caption)
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return f'<figure><img src="{source}" alt="{text}" loading="lazy"><figcaption>{text}</figcaption></figure>'


def _finding(statement: str, word: str, numbers: str) -> str:
    name = word.replace(" ", "-")
    return (
        f'<li><span class="word {name}">{html.escape(word)}</span><span>{html.escape(statement)}</span>'
        f'<span class="numbers">{html.escape(numbers)}</span></li>'
    )


def _section(section: Section, number: int) -> str:
    e = html.escape
    parts = [f'<section id="s{number}">', f"<h2>{e(section.title)}</h2>"]
    parts += [f'<p class="dim">{e(section.about)}</p>'] if section.about else []
    parts += [f"<p><strong>{e(section.summary[0])}</strong></p>"] if section.summary else []
    parts += [f"<p>{e(line)}</p>" for line in section.summary[1:]]
    if section.findings:
        parts += ['<ul class="findings">', *(_finding(*each) for each in section.findings), "</ul>"]
    parts += [_image(*each) for each in section.figures]
    parts.append(section.table)
    if section.pictures:
        parts += [
            "<h3>Pictures</h3>",
            '<div class="pictures">',
            *(_image(*each) for each in section.pictures),
            "</div>",
        ]
    if section.facts:
        facts = (f"<dt>{e(name)}</dt><dd>{e(value)}</dd>" for name, value in section.facts)
        parts += ["<h3>Cost and environment</h3>", "<dl>", *facts, "</dl>"]
    if section.commands:
        parts += ["<h3>Commands</h3>", f"<pre>{e(chr(10).join(section.commands))}</pre>"]
    return "\n".join([*parts, "</section>"])


def page(title: str, intro: str, sections: Sequence[Section]) -> str:
    """The whole page, in ASCII: no encoding can spoil it."""
    links = (f'<a href="#s{number}">{html.escape(s.title)}</a>' for number, s in enumerate(sections))
    lines = [
        "<!doctype html>", '<html lang="en">', '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>{html.escape(title)}</title>", f"<style>{STYLE}</style>", "<main>",
        f"<h1>{html.escape(title)}</h1>", f'<p class="dim">{html.escape(intro)}</p>',
        "<nav>", *links, "</nav>",
        *(_section(section, number) for number, section in enumerate(sections)), "</main>", "</html>",
    ]  # fmt: skip
    return "\n".join(lines).encode("ascii", "xmlcharrefreplace").decode() + "\n"
