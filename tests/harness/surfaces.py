"""Where bytes from outside come in: one function for each such place, for any bytes.

Each takes the bytes and hands them on as their real sender could. It returns if they are read or
refused with the error that its place has for bad input; any other exception is a fault of ours.
What is said beyond that (a result that cannot be written again, an address given twice) fails by
assertion. Called by the property tests, by the replay of the fuzzer's corpus, and by fuzz/run.
Nothing here needs privileges, and all files are below a directory that is made for it: what would
have a plugin write elsewhere is taken out of the input.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pycni import plugins
from pycni.agent import protocol
from pycni.dhcp.lease import Lease, Store
from pycni.dhcp.message import MalformedDHCPMessage as MalformedReply
from pycni.dhcp.message import Reply
from pycni.kernel import address, forwarding_events, link, neighbour, route, rule, tc
from pycni.kernel.netfilter import conntrack, nat_rules, nfnetlink
from pycni.kernel.netlink import codec
from pycni.kernel.netlink.codec import MalformedMessage, Message
from pycni.plan.steps import Sysctl
from pycni.plugins.shared import dhcp as dhcp_client
from pycni.plugins.shared import subnet_env
from pycni.plugins.shared.resolvconf import parse_resolv_conf
from pycni.plugins.shared.tuning_backup import Backup, Settings
from pycni.runtime.config import parse_network, parse_plugin
from pycni.runtime.errors import ConfigError
from pycni.runtime.lint import lint_file
from pycni.sdk.delegate import read_answer
from pycni.sdk.dispatch import Outcome, check_variables, make_request, serve
from pycni.sdk.execute import failed
from pycni.sdk.planned import PlannedPlugin
from pycni.sdk.request import Request, prev_result_or_empty
from pycni.spec import identity as identities
from pycni.spec import versions
from pycni.spec.args import known_args, parse_args
from pycni.spec.config import Attachment, network_name, parse_config, valid_attachments
from pycni.spec.errors import CNIError
from pycni.spec.ip import parse_address
from pycni.spec.jsontext import JSONError, dumps, loads
from pycni.spec.result import decode_result, encode_result, print_result, result_version
from pycni.state.attachment_files import Documents
from pycni.state.cache import ResultCache
from pycni.state.lease_index import boot_id
from pycni.state.leases import LeaseStore

COMMANDS = ("ADD", "CHECK", "DEL", "GC", "STATUS")
ATTACHMENT = Attachment("one", "eth0")


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A fresh directory, in memory where that can be had."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place) as path:
        yield Path(path)


def judge(outcome: Outcome) -> None:
    """What a plugin's process may leave: nothing, a JSON document, or an error object."""
    if outcome.code == 0:
        assert not outcome.stdout or isinstance(json.loads(outcome.stdout), dict)
        return
    error = json.loads(outcome.stdout)
    assert outcome.code == 1
    assert isinstance(error["msg"], str)
    assert not error["msg"].startswith("internal error"), error


def split(data: bytes) -> tuple[int, bytes]:
    """A number that chooses something, and the rest."""
    return (data[0], data[1:]) if data else (0, b"")


def variables(data: bytes) -> tuple[dict[str, str], bytes]:
    """An environment in lines of KEY=VALUE up to an empty line, and what follows it."""
    head, _, rest = data.partition(b"\n\n")
    pairs = (os.fsdecode(line).partition("=") for line in head.split(b"\n"))
    return {key: value for key, separator, value in pairs if separator}, rest


# --- the protocol ----------------------------------------------------------------------------


def json_text(data: bytes) -> None:
    """JSON as ours and as the standard library reads it."""
    text = data.decode("utf-8", "replace")
    try:
        value = loads(data)
    except JSONError as error:
        # Ours is the stricter one, in four points only.
        if any(word in str(error) for word in ("out of range", "nested", "bytes are", "JSON num")):
            return
        try:
            json.loads(text)
        except ValueError:
            return
        raise AssertionError(f"refused what is JSON: {error}") from error
    standard = json.loads(text)
    if not any("\ud800" <= character <= "\udfff" for character in json.dumps(standard)):
        assert _same(value, standard) or "\\ud" in text.lower()
    dumps(value).encode()
    again = dumps(loads(dumps(value)))  # a -0 has become 0
    assert dumps(loads(again)) == again


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(_same(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, list):
        return len(ours) == len(theirs) and all(map(_same, ours, theirs))
    return type(ours) is type(theirs) and ours == theirs


def environment(data: bytes) -> None:
    """What a runtime puts into a process's environment, and its stdin."""
    environ, stdin = variables(data)
    with contextlib.suppress(CNIError):
        if environ.get("CNI_COMMAND"):
            check_variables(environ)
            make_request(environ, parse_config(stdin))
    if environ.get("CNI_COMMAND") not in (None, "", *COMMANDS):
        judge(serve(plugins.load("bridge"), environ, lambda: stdin))


def cni_args(data: bytes) -> None:
    """CNI_ARGS, by itself and as the plugins take it that know some."""
    text = os.fsdecode(data.replace(b"\0", b""))
    for read in (parse_args, lambda given: known_args(given, "IP", "GATEWAY", "MAC")):
        with contextlib.suppress(CNIError):
            read(text)
    config = {
        "cniVersion": "1.0.0",
        "name": "net",
        "type": "static",
        "ipam": {"type": "static", "addresses": [{"address": "10.0.0.2/24"}]},
    }
    environ = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "one",
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": "/nowhere",
        "CNI_PATH": "/nowhere",
        "CNI_ARGS": text,
    }
    judge(serve(plugins.load("static"), environ, json.dumps(config).encode))


