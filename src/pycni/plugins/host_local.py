"""host-local: hands out addresses of configured ranges and remembers them on this host.

An ADD gives one address of each range set, requested or the next free one in round robin, and
keeps the whole network locked meanwhile; it takes all or nothing. The state is the reference's
(see `pycni.state.leases`), so that either may release what the other reserved.
"""

from __future__ import annotations

import posix

from pycni.plugins.shared.address_plugin import AddressConf, RequestedIPs
from pycni.plugins.shared.ranges import Range, RangeConfig, RangeSet, make_range_sets
from pycni.sdk.plugin import Plugin
from pycni.spec.args import known_args
from pycni.spec.config import DNS, Attachment, NetConf
from pycni.spec.errors import (
    ADDRESS_UNAVAILABLE,
    ALREADY_EXISTS,
    CHECK_FAILED,
    INVALID_CONFIG,
    INVALID_ENVIRONMENT,
    UNAVAILABLE,
    CNIError,
    invalid_config,
)
from pycni.spec.ip import IPAddress, IPNetwork, parse_address_or_network
from pycni.spec.owner import Owner
from pycni.spec.result import IPConfig, Result, Route
from pycni.spec.schema import Config, Fault, Flag, ListOf, Object, Text, faults_error, field
from pycni.state import attachments
from pycni.state.files import below
from pycni.state.leases import DATA_DIR, LeaseStore

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pycni.sdk.request import Request

_RANGES = ListOf(ListOf(Object(RangeConfig)))


class IPAM(RangeConfig):
    """The `ipam` section. Its own `subnet`, if any, is a range set of one range."""

    type: str = field("type", Text(), "", doc="`host-local`", default_doc="required")
    ranges: tuple[tuple[RangeConfig, ...], ...] = field(
        "ranges", _RANGES, (), doc="range sets: each is a list of ranges and gives one address"
    )
    routes: tuple[Route, ...] = field(
        "routes", ListOf(Object(Route)), (), doc="routes for the result"
    )
    data_dir: str = field(
        "dataDir",
        Text(),
        DATA_DIR,
        doc="has a directory of leases for each network; in `/var/lib/cni`, `/run/cni`, or where "
        "the administrator allows",
    )
    resolv_conf: str = field(
        "resolvConf",
        Text(),
        "",
        doc="a resolv.conf(5) with the result's DNS: the host's, or where the administrator allows",
    )
    strict_status: bool = field(
        "strictStatus", Flag(), default=False, doc="STATUS fails when a range set is full"
    )


class HostLocalRuntimeConfig(RequestedIPs):
    """What a runtime passes for the capabilities `ips` and `ipRanges`."""

    ip_ranges: tuple[tuple[RangeConfig, ...], ...] = field(
        "ipRanges",
        _RANGES,
        (),
        doc="range sets that come before the configured ones; capability `ipRanges`",
    )


class HostLocalConf(AddressConf):
    """The configuration of a plugin that delegates to host-local, as far as it reads it."""

    ipam: IPAM | None = field("ipam", Object(IPAM), None, doc="addresses and how to give them")
    runtime_config: HostLocalRuntimeConfig = field(
        "runtimeConfig",
        Object(HostLocalRuntimeConfig),
        HostLocalRuntimeConfig(),
        doc="what the runtime gives",
    )

    def validate(self) -> None:
        self.range_sets()

    def range_sets(self) -> tuple[RangeSet, ...]:
        """The range sets in the order that numbers them. Raises CNIError (code 7)."""
        if self.ipam is None:
            raise invalid_config(
                "IPAM config missing 'ipam' key",
                '"ipam" is an object with "type": "host-local" and a "subnet" or "ranges"',
            )
        own: tuple[tuple[RangeConfig, ...], ...] = ((self.ipam,),) if self.ipam.subnet else ()
        sets = make_range_sets(self.runtime_config.ip_ranges + own + self.ipam.ranges)
        if not sets:
            raise invalid_config(
                "no IP ranges specified",
                '"ipam" needs "subnet": "10.1.0.0/16" or "ranges": [[{"subnet": "10.1.0.0/16"}]]',
            )
        self.require_room(item.family for item in sets)
        return sets


def _none(_address: IPAddress) -> bool:
    return False


class _IPAMDirectory(Config):
    data_dir: str = field("dataDir", Text(), DATA_DIR, doc="directory of the state")


