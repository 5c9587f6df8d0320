"""resolv.conf(5) as a result's DNS settings. No I/O.

As the reference reads it: the last `domain` counts, every other keyword adds up over all its lines.
"""

from __future__ import annotations

from pycni.spec.config import DNS


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
