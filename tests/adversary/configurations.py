"""Configurations as a tenant writes them: sound ones, with something hostile at any declared key.

The keys are those that the plugins declare in their `config` classes, so a new one is tried by
itself; in `ipam` and in flannel's `delegate` they are those of the plugins that these are for.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from adversary.canary import FOLDER
from harness.fault_cases import CASES, LAB_CASES
from pycni import plugins
from pycni.spec import versions
from pycni.spec.config import NetConf
from pycni.spec.schema import (
    CIDR,
    Address,
    Anything,
    Config,
    Flag,
    Integer,
    Kind,
    ListOf,
    MACAddress,
    MapOf,
    Object,
)

Document = dict[str, Any]
Place = tuple[tuple[str, ...], Kind]

# Ways to the canary: straight, by way of what is allowed, and as somebody may misread them.
STRAIGHT = (
    f"{FOLDER}/new", f"{FOLDER}/secret", f"{FOLDER}/leases", f"{FOLDER}/socket", f"{FOLDER}",
    f"{FOLDER}/program", f"{FOLDER}/resolv.conf", f"{FOLDER}/subnet.env", f"{FOLDER}/debug.json",
    f"{FOLDER}/link", f"{FOLDER}/fifo", f"{FOLDER}/new/deep/er", f"{FOLDER}/",
)  # fmt: skip
UPWARDS = (
    "../secret", "/run/cni/../elsewhere/new", f"/sys/devices/../..{FOLDER}",
    f"/etc/cni/../..{FOLDER}/resolv.conf", f"../../../../../../..{FOLDER}/secret",
    f"/var/lib/cni/networks/../../../../{FOLDER}/leases", f"..{FOLDER}/secret", f"~/..{FOLDER}/x",
    "/run/cni/noop/../../elsewhere/debug.json", f"/var/log/pycni/../../../{FOLDER}/secret",
    "/proc/self/cwd/../secret", f"net/../../..{FOLDER}/secret",
    f"net.ipv4.conf.../../../../..{FOLDER}/secret",
)  # fmt: skip
MISREAD = (
    "secret", "./new", f"/{FOLDER}/new", f"{FOLDER}/secret\0", f"/run/cni\0{FOLDER}/new",
    f"\0{FOLDER}/new", f"/run/cni/x\n{FOLDER}/new", f"/proc/self/root{FOLDER}/secret",
    f"file://{FOLDER}/secret", f"@{FOLDER}/socket",
)  # fmt: skip
WAYS_OUT = (*STRAIGHT, *UPWARDS, *MISREAD)
# What something may act on: shells, templates, terminals, logs, rules, kernels.
TEXTS = (
    f"$(cat {FOLDER}/secret)", f"`{FOLDER}/program`", f"|{FOLDER}/program", f"; {FOLDER}/program;",
    f"x' ; {FOLDER}/program #", f'"; include "{FOLDER}/rules.nft"; #',
    f'\ninclude "{FOLDER}/rules.nft"\n', f'include "{FOLDER}/rules.nft"',
    "\nCOMMIT\n*filter\n-A INPUT -j ACCEPT\nCOMMIT\n", "-A INPUT -j ACCEPT", "-j", "-h", "-jDROP",
    f"--modprobe={FOLDER}/program", f"-M{FOLDER}/program", "--help", "-rf", "--", "-t filter", "!",
    "accept", "drop", "meta mark set 0x4000", "ip saddr set 10.9.9.9", "tcp dport vmap {22:drop}",
    "notrack", "ip saddr 10.0.0.0/8 accept", "} ; flush ruleset ; {",
    "jump input", "queue", "log", "@set", "counter", "-d", "10.9.0.0/16", "ip", "saddr",
    "%s%n%p", "%n", "{0}", "{{7*7}}", "${jndi:x}", "<script>alert(1)</script>", "&lt;", "\\", '"',
    "'", "\x1b[2J\x1b]0;x\a", "\u202e", "\u2028", "\r\n", "\t", " ", "\x7f", "\x85", "a\nb",
    "\0", "a\0b", "\ud800", "\udcff\udc80", "\ufffe", "é" * 9, "İ", "ﬁ", "x" * 16, "x" * 256,
    "x" * 300, "/" * 300, "a/" * 3000, f"/run/cni/{'x' * 300}", f"/run/cni/{'y/' * 2500}",
    "/var/lib/cni/" + "z" * 5000, "é" * 3000, "x" * 100_000,
)  # fmt: skip
_GROUPS = (STRAIGHT, UPWARDS, MISREAD, TEXTS)
# A port of the host's that leads to another's container, and its bridge.
OTHERS = ("vethn", "brn")
# What is right at some keys, and means something on the host.
NAMES = (
    *OTHERS, "", ".", "..", "a/b", "a:b", "lo", "all", "default", "eth0", "lan0", "br0", "lan%d",
    "INPUT", "ACCEPT", "CNI-ADMIN", "CNI-FORWARD", "KUBE-MARK-MASQ", "input", "IFNAME",
    "net.ipv4.ip_forward", "net.ipv4.conf.IFNAME.arp_filter", "kernel.core_pattern",
    "net/../kernel/core_pattern", "kernel/modprobe", "vm.swappiness", "net.core.bpf_jit_enable",
    "bridge", "host-local", "static", "dhcp", "flannel", "noop", "debug", "../program", "program",
    "nftables", "iptables", "firewalld", "isolated", "same-bridge", "trusted", "l2", "private",
    "vepa", "passthru", "tcp", "udp", "sctp", "icmp", "TCP", "debug", "info", "0.0.0.0/0", "::/0",
    "10.8.0.1", "10.8.0.0/24", "10.8.0.9/24", "fd00:8::/64", "127.0.0.1", "::1", "224.0.0.1",
    "255.255.255.255/32", "::ffff:10.0.0.1", "10.0.0.0/33", "02:00:00:00:00:01",
    "ff:ff:ff:ff:ff:ff", "1.1.0", "0.1.0", "9.9.9", "0000:00:01.0", "/sys/devices/virtual/net/lo",
    "/var/lib/cni/networks", "/run/cni", "/run/cni/tuning", "/run/cni/noop/sound.json",
    "/run/cni/noop/text", "/run/cni/noop/new", "/run/cni/none.sock", "/var/log/pycni/log",
    "/run/cni/flannel", "/var/lib/cni/flannel", "/etc/resolv.conf", "/etc/cni", "sound.log",
    "/proc/1/ns/net", "/proc/self/environ", "/etc/shadow", "/dev/null", "/dev/stdin", "null",
)  # fmt: skip
NUMBERS = (0, -1, 1, 2, 68, 1280, 1500, 4094, 4095, 65535, 65536, 1 << 31, 1 << 32, 1 << 63,
           -(1 << 63), 1 << 64, 10**300, 0.5, -0.0, 1e308)  # fmt: skip

TEXT = st.sampled_from(WAYS_OUT) | st.sampled_from(TEXTS) | st.sampled_from(NAMES)
LEAVES = TEXT | st.none() | st.booleans() | st.sampled_from(NUMBERS)
ANYTHING = st.recursive(
    LEAVES | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)

# Address plugins, and plugins that others delegate to: their keys within those of the others.
_WITHIN = {"ipam": ("host-local", "static", "dhcp"), "delegate": ("bridge", "ptp", "macvlan")}
# At the end of a key that is written a second time; `encoded` takes it away.
_TWICE = "\ue000"


def sound(name: str) -> list[Document]:
    """Configurations of a plugin that it works with, and what the plugin itself declares it for."""
    found = [
        _at_home(case.keys)
        for case in (*CASES, *LAB_CASES)
        if case.plugin == name and "firewalld" not in case.name
    ]
    more: dict[str, list[Document]] = {
        "dhcp": [{"ipam": {"type": "dhcp"}}],
        "static": [{"ipam": {"type": "static", "addresses": [{"address": "10.8.0.5/24"}]}}],
        "firewall": [{"ingressPolicy": "isolated"}],
        "debug": [{"cniOutput": "/var/log/pycni/out"}],
        "noop": [{"debugFile": "/run/cni/noop/sound.json", "commandLog": "/run/cni/noop/log"}, {}],
        "portmap": [
            {"conditionsV4": ["-d", "10.9.0.0/16"], "runtimeConfig": _PORTS},
            {"conditionsV4": ["ip", "daddr", "10.9.0.0/16"], "runtimeConfig": _PORTS},
            {"externalSetMarkChain": "MARKS", "runtimeConfig": _PORTS},
        ],
        "host-device": [{"pciBusID": "0000:00:01.0"}, {"kernelpath": "/sys/devices/pci0/x"},
                        {"runtimeConfig": {"deviceID": "0000:00:01.0"}}],
    }  # fmt: skip
    return [*found, *more.get(name, [] if found else [{}])]


_PORTS = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}


def is_chained(name: str) -> bool:
    """Whether it works on an interface that is there."""
    chained = {case.plugin for case in (*CASES, *LAB_CASES) if case.chained}
    return name in chained | {"debug", "noop"}


def places(name: str) -> list[Place]:
    """Every key that a plugin's configuration declares, at any depth of objects."""
    found: dict[tuple[str, ...], Kind] = dict(_places(plugins.load(name).config, ()))
    used = {key for document in sound(name) for key in document} | {"delegate"}
    for key, others in _WITHIN.items():
        if (key,) in found and key in used:
            for other in others:
                declared = dict(_places(plugins.load(other).config, ()))
                for path, kind in declared.items():
                    if key == "delegate":
                        found.setdefault((key, *path), kind)
                    elif path[0] == key:
                        found.setdefault(path, kind)
    return sorted(found.items(), key=lambda item: item[0])


