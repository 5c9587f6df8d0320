"""`pycni new-plugin NAME`: the beginnings of a plugin of one's own, which works as it is.

The project has a plugin, its test, and what it takes to build and install it. The plugin is chained
and sets the MTU of the container's interface, or makes an interface of its own: a veth that the
host routes to. docs/plugin-tutorial.md tells how to go on.
"""

from __future__ import annotations

import keyword
from pathlib import Path

import click

from pycni import __version__
from pycni.cli.output import info
from pycni.plugins import NAMES
from pycni.spec.names import is_name

_PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{name}"
description = "A CNI plugin"
readme = "README.md"
version = "0.1.0"
requires-python = ">=3.11"
dependencies = ["pycni[cli]>={version}"]

[project.optional-dependencies]
test = ["pytest"]

[tool.hatch.build.targets.wheel]
packages = ["src/{module}"]

[tool.pytest.ini_options]
pythonpath = ["src"]
testpaths = ["tests"]
"""

_CHAINED_PLUGIN = '''\
"""{name}: sets the MTU of the container's interface."""

from __future__ import annotations

from pycni.sdk import SANDBOX, ChainedPlugin, Integer, NetConf, Plan, Request, Result, field, steps


class {base}Config(NetConf):
    """The keys of {name}, besides those that all plugins have."""

    mtu: int = field("mtu", Integer(68, 65535), required=True, doc="bytes")


class {base}(ChainedPlugin):
    """A plan says what should exist. ADD makes it, CHECK compares it with the kernel."""

    type = "{name}"
    config = {base}Config

    def plan(self, request: Request, config: {base}Config, network: Result) -> Plan:
        return Plan((steps.LinkSettings(SANDBOX, request.ifname, mtu=config.mtu),))


plugin = {base}()
'''

_CHAINED_TEST = '''\
"""{name} on the real kernel; as root."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from {module} import plugin
from pycni.sdk import testing


@pytest.fixture
def lab() -> Iterator[testing.Lab]:
    with testing.lab() as lab:
        yield lab


def mtu(lab: testing.Lab, container: testing.Container) -> int:
    (link,) = lab.show("link", "show", "dev", "eth0", netns=container)
    return int(link["mtu"])


def test_add_check_delete(lab: testing.Lab) -> None:
    attachment = lab.attach(plugin, {{"mtu": 1400}})
    previous = attachment.after("192.0.2.2/24", gateway="192.0.2.1")
    assert attachment.add()["ips"] == previous["ips"]
    assert mtu(lab, attachment.container) == 1400
    attachment.check()
    lab.ip("link", "set", "eth0", "mtu", "1500", netns=attachment.container)
    assert "1400" in attachment.drift()
    attachment.delete()
    attachment.delete()


def test_a_bad_configuration_is_refused(lab: testing.Lab) -> None:
    attachment = lab.attach(plugin, {{"mtu": "big"}})
    attachment.after("192.0.2.2/24")
    error = attachment.refused()
    assert error["code"] == 7
    assert "mtu" in error["msg"]
'''

_INTERFACE_PLUGIN = '''\
"""{name}: a veth pair between the container and the host, which routes to it."""

from __future__ import annotations

from pycni.sdk import HOST, SANDBOX, Integer, InterfacePlugin, IPAddress, IPNetwork, NetConf
from pycni.sdk import Plan, Reported, Request, Result, Step, field, steps
from pycni.sdk.addressing import configure
from pycni.sdk.veth_name import host_end


class {base}Config(NetConf):
    """The keys of {name}, besides those that all plugins have."""

    mtu: int = field("mtu", Integer(0, 65535), 0, doc="bytes; 0 for the kernel's choice")


class {base}(InterfacePlugin):
    """A plan says what should exist. ADD makes it, CHECK compares it, DEL removes it.

    The addresses come from the plugin that "ipam" names, and go back to it.
    """

    type = "{name}"
    config = {base}Config
    needs_ipam = True
    kinds = ("veth",)  # what GC looks for: it may outlive the container

    def plan(self, request: Request, config: {base}Config, network: Result) -> Plan:
        inner, outer = request.ifname, host_end(request, network)
        plan: list[Step] = [steps.VethPair(request.owner, inner, outer, config.mtu)]
        for entry in network.ips:
            if entry.gateway is not None:  # else it is one that a plugin after this one added
                plan.append(steps.Address(HOST, outer, alone(entry.gateway)))
                plan.append(steps.Route(HOST, outer, alone(entry.address.address)))
        plan += configure(inner, network)
        return Plan(tuple(plan), (Reported(HOST, outer), Reported(SANDBOX, inner)))


def alone(address: IPAddress) -> IPNetwork:
    return IPNetwork(address, address.bits)


plugin = {base}()
'''

_INTERFACE_TEST = '''\
"""{name} on the real kernel; as root."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from {module} import plugin
from pycni.sdk import testing