def configuration(data: bytes) -> None:
    """The configuration of each plugin, up to the plan that is made of it."""
    choice, stdin = split(data)
    name = plugins.NAMES[choice % len(plugins.NAMES)]
    plugin = plugins.load(name)
    try:
        document = parse_config(stdin)
        network_name(document)
        valid_attachments(document)
    except CNIError:
        pass
    try:
        document = parse_config(stdin)
    except CNIError:
        return
    faults = plugin.config.errors(document)
    dumps([str(fault) for fault in faults])
    if not isinstance(plugin, PlannedPlugin):
        return
    request = Request("DEL", document, "one", "/run/netns/one", "eth0")
    config = plugin.config.read_lenient(document, "", [])
    with contextlib.suppress(CNIError):
        request = request.replace(document={**document, "name": network_name(document)})
        plugin.plan(request, config, plugin.fill_in_gateways(config, prev_result_or_empty(request)))


def address_plugin(data: bytes) -> None:
    """host-local and static, whole: what they hand out is theirs to give, and DEL takes it back."""
    choice, stdin = split(data)
    name = ("host-local", "static")[choice & 1]
    with folder() as state:
        try:
            document = parse_config(stdin)
        except CNIError:
            return
        if not isinstance(document.get("ipam"), dict):
            return  # would use the machine's own state
        document.pop("logFile", None)  # tests run as root: it would be written, wherever it is
        document["ipam"].pop("resolvConf", None)
        document["ipam"]["dataDir"] = str(state)
        stdin = dumps(document).encode()
        environ = {
            "CNI_CONTAINERID": "one",
            "CNI_IFNAME": "eth0",
            "CNI_NETNS": "/nowhere",
            "CNI_PATH": "/nowhere",
            "CNI_ARGS": "",
        }
        for command in ("ADD", "CHECK", "DEL"):
            given = {**environ, "CNI_COMMAND": command}
            outcome = serve(plugins.load(name), given, partial(bytes, stdin))
            judge(outcome)
            if command == "ADD" and outcome.code == 0:
                document["prevResult"] = json.loads(outcome.stdout)
                stdin = dumps(document).encode()
        if name == "host-local":
            left = [path for path in state.rglob("*") if _is_address(path.name)]
            assert left == [], left


def _is_address(name: str) -> bool:
    try:
        parse_address(name)
    except ValueError:
        return False
    return True


def result(data: bytes) -> None:
    """A result: of a plugin before, of a delegate, or of one that failed."""
    for version in versions.ALL:
        with contextlib.suppress(CNIError):
            read_answer(data, version)
    failed(1, data, b"").to_json()
    try:
        document = loads(data)
    except JSONError:
        return
    try:
        decoded = decode_result(document, result_version(document))
    except CNIError:
        return
    for version in versions.ALL:
        try:
            written = encode_result(decoded, version)
        except CNIError:
            continue
        assert encode_result(decode_result(written, version), version) == written
        json.loads(print_result(decoded, version))


def network_file(data: bytes) -> None:
    """A configuration file of the runtime, and what the linter says of it."""
    for read in (parse_network, parse_plugin):
        try:
            read(data, "/etc/cni/net.d/x")
        except ConfigError as error:
            dumps(error.to_json())
    with folder() as place:
        for name in ("x.conflist", "x.conf"):
            (place / name).write_bytes(data)
            for fault in lint_file(str(place / name)):
                dumps(str(fault))


# --- state on disk ---------------------------------------------------------------------------


