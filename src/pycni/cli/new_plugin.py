"""`pycni new-plugin NAME`: the beginnings of a plugin of one's own, which works as it is.

The project has a chained plugin that sets the MTU of the container's interface, its test, and what
it takes to build and install it; docs/plugin-tutorial.md tells how to go on.
"""

from __future__ import annotations

import keyword
from pathlib import Path

import click

from pycni import __version__
from pycni.cli.output import tell
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

_PLUGIN = '''\
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

_TEST = '''\
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

_README = """\
# {name}

A CNI plugin, made with [pycni](https://pypi.org/project/pycni/).

    pip install '.[test]'
    pytest                                            # as root
    pycni install /opt/cni/bin --plugin {module}
    pycni conformance /opt/cni/bin/{name} --config {name}.conf

It comes second or later in a list:

    {{"type": "{name}", "mtu": 1400}}
"""

_CONFIG = """\
{{
    "cniVersion": "1.1.0",
    "name": "example",
    "type": "{name}",
    "mtu": 1400
}}
"""


def create(name: str, directory: Path) -> list[Path]:
    """Write the project of a plugin into a directory that is not there yet, or empty.

    Returns the files' paths. Raises FileExistsError, another OSError.
    """
    module = module_name(name)
    words = {
        "name": name,
        "module": module,
        "base": "".join(part.capitalize() for part in module.split("_")),
        "version": __version__,
    }
    if directory.exists() and any(directory.iterdir()):
        raise FileExistsError(f"{directory} is there already, and not empty")
    files = {
        "pyproject.toml": _PROJECT,
        "README.md": _README,
        f"{name}.conf": _CONFIG,
        f"src/{module}/__init__.py": _PLUGIN,
        f"src/{module}/py.typed": "",
        "tests/test_plugin.py": _TEST,
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
def new_plugin(name: str, directory: Path | None) -> None:
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
        create(name, directory)
    except OSError as error:
        raise click.ClickException(str(error)) from error
    tell(f"wrote {directory}; see {directory / 'README.md'} for how to go on")
