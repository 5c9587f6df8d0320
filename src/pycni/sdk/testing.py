"""Try a plugin on the real kernel, in namespaces that go with the test. Needs root and `ip`.

    with testing.lab() as lab:
        container = lab.container()
        attachment = lab.attach(plugin, {"mtu": 1400}, container)
        attachment.after("192.0.2.2/24", gateway="192.0.2.1")   # a veth, for a chained plugin
        attachment.add()
        attachment.check()
        lab.ip("link", "set", "eth0", "mtu", "1500", netns=container)
        assert "MTU" in attachment.drift()
        attachment.delete()

A plugin is its object, called in this process, or the path of an executable, run as a process. What
it delegates to is looked for on `path`; pycni's own plugins are always there. Without root a test
that uses this is skipped. For tests only: unlike the rest of the SDK it may import anything.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import unittest
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pycni.kernel import namespace
from pycni.sdk.dispatch import serve
from pycni.sdk.plugin import Plugin

VERSION = "1.1.0"


class PluginError(AssertionError):
    """A call did not end as the test wants it."""


@dataclass(frozen=True)
class Run:
    """How one call ended."""

    command: str
    code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Any:
        """What stdout holds: a result, an error object, None if it is empty."""
        return json.loads(self.stdout) if self.stdout.strip() else None

    def __str__(self) -> str:
        return f"{self.command} ended with {self.code}: {self.stdout or self.stderr or 'no output'}"


@dataclass(frozen=True)
class Container:
    """A network namespace that stands for a container."""

    name: str

    @property
    def path(self) -> str:
        """What goes into CNI_NETNS."""
        return f"{namespace.NAMED}/{self.name}"


@dataclass
class Attachment:
    """One interface of one container, and the calls about it.

    config: as in a file, without cniVersion and type. previous: the prevResult of the first ADD;
    result: what ADD gave, the prevResult of all calls after it.
    """

    lab: Lab
    plugin: Plugin | str | os.PathLike[str]
    config: Mapping[str, Any]
    container: Container
    ifname: str = "eth0"
    version: str = VERSION
    args: str = ""
    path: tuple[str, ...] = ()
    previous: Mapping[str, Any] | None = None
    result: Any = None
    environ: dict[str, str] = field(default_factory=dict)

    def after(self, *addresses: str, gateway: str = "", host: str = "up0") -> dict[str, Any]:
        """Make a veth in the container, as the plugin before would have; a chained plugin gets it.

        addresses: with prefix length; gateway: put on the host's end, with a default route to it.
        """
        ip, container = self.lab.ip, self.container
        pair = ["link", "add", host, "type", "veth", "peer", "name", self.ifname]
        ip(*pair, "netns", container.name)
        for address in addresses:
            nodad = ["nodad"] if ":" in address else []
            ip("address", "add", address, "dev", self.ifname, *nodad, netns=container)
        ip("link", "set", host, "up")
        ip("link", "set", self.ifname, "up", netns=container)
        if gateway:
            prefix = addresses[0].partition("/")[2]
            ip("address", "add", f"{gateway}/{prefix}", "dev", host)
            family = "-6" if ":" in gateway else "-4"
            ip(family, "route", "add", "default", "via", gateway, netns=container)
        (outer,) = self.lab.show("link", "show", "dev", host)
        (inner,) = self.lab.show("link", "show", "dev", self.ifname, netns=container)
        previous: dict[str, Any] = {
            "cniVersion": self.version,
            "interfaces": [
                {"name": host, "mac": outer["address"]},
                {"name": self.ifname, "mac": inner["address"], "sandbox": container.path},
            ],
            "ips": [{"address": address, "interface": 1} for address in addresses],
        }
        if gateway:
            previous["ips"][0]["gateway"] = gateway
        self.previous = previous
        return previous

    def run(self, command: str, **keys: Any) -> Run:
        """One call, however it ends. keys: changes to the configuration."""
        document = {
            "name": "test",
            **self.config,
            "cniVersion": self.version,
            "type": self.config.get("type", self._type),
        }
        previous = self.previous if command == "ADD" else self.result or self.previous
        if previous is not None:
            document["prevResult"] = previous
        environ = {
            "PATH": os.environ.get("PATH", os.defpath),
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": self.container.name,
            "CNI_NETNS": self.container.path,
            "CNI_IFNAME": self.ifname,
            "CNI_PATH": os.pathsep.join((*self.path, self.lab.plugins)),
            **({"CNI_ARGS": self.args} if self.args else {}),
            **self.environ,
        }
        return _call(self.plugin, json.dumps({**document, **keys}), environ)

    def add(self, **keys: Any) -> Any:
        """ADD, which must succeed; the result."""
        run = self.run("ADD", **keys)
        if run.code:
            raise PluginError(str(run))
        self.result = run.document
        return self.result

    def check(self, **keys: Any) -> None:
        """CHECK, which must find nothing."""
        self._must_succeed(self.run("CHECK", **keys))

    def drift(self, **keys: Any) -> str:
        """CHECK, which must find something; what it says."""
        return str(self.refused("CHECK", **keys)["msg"])

    def delete(self, **keys: Any) -> None:
        """DEL, which must succeed."""
        self._must_succeed(self.run("DEL", **keys))

    def gc(self, *keep: Attachment) -> None:
        """GC, which must succeed. keep: the attachments that are valid."""
        valid = [{"containerID": one.container.name, "ifname": one.ifname} for one in keep]
        self._must_succeed(self.run("GC", **{"cni.dev/valid-attachments": valid}))

    def status(self, **keys: Any) -> None:
        """STATUS, which must succeed."""
        self._must_succeed(self.run("STATUS", **keys))

    def refused(self, command: str = "ADD", **keys: Any) -> Any:
        """A call that must fail; the error object."""
        run = self.run(command, **keys)
        if not run.code:
            raise PluginError(f"{command} succeeded, and should not have: {run.stdout}")
        return run.document

    @property
    def _type(self) -> str:
        if isinstance(self.plugin, Plugin):
            return self.plugin.type
        return os.path.basename(self.plugin)

    def _must_succeed(self, run: Run) -> None:
        if run.code or run.stdout:
            raise PluginError(str(run))


class Lab:
    """A network namespace that stands for the host, with containers. Made by `lab`.

    plugins: a folder with executables of pycni's plugins, which a plugin under test may name.
    """

    def __init__(self, plugins: str) -> None:
        self.plugins = plugins
        self._made: list[str] = []

    def container(self) -> Container:
        """A new network namespace, removed at the end."""
        name = f"pycni-test-{os.urandom(4).hex()}"
        namespace.create_named(name).close()
        self._made.append(name)
        return Container(name)

    def remove(self, container: Container) -> None:
        """Remove a container's namespace before the end, as when it is killed."""
        namespace.delete_named(container.name)
        self._made.remove(container.name)

    def attach(
        self,
        plugin: Plugin | str | os.PathLike[str],
        config: Mapping[str, Any],
        container: Container | None = None,
        **fields: Any,
    ) -> Attachment:
        """An attachment that is still to be added; without a container it gets a new one."""
        return Attachment(self, plugin, config, container or self.container(), **fields)

    def ip(self, *args: str, netns: Container | None = None) -> str:
        """Run `ip ARGS` on the host, or in a container; its output."""
        where = ["-n", netns.name] if netns else []
        return _program(["ip", *where, *args])

    def show(self, *args: str, netns: Container | None = None) -> list[dict[str, Any]]:
        """What `ip -j ARGS` prints, such as `show("route", "show", netns=container)`."""
        found: list[dict[str, Any]] = json.loads(self.ip("-d", "-j", *args, netns=netns) or "[]")
        return [entry for entry in found if entry]

    def run(self, *argv: str, netns: Container | None = None) -> str:
        """Run any program on the host, or in a container; its output."""
        prefix = ["ip", "netns", "exec", netns.name] if netns else []
        return _program([*prefix, *argv])

    @contextmanager
    def nothing_left(self) -> Iterator[None]:
        """After the block the host must hold what it held before: links, addresses, routes, rules
        of routing and of nftables."""
        before = self._seen()
        yield
        after = self._seen()
        new = [line for line in after if line not in before]
        gone = [line for line in before if line not in after]
        if new or gone:
            raise PluginError(f"left: {new or 'nothing'}; gone: {gone or 'nothing'}")

    def close(self) -> None:
        """Remove the containers that are left."""
        for name in self._made:
            namespace.delete_named(name)
        self._made.clear()

    def _seen(self) -> list[str]:
        seen = [f"link {link['ifname']}" for link in self.show("link", "show")]
        for family in ("-4", "-6"):
            for kind in ("address", "rule"):
                seen += _program(["ip", family, "-o", kind, "show"]).splitlines()
            seen += _program(["ip", family, "route", "show", "table", "all"]).splitlines()
        if shutil.which("nft"):
            seen += _program(["nft", "--stateless", "list", "ruleset"]).splitlines()
        # What the kernel gives each IPv6 link comes when it likes.
        return [line for line in seen if "fe80::" not in line and "ff00::" not in line]


