"""The plugin that is tested: its executable, kind and configuration; and how to call a plugin."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pycni.conformance import defaults
from pycni.conformance.requirement import CHAINED, INTERFACE, IPAM
from pycni.kernel.process import Killed
from pycni.kernel.process import run as run_process
from pycni.spec.versions import ALL, at_least

NETWORK = "conformance"
TIMEOUT = 60.0  # seconds for one call of a plugin
_NUMBER = re.compile(r"\{(\d+)\+n\}")


class SubjectError(Exception):
    """The plugin or its configuration is not fit to be tested."""


@dataclass(frozen=True)
class Answer:
    """How one call of a plugin ended. code: its exit code, negative for a signal that ended it."""

    command: str
    code: int
    stdout: str
    stderr: str

    @property
    def ok(self) -> bool:
        return self.code == 0

    @property
    def document(self) -> Any:
        """What stdout holds, as JSON; None if that is nothing, or is not JSON."""
        try:
            return json.loads(self.stdout)
        except ValueError:
            return None

    def __str__(self) -> str:
        """The answer for a report, on one line."""
        if self.code < 0:
            ending = f"was ended by signal {-self.code}"
        else:
            ending = f"exited with {self.code}"
        document = self.document
        if isinstance(document, dict) and "msg" in document:
            said = " ".join(str(document[key]) for key in ("msg", "details") if key in document)
            ending += f", error {document.get('code', 'without code')}: {said}"
        elif self.stdout.strip():
            ending += f", stdout {_short(self.stdout)}"
        elif self.stderr.strip() and self.code:
            ending += f", stderr {_short(self.stderr)}"
        return f"{self.command} {ending}"


@dataclass(frozen=True)
class Subject:
    """A plugin under test.

    path: its executable; kind: what it is (see `requirement`); config: its configuration, in which
    "{n}" in a string stands for the number of the container, and a whole string "{8000+n}" for that
    sum; setup: shell commands that prepare the host, with the path as $PLUGIN; container_setup: the
    same for a container, with the name of its namespace as $NETNS, $IFNAME, and its number as $N;
    directories: CNI_PATH; versions: those that the plugin claims, as `runner.prepare` finds out;
    ifname: what a first interface is called;
    makes_link: whether ADD makes the interface of that name, so that it must not be there before;
    exhausted: a configuration with one address to give.
    """

    path: Path
    kind: str
    config: Mapping[str, Any]
    setup: tuple[str, ...] = ()
    container_setup: tuple[str, ...] = ()
    directories: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()
    ifname: str = "eth0"
    makes_link: bool = True
    exhausted: Mapping[str, Any] | None = field(default=None)

    @property
    def type(self) -> str:
        return self.path.name

    @property
    def version(self) -> str:
        """The version that checks use: the newest that plugin and kit know."""
        known = [version for version in ALL if version in self.versions]
        given = self.config.get("cniVersion")
        if known and isinstance(given, str) and given in known:
            return given
        return known[-1] if known else "1.0.0"

    @property
    def ipam_type(self) -> str:
        """The address plugin that its configuration names."""
        ipam = self.config.get("ipam")
        kind = ipam.get("type") if isinstance(ipam, dict) else None
        return kind if isinstance(kind, str) else ""

    @property
    def delegates(self) -> bool:
        """Whether it calls other plugins, as far as its configuration says."""
        own = self.kind == IPAM
        return bool((self.ipam_type and not own) or "delegate" in self.config)

    def can(self, command: str) -> bool:
        """Whether the version in use has an operation."""
        since = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}.get(command, "0.1.0")
        return at_least(self.version, since)

    def document(self, number: int, version: str = "") -> dict[str, Any]:
        """The request configuration for a container, as a runtime derives it."""
        document: dict[str, Any] = _numbered(dict(self.config), number)
        document.setdefault("name", NETWORK)
        document["type"] = document.get("type", self.type)
        return {**document, "cniVersion": version or self.version}


def load_subject(
    path: Path,
    *,
    config: Mapping[str, Any] | None = None,
    kind: str = "",
    directories: tuple[str, ...] = (),
    setup: tuple[str, ...] = (),
    container_setup: tuple[str, ...] = (),
) -> Subject:
    """A plugin by its executable. Raises SubjectError.

    config: of the plugin, or a list that has it; without one, a well-known plugin gets a sound one.
    """
    path = Path(os.path.abspath(path))
    if not path.is_file() or not os.access(path, os.X_OK):
        raise SubjectError(f"{path} is not an executable file")
    if str(path).startswith(("/run/", "/var/run/", "/var/lib/cni/")):
        raise SubjectError(f"{path} is in a folder emptied for the tests: copy it elsewhere")
    known = defaults.KNOWN.get(path.name)
    if config is None:
        if known is None:
            raise SubjectError(
                f"there is no ready configuration for a plugin called {path.name}; give one with "
                f"--config (there are some for {', '.join(sorted(defaults.KNOWN))})"
            )
        config, setup = known.config, (*known.setup, *setup)
        container_setup = (*known.container_setup, *container_setup)
    else:
        config = _own_part(config, path.name)
    if not kind:
        kind = known.kind if known is not None else _guess_kind(config, path.name)
    folders = (str(path.parent), *directories)
    return Subject(
        path,
        kind,
        config,
        setup,
        container_setup,
        folders,
        ifname=known.ifname if known else "eth0",
        makes_link=known.makes_link if known else kind == INTERFACE,
        exhausted=known.exhausted if known else None,
    )


def call(
    path: Path | str, command: str, stdin: Mapping[str, Any] | str, environ: Mapping[str, str]
) -> Answer:
    """Run a plugin once. environ: the variables of the protocol; no others but PATH are set."""
    text = stdin if isinstance(stdin, str) else json.dumps(stdin)
    variables = {"PATH": os.environ.get("PATH", os.defpath), **environ}
    if command:
        variables["CNI_COMMAND"] = command
    try:
        # In the group of the kit's worker, which ends what a plugin leaves in the background.
        code, stdout, stderr = run_process(
            [str(path)], text.encode(), variables, TIMEOUT, own_group=False
        )
    except Killed as error:
        said = str(error.stderr, "utf-8", "replace")
        return Answer(command, -9, "", f"not finished after {TIMEOUT:g} seconds\n{said}")
    except OSError as error:
        raise SubjectError(f"cannot run {path}: {error.strerror}") from error
    return Answer(command, code, str(stdout, "utf-8", "replace"), str(stderr, "utf-8", "replace"))


def _own_part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The plugin's own configuration, out of a list if it is one."""
    plugins = config.get("plugins")
    if not isinstance(plugins, list) or not plugins:
        return config
    own = [item for item in plugins if isinstance(item, dict)]
    chosen = [item for item in own if item.get("type") == name] or own
    shared = {key: config[key] for key in ("name", "cniVersion") if key in config}
    return {**chosen[0], **shared}


def _guess_kind(config: Mapping[str, Any], name: str) -> str:
    ipam = config.get("ipam")
    if isinstance(ipam, dict) and ipam.get("type") == name:
        return IPAM
    return INTERFACE if ipam else CHAINED


def _numbered(value: Any, number: int) -> Any:
    if isinstance(value, dict):
        return {key: _numbered(item, number) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbered(item, number) for item in value]
    if isinstance(value, str):
        if whole := _NUMBER.fullmatch(value):
            return int(whole[1]) + number
        return value.replace("{n}", str(number))
    return value


def _short(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 200 else f"{text[:197]}...")
