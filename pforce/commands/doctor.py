"""`pforce doctor`: find problems of a machine, its stores or a cluster, and suggest cures."""

from __future__ import annotations

import json as json_module
from typing import Annotated

import tyro
from rich.table import Table
from rich.text import Text

from pforce.base.console import DONE, USAGE_ERROR, make_console, under_way
from pforce.base.errors import require
from pforce.base.words import counted
from pforce.commands.stores import Store
from pforce.orchestration.doctor import SIGNS, Check, diagnose
from pforce.orchestration.doctor.diagnose import address_of

STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}


def doctor(
    *,
    store: Store,
    ray_address: str | None = None,
    workers: int | None = None,
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> int:
    """Check this machine, its stores and a cluster, and report what is wrong and how to fix it.

    The exit code is 0 where nothing would stop a run (warnings are allowed), else 2. Ray is not started: without
    --ray-address or RAY_ADDRESS, only this machine is checked.

    Args:
        ray_address: a running cluster, HOST:PORT or auto; by default RAY_ADDRESS. Every node is checked.
        workers: also check that this many workers fit at once.
        json: print JSON instead of a table.
    """
    require(workers is None or workers >= 1, "workers", workers, "≥ 1")
    console = make_console()
    place = store.place
    with under_way(make_console(stderr=True), "checking …") as say:
        checks = diagnose(
            place,
            store.tracking_uri,
            ray_address=address_of(ray_address),
            workers=workers,
            told=lambda what: say(f"checking {what} …"),
        )
    wrong = sum(check.state == "problem" for check in checks)
    warned = sum(check.state == "warning" for check in checks)
    if json:
        print(
            json_module.dumps({"ok": not wrong, "checks": [c._asdict() for c in checks]}, indent=1, ensure_ascii=False)
        )
    else:
        console.print(checks_table(checks))
        told = "nothing would stop a run" if not wrong else f"{counted(wrong, 'problem')} would stop or spoil a run"
        console.print(Text(f"{told}; {counted(warned, 'warning')}", style="bold red" if wrong else "bold green"))
    return USAGE_ERROR if wrong else DONE


def checks_table(checks: list[Check]) -> Table:
    """One row per check: its sign, what was found, and the cure below it."""
    table = Table(title="pforce doctor", title_justify="left", show_header=False)
    table.add_column("state", no_wrap=True)
    table.add_column("check", no_wrap=True)
    table.add_column("found", overflow="fold")
    for check in checks:
        found = Text(check.found)
        if check.cure:
            found.append(f"\n→ {check.cure}", style="dim" if check.state == "ok" else "bold")
        table.add_row(Text(SIGNS[check.state], style=STYLES[check.state]), Text(check.name), found)
    return table