class HostLocal(Plugin):
    """The host-local plugin."""

    type = "host-local"
    config = HostLocalConf

    def add(self, request: Request) -> Result:
        config = HostLocalConf.decode_unvalidated(request.document)
        sets = config.range_sets()
        ipam = config.ipam
        assert ipam is not None
        requested = _requested(config, request.args)
        dns = DNS()
        if ipam.resolv_conf:
            from pycni.plugins.shared.resolvconf import read_resolv_conf

            dns = read_resolv_conf(request, ipam.resolv_conf)
        attachment = request.owner.attachment
        with LeaseStore(
            request.allowed_path("host-local.dataDir", ipam.data_dir, DATA_DIR),
            request.network,
            create=True,
            cancel=request.cancel,
            note=_note,
            gives=_ranges_of(sets),
            in_use=_is_set,
        ) as leases:
            allocator = _Allocator(leases, sets, attachment, request.network)
            try:
                ips = allocator.allocate(requested)
            except BaseException:
                allocator.undo()
                raise
        return Result(ips=ips, routes=ipam.routes, dns=dns)

    def check(self, request: Request) -> None:
        config = HostLocalConf.decode(request.document)
        with _existing_leases(request) as leases:
            owned = leases.find(request.owner.attachment, _previous(request))
            where = leases.path
        if not owned:
            raise CNIError(
                CHECK_FAILED,
                f"host-local: Failed to find address added by container {request.container_id}",
                f"no file in {where} names it and interface {request.ifname}",
            )
        previous = request.prev_result
        if previous is None:
            return
        sets = config.range_sets()
        for entry in previous.ips:
            address = entry.address.address
            in_ranges = any(item.range_of(address) for item in sets)
            if in_ranges and address not in owned:
                raise CNIError(
                    CHECK_FAILED,
                    f"host-local: {address} is not reserved for container {request.container_id}",
                    f"prevResult has it, but reserved are {', '.join(map(str, owned))}; see "
                    f"{where}",
                )

    def delete(self, request: Request) -> None:
        with _existing_leases(request) as leases:
            leases.release(request.owner.attachment, likely=_previous(request))

    def gc(self, request: Request, keep: frozenset[Attachment]) -> None:
        network = request.network

        def is_noted(holder: Attachment) -> bool:
            """Whether something still names its addresses, or an ADD of it is under way."""
            return attachments.is_noted(Owner(network, holder.container_id, holder.ifname).tag)

        with _existing_leases(request) as leases:
            leases.collect(keep, is_noted)

    def status(self, request: Request) -> None:
        from pycni.plugins.shared.lease_usage import require_writable, usage

        config = HostLocalConf.decode_unvalidated(request.document)
        sets = config.range_sets()
        require_writable(below(_data_dir(request), request.network))
        with _existing_leases(request, _ranges_of(sets)) as leases:
            allocator = _Allocator(leases, sets, Attachment("", ""), request.network)
            for range_set in sets:
                if allocator.has_free(range_set):
                    continue
                full = CNIError(
                    UNAVAILABLE,
                    f"no IP addresses available in range set: {range_set}",
                    usage(leases, range_set),
                )
                assert config.ipam is not None
                if config.ipam.strict_status:
                    raise full
                from pycni.sdk.execute import write_or_give_up  # no other operation needs it

                # Runtimes put off the GC that would free some until STATUS succeeds.
                write_or_give_up(request.stderr, f"host-local: {full}\n".encode())