def cache_file(data: bytes) -> None:
    """A file of the result cache, as any runtime may have left it."""
    with folder() as root:
        cache = ResultCache(str(root))
        path = Path(cache.path("net", "one", "eth0"))
        path.parent.mkdir()
        path.write_bytes(data)
        for entry in cache.attachments():
            assert (entry.network, entry.container_id, entry.ifname) == ("net", "one", "eth0")
        try:
            found = cache.read("net", "one", "eth0")
            if found is not None:
                found.decoded_result()
                cache.write(found)
        except CNIError:
            pass
        cache.delete("net", "one", "eth0")
        assert not path.exists()


def lease_directory(data: bytes) -> None:
    """Lease files: names and contents, in lines of NAME=CONTENT with escapes for what cannot be."""
    with folder() as root:
        network = root / "net"
        network.mkdir()
        for line in data.split(b"\n")[:32]:
            name, separator, content = line.partition(b"=")
            if separator and name not in (b"", b".", b"..") and not {0, 47}.intersection(name):
                with contextlib.suppress(OSError):
                    (network / os.fsdecode(name[:255])).write_bytes(
                        content.replace(b"\\r\\n", b"\r\n").replace(b"\\0", b"\0")
                    )
        with LeaseStore(str(root), "net", create=True) as leases:
            known = leases.leases()
            assert len({lease.address for lease in known}) == len(known)
            leases.owned(ATTACHMENT)
            leases.last_reserved(0)
            free = leases.next_free(socket.AF_INET, 1, 0xFFFFFFFE)
            assert free is not None
            taken = parse_address("10.0.0.2")
            given = leases.reserve(taken, ATTACHMENT, 0)
            assert given != (str(taken) in {str(lease.address) for lease in known})
            leases.release(ATTACHMENT)
            leases.collect([])


def lease_index(data: bytes) -> None:
    """A damaged index that says it may be believed."""
    with folder() as root:
        with LeaseStore(str(root), "net", create=True) as leases:
            for number in range(1, 4):
                leases.reserve(parse_address(f"10.0.0.{number}"), ATTACHMENT, 0)
        path = root / ".pycni" / "net.index"
        good = bytearray(path.read_bytes())
        status = (root / "net").stat()
        header = struct.pack(
            "<8s36sQQq", b"pycniLI1", boot_id(), status.st_dev, status.st_ino, status.st_mtime_ns
        )
        # Pairs of an offset and what is there, behind what makes it believed.
        for at in range(0, len(data) - 10, 10):
            offset = len(header) + int.from_bytes(data[at : at + 2], "little") % len(good)
            good[offset : offset + 8] = data[at + 2 : at + 10]
        good[: len(header)] = header
        path.write_bytes(bytes(good[: max(len(header), len(good) - 16 * (len(data) % 3))]))
        with LeaseStore(str(root), "net", create=True) as leases:
            for family in (socket.AF_INET, socket.AF_INET6):
                leases.next_free(family, 0x0A000001, 0x0A0000FE)
            leases.owned(ATTACHMENT)
            # Whatever the index says, the file system has the last word.
            assert not leases.reserve(parse_address("10.0.0.2"), Attachment("two", "eth0"), 0)
            leases.reserve(parse_address("10.0.0.9"), Attachment("two", "eth0"), 0)
            leases.release(Attachment("two", "eth0"))


def identity(data: bytes) -> None:
    """What is noted of an attachment: read as it was written, or not at all."""
    found = identities.decode(data)
    if found is not None:
        assert identities.decode(identities.encode(found)) == found


def kept_document(data: bytes) -> None:
    """What tuning and flannel keep for DEL."""
    with folder() as place:
        for name in ("one_eth0.json", "one"):
            (place / name).write_bytes(data)
        request = Request("DEL", {"name": "net"}, "one", "", "eth0")
        with Backup(Documents(str(place)), request) as backup:
            for step in backup.restoration(Settings()):
                if isinstance(step, Sysctl):
                    assert step.key.startswith("net/"), step
                    assert not {"", ".", ".."}.intersection(step.key.split("/")), step
        config = {
            "cniVersion": "1.1.0",
            "name": "net",
            "type": "flannel",
            "dataDir": str(place),
            "subnetFile": str(place / "none"),
            "cni.dev/valid-attachments": [],
        }
        environ = {
            "CNI_CONTAINERID": "one",
            "CNI_IFNAME": "eth0",
            "CNI_NETNS": "",
            "CNI_PATH": str(place),
        }
        for command in ("GC", "DEL"):
            judge(
                serve(
                    plugins.load("flannel"),
                    {**environ, "CNI_COMMAND": command},
                    json.dumps(config).encode,
                )
            )


