"""A network whose plugin is host-local."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pycni.plugins.host_local import plugin
from pycni.sdk.dispatch import perform
from pycni.sdk.request import Request
from pycni.spec.errors import CNIError
from pycni.spec.result import Result

V4 = {"subnet": "10.1.2.0/24"}


V6 = {"subnet": "fd00:1::/64"}


SMALL = {"subnet": "10.1.2.0/29"}  # .2 to .6 besides the gateway


class Network:
    """A network whose plugin is host-local."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.path = data_dir / "net"

    def request(
        self,
        command: str,
        container: str = "c1",
        ifname: str = "eth0",
        *,
        args: str = "",
        top: dict[str, Any] | None = None,
        **ipam: Any,
    ) -> Request:
        if not ipam:
            ipam = {**V4}
        document = {
            "cniVersion": "1.1.0",
            "name": "net",
            "type": "bridge",
            "ipam": {"type": "host-local", "dataDir": str(self.data_dir), **ipam},
            **(top or {}),
        }
        return Request(command, document, container, "/run/netns/none", ifname, args)

    def run(self, command: str, *args: Any, **kwargs: Any) -> Result | None:
        return perform(plugin, self.request(command, *args, **kwargs))

    def add(self, *args: Any, **kwargs: Any) -> list[str]:
        """The addresses that an ADD gives."""
        result = self.run("ADD", *args, **kwargs)
        assert result is not None
        return [str(entry.address) for entry in result.ips]

    def error(self, command: str, *args: Any, **kwargs: Any) -> CNIError:
        with pytest.raises(CNIError) as caught:
            self.run(command, *args, **kwargs)
        return caught.value

    def held(self) -> dict[str, str]:
        if not self.path.exists():
            return {}
        return {
            item.name: item.read_bytes().decode().replace("\r\n", " ")
            for item in sorted(self.path.iterdir())
            if item.name != "lock" and not item.name.startswith("last_reserved_ip.")
        }


@pytest.fixture
def net(tmp_path: Path) -> Network:
    return Network(tmp_path / "networks")