def _places(config: type[Config], path: tuple[str, ...]) -> Iterator[Place]:
    for declared in config.declared.values():
        here = (*path, declared.key)
        yield here, declared.kind
        if isinstance(declared.kind, Object):
            yield from _places(declared.kind.config, here)


def values(kind: Kind) -> st.SearchStrategy[Any]:
    """Values for a key: of its kind, with something hostile wherever text is; or anything."""
    fitting: st.SearchStrategy[Any] = TEXT
    if isinstance(kind, Object):
        declared = {item.key: values(item.kind) for item in kind.config.declared.values()}
        fitting = st.fixed_dictionaries({}, optional=declared)
    elif isinstance(kind, ListOf):
        fitting = st.lists(values(kind.item), min_size=1, max_size=4)
    elif isinstance(kind, MapOf):
        fitting = st.dictionaries(TEXT, values(kind.item), max_size=3)
    elif isinstance(kind, Flag):
        fitting = st.booleans()
    elif isinstance(kind, Integer):
        fitting = st.sampled_from(NUMBERS) | st.integers(kind.minimum, kind.maximum)
    elif isinstance(kind, Address):
        fitting = st.sampled_from(("10.8.0.1", "10.8.0.77", "fd00:8::7", "::", "0.0.0.0")) | TEXT
    elif isinstance(kind, CIDR):
        fitting = st.sampled_from(("10.8.0.0/24", "10.8.3.7/30", "fd00:8::/64", "0.0.0.0/0")) | TEXT
    elif isinstance(kind, MACAddress):
        fitting = st.sampled_from(("02:00:00:00:00:09", "01:00:5e:00:00:01")) | TEXT
    elif isinstance(kind, Anything):
        fitting = ANYTHING
    elif choices := getattr(kind, "choices", ()):
        fitting = st.sampled_from(choices) | TEXT
    return st.one_of(fitting, fitting, fitting, ANYTHING)


