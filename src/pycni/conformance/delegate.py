"""An address plugin that takes notes: what a plugin under test hands to those it delegates to."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycni.spec.versions import ALL, at_least

TYPE = "conformance-ipam"
DIRECTORY = "/run/conformance/bin"

_FOLDER = Path("/run/conformance")
_CALLS = _FOLDER / "calls"
_ANSWERS = _FOLDER / "answers"

SAID = "conformance-ipam was here"

# Atomic by rename: a call that is being written down is not yet among the calls.
_SCRIPT = f"""\
#!/bin/sh
here={_CALLS}/.$$
mkdir -p $here && env -0 > $here/environ && cat > $here/stdin
mv $here {_CALLS}/$(date +%s%N)-$$
echo '{SAID}' >&2
if [ "$CNI_COMMAND" = VERSION ]; then
  echo '{{"cniVersion": "1.1.0", "supportedVersions": {json.dumps(ALL)}}}'
elif [ -f {_ANSWERS}/fail-$CNI_COMMAND ]; then
  cat {_ANSWERS}/fail-$CNI_COMMAND
  exit 1
elif [ "$CNI_COMMAND" = ADD ]; then
  cat {_ANSWERS}/$CNI_CONTAINERID.$CNI_IFNAME
fi
"""


@dataclass(frozen=True)
class Call:
    """One call of the delegate, as it saw it."""

    environ: dict[str, str]
    stdin: Any

    @property
    def command(self) -> str:
        return self.environ.get("CNI_COMMAND", "")


def install() -> None:
    """Put the delegate's executable in place; its folder belongs on CNI_PATH."""
    for folder in (Path(DIRECTORY), _CALLS, _ANSWERS):
        folder.mkdir(parents=True, exist_ok=True)
    path = Path(DIRECTORY, TYPE)
    path.write_text(_SCRIPT)
    path.chmod(0o755)


def give(container: str, ifname: str, number: int, version: str) -> None:
    """Have the delegate answer an ADD for this attachment, with an address of its own."""
    offset = sum(map(ord, ifname)) % 100  # a second interface gets another address
    document = result_document(version, f"10.202.{offset}.{number + 1}/16", "10.202.200.1")
    (_ANSWERS / f"{container}.{ifname}").write_text(json.dumps(document))


def refuse(command: str, code: int, message: str) -> None:
    """Have the delegate fail from now on at a command."""
    error = {"cniVersion": "1.0.0", "code": code, "msg": message, "details": "as asked"}
    (_ANSWERS / f"fail-{command}").write_text(json.dumps(error))


def calls() -> list[Call]:
    """The calls so far, in order."""
    found = []
    for folder in sorted(path for path in _CALLS.iterdir() if not path.name.startswith(".")):
        pairs = (folder / "environ").read_text(errors="replace").split("\0")
        environ = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        try:
            stdin = json.loads((folder / "stdin").read_bytes() or "null")
        except ValueError:
            stdin = None
        found.append(Call(environ, stdin))
    return found


def forget() -> None:
    """Drop the notes."""
    for folder in _CALLS.iterdir():
        shutil.rmtree(folder)


def result_document(
    version: str,
    address: str,
    gateway: str,
    *,
    interfaces: list[dict[str, Any]] | None = None,
    interface: int | None = None,
) -> dict[str, Any]:
    """A result with one IPv4 address and a default route, in the form of a version."""
    if not at_least(version, "0.3.0"):
        routes = [{"dst": "0.0.0.0/0", "gw": gateway}]
        return {
            "cniVersion": version,
            "ip4": {"ip": address, "gateway": gateway, "routes": routes},
            "dns": {},
        }
    ip: dict[str, Any] = {"address": address, "gateway": gateway}
    if interface is not None:
        ip["interface"] = interface
    if not at_least(version, "1.0.0"):
        ip["version"] = "4"
    document: dict[str, Any] = {
        "cniVersion": version,
        "ips": [ip],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dns": {},
    }
    if interfaces:
        document["interfaces"] = interfaces
    return document
