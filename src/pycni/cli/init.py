"""`pycni init`: writes a sound network configuration, and asks nothing that has a good default."""

from __future__ import annotations

from pathlib import Path

import click

from pycni.cli.crio import warn_of_crio
from pycni.cli.output import info, warn
from pycni.runtime.find import DEFAULT_DIRECTORY
from pycni.runtime.new_network import KINDS, as_text, new_network, second_file, write_network

HELP = "Write a network configuration of TYPE, which is one of\n\n\b\n" + "\n".join(
    f"{kind:<13}{line}" for kind, line in KINDS.items()
)


@click.command(help=HELP)
@click.argument("kind", metavar="TYPE", type=click.Choice([*KINDS]))
@click.option("--name", help="The network's name.  [default: TYPE]")
@click.option(
    "--subnet",
    "subnets",
    multiple=True,
    metavar="CIDR",
    help="Where addresses are taken from; may be repeated for IPv4 and IPv6.  [default: one that "
    "nothing uses here]",
)
@click.option(
    "--master",
    metavar="INTERFACE",
    help="Host interface of a macvlan, ipvlan or vlan.  [default: the default route's]",
)
@click.option("--vlan", type=click.IntRange(1, 4094), help="The VLAN's number.")
@click.option("--device", metavar="INTERFACE", help="The host interface to move.")
@click.option(
    "--conf-dir",
    envvar="NETCONFPATH",
    type=click.Path(path_type=Path),
    default=DEFAULT_DIRECTORY,
    show_default=True,
    show_envvar=True,
    help="Where to write it.",
)
@click.option("--stdout", is_flag=True, help="Print it and write nothing.")
@click.option("--force", is_flag=True, help="Replace the file if there is one.")
def init(
    kind: str,
    name: str | None,
    subnets: tuple[str, ...],
    master: str | None,
    vlan: int | None,
    device: str | None,
    conf_dir: Path,
    stdout: bool,
    force: bool,
) -> None:
    """Write a network configuration, or print it."""
    document = new_network(
        kind,
        name or "",
        subnets=subnets,
        master=master or "",
        vlan=vlan,
        device=device or "",
        conf_dir=conf_dir,
        force=force,
    )
    if not stdout:
        path = write_network(document, conf_dir, force=force)
    if document["plugins"][0].get("ipam", {}).get("type") == "dhcp":
        info('addresses come by DHCP: its daemon must run, or give "--subnet"')
    if stdout:
        click.echo(as_text(document), nl=False)
        return
    info(f"wrote {path}; try: pycni add {document['name']} sandbox --create-netns")
    second = second_file(path)
    if second:
        warn(
            f"{path.name} comes before {second}: runtimes that take the first file, as those of "
            "Kubernetes do, attach their pods to it"
        )
    warn_of_crio(str(conf_dir))