@contextmanager
def lab() -> Iterator[Lab]:
    """Put the calling thread into a fresh network namespace for a while, with a lab in it.

    Programs and threads started meanwhile are in it too; /run and the disk are the machine's.
    Raises unittest.SkipTest, which pytest knows as well, without the rights of root.
    """
    if os.geteuid() != 0:
        raise unittest.SkipTest("makes network namespaces, which needs root")
    from tempfile import TemporaryDirectory

    with (
        TemporaryDirectory(prefix="pycni-plugins-") as folder,
        namespace.create() as host,
        host.enter(),
    ):
        _install(Path(folder))
        _program(["ip", "link", "set", "lo", "up"])
        made = Lab(folder)
        try:
            yield made
        finally:
            made.close()


def _install(folder: Path) -> None:
    """Executables of pycni's plugins: shell scripts, which take no time to write."""
    import sys

    from pycni import plugins

    root = Path(plugins.__file__).parents[2]
    for name in plugins.NAMES:
        path = folder / name
        start = f"import sys; sys.path.append({str(root)!r}); from pycni.plugins import run"
        script = f'#!/bin/sh\nexec {sys.executable} -IS -X utf8 -c "{start}; run({name!r})"\n'
        path.write_bytes(script.encode() + plugins.MARK + name.encode() + b"\n")
        path.chmod(0o755)


def _call(plugin: Plugin | str | os.PathLike[str], stdin: str, environ: dict[str, str]) -> Run:
    command = environ["CNI_COMMAND"]
    if isinstance(plugin, Plugin):
        from pycni.plugins import resolve

        outcome = serve(plugin, environ, stdin.encode, resolve=resolve)
        return Run(command, outcome.code, outcome.stdout, outcome.stderr)
    done = subprocess.run(
        [os.fspath(plugin)], input=stdin, env=environ, capture_output=True, text=True, check=False
    )
    return Run(command, done.returncode, done.stdout, done.stderr)


def _program(argv: list[str]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PluginError(f"{' '.join(argv)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout
