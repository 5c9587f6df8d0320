"""A tenant who writes any configuration, against each plugin, the runtime and the linter.

The names that a runtime gives (container, interface, namespace) are sound. What is in the
configuration is not, and sometimes neither is CNI_ARGS.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Self

from click.testing import CliRunner

from adversary import invariants
from adversary.canary import FOLDER, TOKEN, Canary
from adversary.configurations import OTHERS, Document, encoded, is_chained
from adversary.witness import Witness
from harness.allowed import allow_paths
from harness.chained import make_veth, previous_result
from harness.host import forget_attachments, run_in
from harness.namespaces import Namespace, covered, enter_new_netns, inside
from harness.plugin import PluginRun, run_plugin
from harness.worlds import quiet
from pycni import plugins
from pycni.cli.lint import lint
from pycni.plugins.noop import CRASHED
from pycni.runtime import Network
from pycni.runtime.config import parse_network
from pycni.sdk import allowed_paths
from pycni.sdk.dispatch import serve
from pycni.spec.errors import CNIError

COMMANDS = ("ADD", "CHECK", "STATUS", "DEL", "GC")
_ON_RUN = ("/run/cni", "/run/cni-ipam-state", "/run/flannel")
_ON_VAR = ("/var/lib/cni", "/var/log")
# What noop may do, and what is none of that.
_NOOP = {
    "sound.json": '{"ReportResult": "{}"}',
    "refusing.json": '{"ReportError": "no", "ReportErrorCode": 7}',
    "text": "no JSON",
}
_FLANNELD = (
    "FLANNEL_NETWORK=10.240.0.0/16\nFLANNEL_SUBNET=10.240.5.1/24\n"
    "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
)
_WITH_CONDITIONS = ("portmap", "flannel")  # whose rules have words of the configuration's
_FRESH = 20  # attempts in one container's namespace


class Tenant:
    """A host whose administrator has allowed nothing, with a container of another's on it.

    The thread is in it until the end of the `with` block. plugins: the directory of executables;
    folder: for files to lint; cold: whether plugins are run as processes. tried: how many calls
    there were.
    """

    def __init__(self, plugins: Path, folder: Path, *, cold: bool = False) -> None:
        self.tried = 0
        self._plugins = plugins
        self._folder = folder
        self._cold = cold
        self._sandboxes: dict[bool, tuple[Namespace, int, Any]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(allow_paths, private=True)
            Path(allowed_paths.FILE).write_text("")
            stack.enter_context(covered(*_ON_VAR))
            stack.enter_context(enter_new_netns())
            self._canary = stack.enter_context(Canary())
            stack.callback(os.chdir, os.getcwd())
            os.chdir(FOLDER / "work")  # where a relative path begins
            stack.callback(self._clear)
            self._make_files()
            self._make_links(stack)
            self._other = invariants.port(OTHERS[0])
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def plugin(self, name: str, document: Document, *, args: str = "", raw: bool = False) -> str:
        """All operations of a plugin with a configuration; what did not hold, "" if all did."""
        sandbox, previous = self._sandbox(chained=is_chained(name))
        given = copy.deepcopy(document)
        if previous is not None:
            given.setdefault("prevResult", previous)
        involved = _involved(name, document)
        wrong: list[str] = []
        for command in COMMANDS:
            if command == "GC":
                given.setdefault("cni.dev/valid-attachments", [])
            call = partial(self._call, name, command, encoded(given, raw=raw), args, sandbox)
            run = self._watched(command, involved, wrong, call)
            # noop also plays a plugin that panics.
            if not (name == "noop" and run.code == CRASHED and not run.stdout):
                wrong += invariants.answered(command, run)
            if command == "ADD" and run.code == 0:
                if involved.intersection(_WITH_CONDITIONS):
                    wrong += invariants.rules_are_plain()
                if run.stdout:
                    given["prevResult"] = run.result
        wrong += self._other_is_as_before()
        return "\n".join(wrong)

    def network(self, documents: Sequence[Document]) -> str:
        """All operations of a network of plugins, by the runtime."""
        sandbox, _ = self._sandbox(chained=False)
        involved = {"runtime"}.union(
            *(_involved(str(document.get("type")), document) for document in documents)
        )
        common = {key: documents[0][key] for key in ("name", "cniVersion") if key in documents[0]}
        text = encoded({**common, "plugins": [*documents]})
        wrong: list[str] = []
        for command in COMMANDS:
            operation = partial(_reported, partial(self._operate, command, text, sandbox))
            run = self._watched(command, involved, wrong, operation)
            wrong += invariants.answered(f"the network's {command}", run)
        wrong += self._other_is_as_before()
        return "\n".join(wrong)

    def lint(self, name: str, document: Document, *, raw: bool = False) -> str:
        """`pycni lint` of a configuration, alone and in a list."""
        wrong: list[str] = []
        files = {
            "one.conf": encoded(document, raw=raw),
            "list.conflist": encoded({**document, "plugins": [document]}, raw=raw),
        }
        for (file, text), output in zip(files.items(), ("text", "json"), strict=True):
            path = self._folder / file
            path.write_bytes(text)
            run = self._watched("lint", {name}, wrong, partial(_linted, str(path), output))
            wrong += _is_reported("lint", run)
        return "\n".join(wrong)

    def ends(self) -> str:
        """What did not hold of the host's files when all was tried."""
        files = [path for home in (*_ON_RUN, *_ON_VAR) for path in Path(home).rglob("*")]
        saying = [
            f"{path} says what is in the canary"
            for path in files
            if path.is_file() and TOKEN.encode() in path.read_bytes()
        ]
        return "\n".join([*self._canary.listed(), *saying])

    # --- one call --------------------------------------------------------------------------------

    def _watched(
        self, what: str, involved: set[str], wrong: list[str], call: Callable[[], PluginRun]
    ) -> PluginRun:
        """Call, and add what was touched that must not be, and what leaked, to `wrong`."""
        self.tried += 1
        with _Stderr() as stderr, Witness() as witness:
            run = call()
        run = PluginRun(run.code, run.stdout, run.stderr + stderr.text)
        if not self._cold:
            also = (str(self._plugins), str(self._folder), "/opt/cni/bin")
            found = invariants.kept_within(witness.touches, involved, also)
            wrong += (f"{what} touched {one}" for one in found)
        wrong += (f"{what}: {one}" for one in self._canary.touched())
        if TOKEN in run.stdout + run.stderr:
            wrong.append(f"{what} says what is in the canary: {run.stdout}{run.stderr}")
        return run

    def _call(
        self, name: str, command: str, stdin: bytes, args: str, sandbox: Namespace
    ) -> PluginRun:
        environ = {"CNI_CONTAINERID": "one", "CNI_NETNS": sandbox.path, "CNI_ARGS": args}
        if self._cold:
            return run_plugin(self._plugins / name, command, stdin, timeout=60, **environ)
        environ |= {
            "PATH": os.environ["PATH"],
            "CNI_COMMAND": command,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self._plugins),
        }
        done = serve(plugins.load(name), environ, lambda: stdin, resolve=plugins.resolve)
        return PluginRun(done.code, done.stdout, done.stderr)

    def _operate(self, command: str, text: bytes, sandbox: Namespace) -> None:
        """An operation of the runtime. Raises CNIError."""
        settings: dict[str, Any] = {}
        if self._cold:
            settings = {"plugin_dirs": self._plugins, "engine": "exec"}
        network = Network(parse_network(text), **settings)
        if command == "ADD":
            network.add("one", sandbox.path)
        elif command == "CHECK":
            network.check("one")
        elif command == "STATUS":
            network.status()
        elif command == "DEL":
            network.delete("one", sandbox.path)
        else:
            network.gc([], force=True)

    # --- the host --------------------------------------------------------------------------------

    def _make_files(self) -> None:
        """What is there of every kind that is allowed."""
        for home in _ON_RUN:
            shutil.rmtree(home, ignore_errors=True)
            Path(home).mkdir()
        Path("/run/flannel/subnet.env").write_text(_FLANNELD)
        Path("/run/cni/noop").mkdir()
        for name, text in _NOOP.items():
            Path("/run/cni/noop", name).write_text(text)

    def _make_links(self, stack: ExitStack) -> None:
        quiet()
        other = Namespace.create(f"tenant-{os.getpid()}-other")
        stack.callback(other.delete)
        port, bridge = OTHERS
        run_in(None, ["ip", "link", "add", "lan0", "type", "veth", "peer", "lan1"])
        run_in(None, ["ip", "link", "add", bridge, "type", "bridge"])
        make_veth(other, "10.7.0.2/24", host_name=port)
        run_in(None, ["ip", "link", "set", port, "master", bridge])
        for name in ("lan0", "lan1", bridge):
            run_in(None, ["ip", "link", "set", name, "up"])

    def _other_is_as_before(self) -> Iterator[str]:
        now = invariants.port(OTHERS[0])
        if now != self._other:
            yield f"the port of another's container was {self._other}, and is {now}"
        self._other = now

    def _sandbox(self, *, chained: bool) -> tuple[Namespace, Any]:
        """A container's namespace, and the result of the plugin before where there is one."""
        forget_attachments()
        space, left, previous = self._sandboxes.pop(chained, (None, 0, None))
        if space is None or not left or not Path(space.path).exists():
            if space is not None:
                space.delete()
            space, previous = self._new_sandbox(chained)
            left = _FRESH
        self._sandboxes[chained] = space, left - 1, previous
        return space, previous

    def _new_sandbox(self, chained: bool) -> tuple[Namespace, Any]:
        space = Namespace.create(f"tenant-{os.getpid()}-{self.tried}-{int(chained)}")
        with inside(space):
            quiet()
        if not chained:
            return space, None
        run_in(None, ["ip", "link", "delete", "veth0"], check=False)
        make_veth(space, "10.8.0.2/24", "fd00:8::2/64")
        ips = (("10.8.0.2/24", "10.8.0.1"), ("fd00:8::2/64", "fd00:8::1"))
        return space, previous_result("1.1.0", space, *ips)

    def _clear(self) -> None:
        for space, _, _ in self._sandboxes.values():
            space.delete()
        for home in _ON_RUN:
            shutil.rmtree(home, ignore_errors=True)


class _Stderr:
    """What is written to descriptor 2 inside the `with` block."""

    text = ""

    def __enter__(self) -> Self:
        self._file = os.memfd_create("stderr")
        self._before = os.dup(2)
        os.dup2(self._file, 2)
        return self

    def __exit__(self, *_: object) -> None:
        os.dup2(self._before, 2)
        self.text = os.pread(self._file, 1 << 20, 0).decode("utf-8", "replace")
        os.close(self._before)
        os.close(self._file)


def _involved(name: str, document: Document) -> set[str]:
    """The plugins whose files may be used: this one, and those that a value may name."""
    found = {name} | set(_texts(document)).intersection(plugins.NAMES)
    return found | ({"bridge", "host-local"} if "flannel" in found else set())


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _reported(operation: Callable[[], None]) -> PluginRun:
    """How an operation of the runtime ended, as a plugin would say it."""
    try:
        operation()
    except CNIError as error:
        return PluginRun(1, json.dumps(error.to_json()), "")
    return PluginRun(0, "", "")


def _linted(path: str, output: str) -> PluginRun:
    done = CliRunner().invoke(lint, [path, "--output", output])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return PluginRun(done.exit_code, done.output, "")


def _is_reported(what: str, run: PluginRun) -> Iterator[str]:
    """Faults are lines of text without anything that a terminal acts on."""
    if run.code not in (0, 1):
        yield f"{what} ended with exit code {run.code}: {run.stdout}"
    acting = {sign for sign in run.stdout if not sign.isprintable() and sign not in "\t\n"}
    if acting:
        yield f"{what} prints {sorted(acting)}: {run.stdout!r}"
