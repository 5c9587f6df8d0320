"""resolv.conf(5) as a result's DNS settings. Used by host-local, where a configuration names one.

As the reference reads it: the last `domain` counts, every other keyword adds up over all its lines.
"""

from __future__ import annotations

from pycni.sdk import allowed_paths
from pycni.spec.config import DNS
from pycni.spec.errors import IO_FAILURE, CNIError
from pycni.state.files import read_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.sdk.request import Request


def read_resolv_conf(request: Request, path: str) -> DNS:
    """The DNS settings in a file. Raises CNIError: code 7 if it is not allowed, code 5."""
    import os

    allowed_paths.require("host-local.resolvConf", path, request.environ)
    try:
        # /etc/resolv.conf is a symbolic link on many hosts.
        data = read_file(os.path.realpath(path))
    except OSError as error:
        raise CNIError(
            IO_FAILURE,
            f"cannot read resolvConf {path}: {error.strerror}",
            '"resolvConf" of "ipam" must name a readable file',
        ) from None
    return parse_resolv_conf(data.decode("utf-8", "replace"))


def parse_resolv_conf(text: str) -> DNS:
    """The name servers, domain, search list and options of a resolv.conf."""
    nameservers: list[str] = []
    search: list[str] = []
    options: list[str] = []
    domain = ""
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2 or words[0][0] in "#;":
            continue
        if words[0] == "nameserver":
            nameservers.append(words[1])
        elif words[0] == "domain":
            domain = words[1]
        elif words[0] == "search":
            search += words[1:]
        elif words[0] == "options":
            options += words[1:]
    return DNS(tuple(nameservers), domain, tuple(search), tuple(options))