def results() -> st.SearchStrategy[Any]:
    """Results that no plugin has given."""
    links = st.sampled_from((*OTHERS, "lan0", "lan1", "br0", "eth0", "veth0", "lo"))
    interfaces = st.fixed_dictionaries(
        {"name": links | TEXT},
        optional={"sandbox": TEXT, "mac": TEXT, "socketPath": TEXT, "pciID": TEXT},
    )
    ips = st.fixed_dictionaries(
        {"address": st.sampled_from(("10.8.0.2/24", "10.7.0.2/24", "fd00:8::2/64")) | TEXT},
        optional={"interface": st.integers(-1, 3) | st.sampled_from(NUMBERS), "gateway": TEXT},
    )
    routes = st.fixed_dictionaries({"dst": TEXT}, optional={"gw": TEXT, "table": LEAVES})
    return st.fixed_dictionaries(
        {},
        optional={
            "cniVersion": st.sampled_from(versions.ALL) | TEXT,
            "interfaces": st.lists(interfaces, max_size=3),
            "ips": st.lists(ips, max_size=3),
            "routes": st.lists(routes, max_size=2),
            "dns": ANYTHING,
        },
    )


@st.composite
def documents(draw: st.DrawFn, name: str) -> Document:
    """A configuration of a plugin with one to four keys of the tenant's making."""
    document = named(name, copy.deepcopy(draw(st.sampled_from(sound(name)))))
    for _ in range(draw(st.integers(1, 4))):
        path, kind = draw(st.sampled_from(places(name)))
        value = draw(results() if path[-1] == "prevResult" else values(kind))
        put(document, path, value, draw(st.sampled_from(_SPELLINGS)))
    return document