IPAM = {{
    "type": "static",
    "addresses": [{{"address": "192.0.2.2/24", "gateway": "192.0.2.1"}}],
    "routes": [{{"dst": "0.0.0.0/0"}}],
}}


@pytest.fixture
def lab() -> Iterator[testing.Lab]:
    with testing.lab() as lab:
        yield lab


def test_host_and_container_reach_each_other(lab: testing.Lab) -> None:
    attachment = lab.attach(plugin, {{"ipam": IPAM}})
    result = attachment.add()
    assert [item["name"] for item in result["interfaces"]][1:] == ["eth0"]
    lab.run("ping", "-c1", "-W2", "192.0.2.1", netns=attachment.container)
    lab.run("ping", "-c1", "-W2", "192.0.2.2")
    attachment.check()
    lab.ip("address", "delete", "192.0.2.2/24", "dev", "eth0", netns=attachment.container)
    assert "192.0.2.2/24 is missing" in attachment.drift()
    attachment.delete()
    attachment.delete()
    assert [link["ifname"] for link in lab.show("link")] == ["lo"]


def test_addresses_are_needed(lab: testing.Lab) -> None:
    error = lab.attach(plugin, {{}}).refused()
    assert error["code"] == 7
    assert "IPAM" in error["msg"]
'''

_README = """\
# {name}

A CNI plugin, made with [pycni](https://pypi.org/project/pycni/).

    pip install '.[test]'
    pytest                                            # as root
    pycni install /opt/cni/bin --plugin {module}
    pycni conformance /opt/cni/bin/{name} --config {name}.conf --plugin-dir /opt/cni/bin

{use}
"""

_CHAINED_USE = """\
It comes second or later in a list:

    {{"type": "{name}", "mtu": 1400}}"""

_INTERFACE_USE = """\
It comes first in a list:

    {{"type": "{name}", "ipam": {{
        "type": "host-local", "ranges": [[{{"subnet": "10.5.0.0/16"}}]]
    }}}}"""

_CHAINED_CONFIG = """\
{{
    "cniVersion": "1.1.0",
    "name": "example",
    "type": "{name}",
    "mtu": 1400
}}
"""

_INTERFACE_CONFIG = """\
{{
    "cniVersion": "1.1.0",
    "name": "example",
    "type": "{name}",
    "ipam": {{
        "type": "host-local",
        "ranges": [[{{"subnet": "10.5.0.0/16"}}]],
        "routes": [{{"dst": "0.0.0.0/0"}}]
    }}
}}
"""

# Of each kind: the plugin, its test, its configuration, and what the README says of that.
_KINDS = {
    "chained": (_CHAINED_PLUGIN, _CHAINED_TEST, _CHAINED_CONFIG, _CHAINED_USE),
    "interface": (_INTERFACE_PLUGIN, _INTERFACE_TEST, _INTERFACE_CONFIG, _INTERFACE_USE),
}


def create(name: str, directory: Path, kind: str = "chained") -> list[Path]:
    """Write the project of a plugin into a directory that is not there yet, or empty.

    kind: chained or interface. Returns the files' paths. Raises FileExistsError, another OSError.
    """
    plugin, test, config, use = _KINDS[kind]
    module = module_name(name)
    words = {
        "name": name,
        "module": module,
        "base": "".join(part.capitalize() for part in module.split("_")),
        "version": __version__,
    }
    words["use"] = use.format(**words)
    if directory.exists() and any(directory.iterdir()):
        raise FileExistsError(f"{directory} is there already, and not empty")
    files = {
        "pyproject.toml": _PROJECT,
        "README.md": _README,
        f"{name}.conf": config,
        f"src/{module}/__init__.py": plugin,
        f"src/{module}/py.typed": "",
        "tests/test_plugin.py": test,
    }
    written = []
    for path, text in files.items():
        file = directory / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.format(**words))
        written.append(file)
    return written


def module_name(name: str) -> str:
    """The Python package of a plugin: its name, as Python can say it."""
    return name.lower().replace("-", "_").replace(".", "_")


@click.command("new-plugin")
@click.argument("name")
@click.argument("directory", required=False, type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--kind",
    type=click.Choice(list(_KINDS)),
    default="chained",
    show_default=True,
    help="Whether it works on the interface of a plugin before it, or makes one.",
)
def new_plugin(name: str, directory: Path | None, kind: str) -> None:
    """Begin a plugin called NAME: a project that builds, is tested and can be installed.

    It is written into DIRECTORY, by default one called NAME.
    """
    module = module_name(name)
    if not is_name(name) or not module.isidentifier() or keyword.iskeyword(module):
        raise click.UsageError(f"'{name}' is not fit for a plugin's name; expected one like my-nat")
    if name in NAMES:
        raise click.UsageError(f"pycni has a plugin called {name} already")
    directory = directory or Path(name)
    try:
        create(name, directory, kind)
    except OSError as error:
        raise click.ClickException(str(error)) from error
    info(f"wrote {directory}; see {directory / 'README.md'} for how to go on")
