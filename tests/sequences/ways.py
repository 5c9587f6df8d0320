"""Ways to have an operation done: pycni in this process, as executables, and by others' runtimes.

Each takes the configuration list of today. What fails in an orderly way raises `Refused`; anything
else that is raised is a fault.
"""

from __future__ import annotations

import io
import json
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Protocol

from harness.agent import AgentProcess
from pycni.agent.executables import install
from pycni.cli.main import main as cli
from pycni.runtime import Network
from pycni.runtime.repair import repair_all
from pycni.runtime.report import AttachmentReport
from pycni.spec.errors import INTERNAL, CNIError
from pycni.spec.result import encode_result
from sequences.lab import STATE
from sequences.libcni import Libcni, PluginError

REFERENCE = Path("/usr/lib/cni")
# What a broken executable says.
ERROR = json.dumps({"cniVersion": "1.0.0", "code": 99, "msg": "broken by the test"})

Document = dict[str, Any]


class Refused(Exception):
    """The operation failed, and said why. code: of the error."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code = code

    def __str__(self) -> str:
        text: str = self.args[1]
        return text


class Way(Protocol):
    """How operations are done. `by` names the set of plugins, where there are several.

    start, stop: what runs beside, on the host that the calling thread is on.
    """

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def add(
        self, network: Document, container: str, netns: str, interface: str, ports: Iterable[int],
        by: str = "",
    ) -> Any: ...  # fmt: skip

    def delete(
        self, network: Document, container: str, netns: str, interface: str, ports: Iterable[int],
        by: str = "",
    ) -> None: ...  # fmt: skip

    def check(
        self, network: Document, container: str, netns: str, interface: str, ports: Iterable[int],
        by: str = "",
    ) -> None: ...  # fmt: skip

    def gc(self, network: Document, keep: Iterable[tuple[str, str]]) -> None: ...


class Programs:
    """A directory of plugins' executables, some of which can be broken for a while."""

    def __init__(self, folder: Path, *, socket: Path | None = None) -> None:
        self.folder = folder
        self.sound = folder.with_name(f"{folder.name}-sound")
        install(self.sound, socket=socket)
        shutil.copytree(self.sound, folder)

    def break_(self, plugin: str, how: str) -> None:
        """how: "missing", or failing "before" or "after" having done its work."""
        path = self.folder / plugin
        path.unlink(missing_ok=True)
        if how == "missing":
            return
        work = f"'{self.sound / plugin}' > /dev/null 2>&1\n" if how == "after" else ""
        path.write_text(f"#!/bin/sh\n{work}echo '{ERROR}'\nexit 1\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)

    def fix(self, plugin: str) -> None:
        """Make it whole again; what was not broken stays."""
        path = self.folder / plugin
        path.unlink(missing_ok=True)
        shutil.copy2(self.sound / plugin, path)


class InProcess:
    """pycni's runtime; engine: "auto" calls pycni's plugins in this process, "exec" runs them."""

    def __init__(self, folder: Path, engine: str = "auto") -> None:
        self.engine = engine
        self._folder = folder

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def _network(self, network: Document) -> Network:
        return Network.from_dict(
            network, plugin_dirs=[self._folder], engine=self.engine, cache_dir=STATE
        )

    def add(
        self, network: Document, container: str, netns: str, interface: str, ports: Iterable[int],
        by: str = "",
    ) -> Any:  # fmt: skip
        with orderly():
            result = self._network(network).add(
                container, netns, interface, capabilities=capabilities(ports)
            )
        return encode_result(result, network["cniVersion"])

    def delete(
        self, network: Document, container: str, netns: str, interface: str, ports: Iterable[int],
        by: str = "",
    ) -> None:  # fmt: skip
        with orderly():
            self._network(network).delete(
                container, netns, interface, capabilities=capabilities(ports)
            )

    def check(
        self, network: Document, container: str, netns: str, interface: str, ports: Iterable[int],
        by: str = "",
    ) -> None:  # fmt: skip
        with orderly():
            self._network(network).check(container, netns, interface)

    def gc(self, network: Document, keep: Iterable[tuple[str, str]]) -> None:
        with orderly():
            self._network(network).gc(list(keep), force=True)  # its list is complete


class ByAgent(InProcess):
    """pycni's runtime, whose plugins' launchers ask an agent."""

    def __init__(self, programs: Path, folder: Path) -> None:
        super().__init__(programs, "exec")
        self._agent = AgentProcess(folder)

    def start(self) -> None:
        self.stop()
        self._agent.start()

    def stop(self) -> None:
        if self._agent.process is not None:
            self._agent.kill()
            self._agent.process = None


class ByLibcni:
    """A runtime on libcni. by: "reference" has the Go plugins do it, else pycni's do."""

    def __init__(self, folder: Path) -> None:
        self._ours = Libcni([folder])
        self._theirs = Libcni([REFERENCE])

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def _libcni(self, by: str) -> Libcni:
        return self._theirs if by == "reference" else self._ours

    def add(
        self, network: Document, container: str, netns: str, interface: str, ports: Iterable[int],
        by: str = "",
    ) -> Any:  # fmt: skip
        with orderly(by):
            return self._libcni(by).add(network, container, netns, interface, capabilities(ports))

    def delete(
        self, network: Document, container: str, netns: str, interface: str, ports: Iterable[int],
        by: str = "",
    ) -> None:  # fmt: skip
        with orderly(by):
            self._libcni(by).delete(network, container, netns, interface, capabilities(ports))

    def check(
        self, network: Document, container: str, netns: str, interface: str, ports: Iterable[int],
        by: str = "",
    ) -> None:  # fmt: skip
        with orderly(by):
            self._libcni(by).check(network, container, netns, interface, capabilities(ports))

    def gc(self, network: Document, keep: Iterable[tuple[str, str]]) -> None:
        with orderly():
            self._ours.gc(network, keep)


def repair(programs: Programs) -> list[AttachmentReport]:
    """`pycni repair --all`, as it says what became of each."""
    with orderly():
        return repair_all(cache_dir=STATE, plugin_dirs=[programs.folder])


def reclaim(documents: Iterable[Document], folder: Path) -> None:
    """`pycni ipam reclaim`, for networks configured as given."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for document in documents:
        (folder / f"{document['name']}.conflist").write_text(json.dumps(document))
    arguments = ["ipam", "reclaim", "-o", "json", "--conf-dir", str(folder)]
    words = io.StringIO()
    with redirect_stdout(io.StringIO()), redirect_stderr(words):
        try:
            cli(arguments, prog_name="pycni")
        except SystemExit as end:
            if end.code:
                raise Refused(1, words.getvalue()) from None


@contextmanager
def orderly(by: str = "") -> Iterator[None]:
    """What may be refused is: raise `Refused` for it."""
    is_reference = by == "reference"  # all of whose errors have one code
    try:
        yield
    except (CNIError, PluginError) as error:
        details = getattr(error, "details", "")
        if error.code == INTERNAL and not is_reference:
            raise
        raise Refused(error.code, f"{error} ({details})" if details else str(error)) from error


def capabilities(ports: Iterable[int]) -> Document:
    """What a runtime passes for published ports, by both protocols."""
    mappings = [
        {"hostPort": port, "containerPort": 80, "protocol": protocol}
        for port in ports
        for protocol in ("tcp", "udp")
    ]
    return {"portMappings": mappings} if mappings else {}