class _Allocator:
    """One ADD's choice of addresses, in an open store; `undo` gives back what it took."""

    def __init__(
        self, leases: LeaseStore, sets: tuple[RangeSet, ...], attachment: Attachment, network: str
    ) -> None:
        self._leases = leases
        self._network = network
        self._sets = sets
        self._attachment = attachment
        self._gateways = {item.gateway for range_set in sets for item in range_set.ranges}
        self._taken: list[IPAddress] = []

    def allocate(self, requested: list[IPAddress]) -> tuple[IPConfig, ...]:
        """One address of each range set, the requested ones where they belong."""
        held = self._leases.owned(self._attachment)
        left = list(requested)
        ips = []
        for index, range_set in enumerate(self._sets):
            wish = next((address for address in left if range_set.range_of(address)), None)
            try:
                self._refuse_second(range_set, held)
                if wish is None:
                    item, address = self._next(range_set, index)
                else:
                    left.remove(wish)
                    item, address = self._request(range_set, index, wish)
            except CNIError as error:
                raise error.with_context(f"failed to allocate for range {index}") from None
            ips.append(
                IPConfig(address=IPNetwork(address, item.subnet.prefix), gateway=item.gateway)
            )
        if left:
            raise CNIError(
                ADDRESS_UNAVAILABLE,
                f"failed to allocate all requested IPs: {' '.join(map(str, left))}",
                "each range set gives one address, and the range sets are "
                f"{' and '.join(map(str, self._sets))}",
            )
        return tuple(ips)

    def undo(self) -> None:
        """Give back what this call took, and nothing that the attachment had before."""
        if self._taken:
            try:
                self._leases.release(self._attachment, self._taken)
            except OSError:
                pass  # the failure that led here is the one to report; DEL will try again

    def has_free(self, range_set: RangeSet) -> bool:
        """Whether the range set has an address to give."""
        return any(True for _ in self._free(range_set, None)) or (
            self._leases.recheck() and any(True for _ in self._free(range_set, None))
        )

    def _refuse_second(self, range_set: RangeSet, held: list[IPAddress]) -> None:
        for address in held:
            if range_set.range_of(address):
                raise CNIError(
                    ALREADY_EXISTS,
                    f"{address} has been allocated to {self._attachment.container_id}, "
                    "duplicate allocation is not allowed",
                    f"interface {self._attachment.ifname} of this container was added before; "
                    "DEL comes before another ADD",
                )

    def _next(self, range_set: RangeSet, index: int) -> tuple[Range, IPAddress]:
        after = self._leases.last_reserved(index)
        while True:
            for item, address in self._free(range_set, after):
                if self._reserve(address, index):
                    return item, address
            if not self._leases.recheck():
                from pycni.plugins.shared.lease_usage import usage

                raise CNIError(
                    ADDRESS_UNAVAILABLE,
                    f"no IP addresses available in range set: {range_set}",
                    usage(self._leases, range_set),
                )

    def _request(
        self, range_set: RangeSet, index: int, address: IPAddress
    ) -> tuple[Range, IPAddress]:
        item = range_set.range_of(address)
        assert item is not None
        if address in self._gateways:
            raise CNIError(
                ADDRESS_UNAVAILABLE,
                f"requested ip {address} is subnet's gateway",
                "ask for another address, or set another gateway",
            )
        if not self._reserve(address, index):
            from pycni.plugins.shared.lease_usage import held_by

            lease = self._leases.holder(address)
            raise CNIError(
                ADDRESS_UNAVAILABLE,
                f"requested IP address {address} is not available in range set {range_set}",
                f"it is held{'' if lease is None else held_by(lease)}",
            )
        return item, address

    def _free(
        self, range_set: RangeSet, after: IPAddress | None
    ) -> Iterator[tuple[Range, IPAddress]]:
        """The free addresses of a range set in the order they are handed out."""
        for item, first, last in range_set.stretches(after):
            number = self._leases.next_free(range_set.family, first, last)
            while number is not None:
                address = item.address(number)
                if address not in self._gateways:
                    yield item, address
                number = self._leases.next_free(range_set.family, number + 1, last)

    def _reserve(self, address: IPAddress, index: int) -> bool:
        holder = self._living_holder(address)
        if holder is not None:  # its lease was lost
            self._leases.reserve(address, holder, index)
            return False
        if not self._leases.reserve(address, self._attachment, index):
            return False
        self._taken.append(address)
        return True

    def _living_holder(self, address: IPAddress) -> Attachment | None:
        """Who has an address, whatever the leases say: an attachment that is noted, and there."""
        tag = attachments.holder(self._network, str(address))
        if not tag:
            return None
        identity = attachments.read(tag)
        if identity is None or identity.owner.attachment == self._attachment:
            return None
        if str(address) not in identity.addresses:
            return None
        from pycni.steps import ownership
        from pycni.steps.namespaces import HostAndSandbox

        with HostAndSandbox(None) as kernel:
            alive = ownership.is_alive(kernel, identity)
        return identity.owner.attachment if alive else None


def _requested(config: HostLocalConf, args: str) -> list[IPAddress]:
    """The addresses asked for, in all three ways there are, without duplicates."""
    by_environment = known_args(args, "IP").get("IP")
    texts = (
        *((by_environment,) if by_environment else ()),
        *config.args.cni.ips,
        *config.runtime_config.ips,
    )
    addresses = []
    for text in texts:
        try:
            addresses.append(parse_address_or_network(text)[0])
        except ValueError:
            raise CNIError(
                INVALID_ENVIRONMENT if text == by_environment else INVALID_CONFIG,
                f"invalid IP address {text}",
                "a requested address is 10.1.2.3, or with a prefix length, which is not used",
            ) from None
    return list(dict.fromkeys(addresses))


def _data_dir(request: Request) -> str:
    """Where the state is, of a configuration that may be wrong in everything else."""
    ipam = NetConf.read_lenient(request.document, "", []).ipam
    if not isinstance(ipam, dict):
        return DATA_DIR
    faults: list[Fault] = []
    data_dir = _IPAMDirectory.read_lenient(ipam, "ipam", faults).data_dir
    if faults:
        raise faults_error(faults)
    return request.allowed_path("host-local.dataDir", data_dir, DATA_DIR)


def _existing_leases(request: Request, gives: Callable[[IPAddress], bool] = _none) -> LeaseStore:
    return LeaseStore(
        _data_dir(request),
        request.network,
        cancel=request.cancel,
        note=_note,
        gives=gives,
        in_use=_is_set,
    )


def _ranges_of(sets: tuple[RangeSet, ...]) -> Callable[[IPAddress], bool]:
    return lambda address: any(item.range_of(address) for item in sets)


def _previous(request: Request) -> list[IPAddress]:
    """The addresses in prevResult, as far as it can be read."""
    try:
        previous = request.prev_result
    except CNIError:
        return []
    return [] if previous is None else [entry.address.address for entry in previous.ips]


def _is_set(address: IPAddress) -> bool:
    """Whether an address is set in any network namespace of this host."""
    from pycni.kernel import all_addresses  # hardly ever needed

    return address in all_addresses.addresses()


def _note(text: str) -> None:
    posix.write(2, f"host-local: {text}\n".encode())


plugin = HostLocal()