def foreign_text(data: bytes) -> None:
    """Files that others write: flanneld's subnet.env, resolv.conf."""
    parse_resolv_conf(data.decode("utf-8", "replace"))
    with folder() as place:
        path = place / "subnet.env"
        path.write_bytes(data)
        with contextlib.suppress(CNIError):
            subnet_env.load(str(path))


# --- the kernel ------------------------------------------------------------------------------


def whole_link(data: bytes) -> list[object]:
    """A link message with all that is read of it only when asked for."""
    found = link.parse(data)
    return [
        getattr(found, name) for name, item in vars(link.Link).items() if isinstance(item, property)
    ]


def netlink(data: bytes) -> None:
    """A datagram as if from rtnetlink, and each message in it as every kind of answer."""
    decoders: list[Callable[[bytes], object]] = [
        whole_link, link.index_of, address.parse, rule.parse, neighbour.parse, tc.parse_qdisc,
        tc.parse_class, tc.parse_filter,
    ]  # fmt: skip
    try:
        messages = codec.unpack(data)
    except MalformedMessage:
        messages = []
    for message in [*messages[:8], Message(24, 0x200, 1, 1, data)]:
        for decode in decoders:
            with contextlib.suppress(MalformedMessage):
                decode(message.payload)
        for parse in (route.parse, forwarding_events.turned_off):
            with contextlib.suppress(MalformedMessage):
                parse(message)
        with contextlib.suppress(MalformedMessage):
            codec.outcome(message)


def netfilter(data: bytes) -> None:
    """What nf_tables and conntrack answer: elements, rules, flows; and what iptables prints."""
    with contextlib.suppress(MalformedMessage):
        nfnetlink.parse_elements(data)
    for found in (data, {"handle": 1, "code": data}, {"handle": 1, "userdata": data}):
        with contextlib.suppress(MalformedMessage):
            nfnetlink.parse_rule(found)
    with contextlib.suppress(MalformedMessage):
        conntrack.parse(data)
    names = ("meta", "payload", "bitwise", "cmp", "match", "target", "immediate", "nat")
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(MalformedMessage):
            nat_rules.parse_expressions(family, "c", 1, [(name, data) for name in names])
    for line in data.decode("utf-8", "replace").splitlines():
        nat_rules.parse_line(f"-A X {line}")


# --- sockets ---------------------------------------------------------------------------------


def agent_request(data: bytes) -> None:
    """What somebody sends to the agent."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(1)
        ours.settimeout(1)
        ours.sendall(data[: 1 << 16])
        ours.shutdown(socket.SHUT_WR)
        try:
            call = protocol.receive_call(theirs, 1.0)
        except (protocol.Refused, OSError):
            return
        assert "\0" not in call.plugin + call.version + "".join(call.environ.values())
        call.close()


def dhcp_reply(data: bytes) -> None:
    """What a DHCP server, or anyone who is on its network, sends."""
    try:
        reply = Reply.decode(data)
    except MalformedReply:
        return
    assert len(reply.domains(119)) <= len(data)
    assert all(item.dst.version == 4 for item in reply.routes)
    for text in (reply.message, reply.text(15), *reply.domains(119)):
        assert text.isprintable()
    try:
        lease = Lease.from_ack(reply, "02:00:00:00:00:01", 1000.0)
    except ValueError:
        return
    if lease.renew_at is not None:
        assert lease.rebind_at is not None
        assert lease.expires_at is not None
        assert 1000 < lease.renew_at <= lease.rebind_at <= lease.expires_at


def dhcp_state(data: bytes) -> None:
    """A file of the DHCP daemon's leases, and what the daemon's socket answers."""
    with folder() as place:
        (place / "x.json").write_bytes(data)
        for record in Store(str(place)).load():
            record.to_json()
        path = str(place / "socket")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            ours = socket.socket(socket.AF_UNIX)
            with ours:
                ours.connect(path)
                theirs, _ = listener.accept()
                with theirs:
                    theirs.sendall(data[: 1 << 16])
                    theirs.shutdown(socket.SHUT_WR)
                    with contextlib.suppress(CNIError):
                        dhcp_client.read_answer(dhcp_client.Lines(ours, path, None))


SURFACES: dict[str, Callable[[bytes], None]] = {
    function.__name__: function
    for function in (
        address_plugin,
        agent_request,
        cache_file,
        cni_args,
        configuration,
        dhcp_reply,
        dhcp_state,
        environment,
        foreign_text,
        identity,
        json_text,
        kept_document,
        lease_directory,
        lease_index,
        netfilter,
        netlink,
        network_file,
        result,
    )
}