def lists() -> st.SearchStrategy[list[Document]]:
    """Of a network: a plugin that makes an interface, most often a sound one, and others behind."""
    chained = st.sampled_from([name for name in plugins.NAMES if is_chained(name)])
    first = st.sampled_from(("bridge", "ptp", "flannel"))
    return st.builds(
        lambda one, others: [one, *others],
        first.map(lambda name: named(name, copy.deepcopy(sound(name)[0])))
        | st.sampled_from(plugins.NAMES).flatmap(documents),
        st.lists(chained.flatmap(documents), max_size=3),
    )


def named(name: str, keys: Document) -> Document:
    return {"cniVersion": "1.1.0", "name": "net", "type": name, **keys}


_SPELLINGS = ("as declared", "as declared", "as declared", "otherwise", "both", "twice")


def put(document: Document, path: tuple[str, ...], value: Any, spelling: str) -> None:
    """Set a key, in another letter case, or beside what it is already."""
    for key in path[:-1]:
        inner = document.get(key)
        if not isinstance(inner, dict):
            inner = document[key] = {}
        document = inner
    key = path[-1]
    if spelling in ("otherwise", "both"):
        if spelling == "otherwise":
            document.pop(key, None)
        key = key.upper() if key.upper() != key else key.lower()
    elif spelling == "twice":
        key += _TWICE
    document[key] = value


def encoded(document: Any, *, raw: bool = False) -> bytes:
    """As the runtime hands it on. raw: text as it is, instead of escapes; not always Unicode."""
    if raw:
        text = json.dumps(document, ensure_ascii=False).replace(_TWICE, "")
        return text.encode("utf-8", "surrogatepass")
    return json.dumps(document).replace("\\ue000", "").encode()


def sweep(name: str, first: int, many: int) -> Iterator[tuple[str, Document]]:
    """Configurations with one hostile value, with words that say which.

    A key of the plugin's own has `many` of each group of values, from the one numbered `first` on,
    and of texts more, the most where it has a list of words; a key that many plugins have, `many`
    in all. Over the rounds, and the plugins, it has all.
    """
    shared = {declared.key for declared in NetConf.declared.values()} | {"delegate"}
    choices = sound(name)
    for number, (path, kind) in enumerate(places(name)):
        if path[0] in shared and name not in _WITHIN["ipam"]:
            groups = [(_GROUPS[(first + number) % len(_GROUPS)], many)]
        else:
            words = 32 * many if isinstance(kind, ListOf) else 4 * many
            groups = [(group, words if group is TEXTS else many) for group in _GROUPS]
        texts = [
            group[(first + number + count) % len(group)]
            for group, times in groups
            for count in range(times)
        ]
        for count, text in enumerate(texts):
            document = named(name, copy.deepcopy(choices[(number + count) % len(choices)]))
            put(document, path, _wrapped(text, kind), "as declared")
            yield f"{name}, {'.'.join(path)}: {text!r:.200}", document
    for document in choices:
        yield f"{name}: a forged prevResult", {**named(name, document), "prevResult": FORGED}


# It lists another's port and an interface of the host's.
FORGED = {
    "cniVersion": "1.1.0",
    "interfaces": [
        {"name": OTHERS[1]}, {"name": OTHERS[0]}, {"name": "lan0"},
        {"name": "eth0", "sandbox": "/run/netns/x"},
    ],
    "ips": [{"address": "10.8.0.2/24", "interface": 3}],
}  # fmt: skip


def _wrapped(text: str, kind: Kind) -> Any:
    """A text as the items of a key's lists and objects."""
    if isinstance(kind, ListOf):
        return [_wrapped(text, kind.item)]
    return {text: _wrapped(text, kind.item)} if isinstance(kind, MapOf) else text


def _at_home(value: Any) -> Any:
    """A configuration whose files are where they are by default."""
    if isinstance(value, dict):
        home = {key: _at_home(item) for key, item in value.items() if key != "subnetFile"}
        if str(home.get("dataDir", "")).startswith("FOLDER"):
            del home["dataDir"]
        return home
    return [_at_home(item) for item in value] if isinstance(value, list) else value
