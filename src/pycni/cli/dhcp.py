"""`pycni dhcp`: be the DHCP daemon, or ask the one that runs. Options as the reference has them."""

from __future__ import annotations

import re
from typing import Any

import click

from pycni.plugins.shared.dhcp import SOCKET

STATE_DIR = "/run/cni/dhcp"

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def duration(value: str) -> float:
    """A time such as 10s, 1m30s or 500ms, in seconds."""
    if not re.fullmatch(f"({_DURATION.pattern})+", value):
        raise click.BadParameter(f"{value!r} is no duration such as 10s, 1m30s or 500ms")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in _DURATION.findall(value))
    if not seconds:
        raise click.BadParameter(f"{value!r} leaves no time")
    return seconds


@click.group()
def dhcp() -> None:
    """The daemon that the dhcp plugin gets its addresses from."""


# One hyphen as well as two: unit files written for the reference's daemon have either.
@dhcp.command()
@click.option(
    "-socketpath", "--socketpath", default=SOCKET, show_default=True, help="Socket to listen on."
)
@click.option("-pidfile", "--pidfile", default="", help="File for the process's id.")
@click.option(
    "-hostprefix",
    "--hostprefix",
    default="",
    help="Where the host's root is; goes before all paths but the pidfile's.",
)
@click.option(
    "-statedir",
    "--statedir",
    default=STATE_DIR,
    show_default=True,
    help="Where leases are kept over a restart.",
)
@click.option("-broadcast", "--broadcast", is_flag=True, help="Have servers answer by broadcast.")
@click.option(
    "-timeout",
    "--timeout",
    type=duration,
    default="10s",
    show_default=True,
    help="Time for an answer, with repetitions.",
)
@click.option(
    "-resendmax",
    "--resendmax",
    type=duration,
    default="62s",
    show_default=True,
    help="Longest pause between tries.",
)
@click.option(
    "-resendtimeout",
    "--resendtimeout",
    type=duration,
    default="208s",
    show_default=True,
    help="Time for all tries of an ADD.",
)
@click.option("-v", "--verbose", is_flag=True, help="Log renewals too.")
def daemon(verbose: bool, **options: Any) -> None:
    """Acquire, renew and release leases, until SIGTERM. Leases outlive a restart.

    Listens on systemd's socket if it is given one. Needs the extra: pip install 'pycni[dhcp]'.
    """
    import logging

    from pycni.spec.errors import CNIError

    try:
        from pycni.dhcp import service
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"the DHCP daemon needs {error.name}: pip install 'pycni[dhcp]'"
        ) from error
    level = logging.DEBUG if verbose else logging.INFO
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s")
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    try:
        service.run(**options)
    except OSError as error:
        raise click.ClickException(
            f"the DHCP daemon cannot start: {error.filename or ''} {error.strerror}".strip()
        ) from error
    except CNIError as error:
        raise click.ClickException(str(error)) from error


@dhcp.command()
@click.option("--socketpath", default=SOCKET, show_default=True, help="Socket of the daemon.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table")
def leases(socketpath: str, output: str) -> None:
    """The leases that the daemon keeps."""
    import json

    from pycni.cli.output import show
    from pycni.plugins.shared.dhcp import ask
    from pycni.spec.errors import CNIError

    try:
        found = ask(socketpath, {"command": "LIST"})["leases"]
    except CNIError as error:
        raise click.ClickException(str(error)) from error
    if output == "json":
        click.echo(json.dumps(found, indent=2))
        return
    rows = [("CONTAINER", "INTERFACE", "NETWORK", "ADDRESS", "SERVER", "STATE", "EXPIRES")]
    rows += [
        (
            item["containerID"],
            item["ifname"],
            item["network"],
            item["address"],
            item["server"],
            item["state"],
            "never" if item["expiresIn"] is None else f"{item['expiresIn']} s",
        )
        for item in found
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        show("  ".join(cells).rstrip())
