"""tuning: sets sysctls of the sandbox's network, and attributes of its interface.

ADD notes what it found in a file of the reference's form, and DEL puts that back.
"""

from __future__ import annotations

import errno

from pycni.kernel.netlink.constants import MIN_IPV6_MTU
from pycni.plan.plan import Plan
from pycni.plan.steps import SANDBOX, AllowedMAC, LinkSettings, Sysctl
from pycni.plugins.shared.tuning_backup import (
    ATTRIBUTES,
    Backup,
    Settings,
    in_force,
    saved_in,
    sysctl_key,
)
from pycni.sdk.chained import ChainedPlugin
from pycni.sdk.netns import find_sandbox, open_sandbox
from pycni.sdk.request import require_prev_result
from pycni.spec.args import mac_argument
from pycni.spec.config import NetConf
from pycni.spec.errors import INVALID_CONFIG, UNAVAILABLE, CNIError, invalid_config, join_errors
from pycni.spec.jsontext import lookup, repeated_keys
from pycni.spec.owner import Owner
from pycni.spec.schema import Config, MACAddress, Object, Text, field
from pycni.state.attachment_files import Documents
from pycni.state.files import read_file
from pycni.steps import executor, ownership

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, ClassVar

    from pycni.plan.steps import Step
    from pycni.sdk.request import Request
    from pycni.spec.config import Attachment
    from pycni.spec.result import Result
    from pycni.steps.namespaces import HostAndSandbox

ALLOWLIST = "/etc/cni/tuning/allowlist.conf"
DATA_DIR = "/run/cni/tuning"


class TuningArgs(Config):
    """Free arguments; those by convention go before the configuration."""

    cni: Settings = field(
        "cni", Object(Settings), Settings(), doc="in the place of the configuration's"
    )


class TuningRuntimeConfig(Config):
    """What the runtime gives for capability mac."""

    mac: str | None = field(
        "mac", MACAddress(), None, doc="the interface's address; capability `mac`"
    )


class TuningConfig(Settings, NetConf):
    """The keys of tuning."""

    data_dir: str = field(
        "dataDir",
        Text(),
        "",
        doc="where DEL finds what there was before; in there, in `/var/lib/cni/tuning`, or where "
        "the administrator allows",
        default_doc="`/run/cni/tuning`",
    )
    args: TuningArgs = field("args", Object(TuningArgs), TuningArgs(), doc="free arguments")
    runtime_config: TuningRuntimeConfig = field(
        "runtimeConfig",
        Object(TuningRuntimeConfig),
        TuningRuntimeConfig(),
        doc="what the runtime gives",
    )

    def documents(self, request: Request) -> Documents:
        """Where backups are. Raises CNIError for a directory that is not allowed."""
        return Documents(request.allowed_path("tuning.dataDir", self.data_dir, DATA_DIR))

    def wanted(self, cni_args: str) -> Settings:
        """What all the places that can ask for something ask for together."""
        given = self.args.cni
        values: dict[str, Any] = {}
        for name in Settings.declared:
            first, own = getattr(given, name), getattr(self, name)
            values[name] = own if first is None else first
        values["sysctl"] = {**(self.sysctl or {}), **(given.sysctl or {})}
        values["mac"] = given.mac or self.runtime_config.mac or mac_argument(cni_args) or self.mac
        return Settings(**values)


class Tuning(ChainedPlugin):
    """Sysctls and link attributes."""

    type: ClassVar[str] = "tuning"
    config = TuningConfig

    def plan(self, request: Request, config: TuningConfig, network: Result) -> Plan:
        wanted = config.wanted(request.args)
        steps: list[Step] = [
            Sysctl(SANDBOX, sysctl_key(key, request.ifname), value, required=True)
            for key, value in (wanted.sysctl or {}).items()
        ]
        link = LinkSettings(
            SANDBOX,
            request.ifname,
            mac=wanted.mac or "",
            mtu=wanted.mtu or 0,
            promiscuous=wanted.promisc or None,
            allmulti=wanted.allmulti,
            txqlen=wanted.txqlen,
        )
        if link.mac:
            outer = tuple(item.name for item in network.interfaces if not item.sandbox)
            steps.append(AllowedMAC(request.owner, outer, link.mac))
        if link != LinkSettings(SANDBOX, request.ifname):
            steps.append(link)
        return Plan(tuple(steps))

    def add(self, request: Request) -> Result:
        refuse_repeated(request.document)
        config = self.config.decode(request.document)
        refuse_unlisted(config)
        previous = require_prev_result(request)
        refuse_small_mtu(request, config.wanted(request.args).mtu or 0, previous)
        plan = self.plan(request, config, previous)
        with (
            open_sandbox(request) as kernel,
            Backup(config.documents(request), request) as backup,
            executor.Transaction(kernel) as transaction,
        ):
            backup.save(plan, executor.current(plan, kernel))
            transaction.apply(plan)
            if plan.steps:
                backup.hold(executor.current(plan, kernel))
                ownership.note(kernel, Plan(), files=(backup.path,))
            return self.result(request, config, previous, kernel)

    def result(
        self, request: Request, config: TuningConfig, previous: Result, kernel: HostAndSandbox
    ) -> Result:
        """The previous result, the interface's entry with the MAC address and MTU that it got."""
        wanted = config.wanted(request.args)
        interfaces = list(previous.interfaces)
        for index, interface in enumerate(interfaces):
            if interface.name == request.ifname and interface.sandbox:
                mtu = wanted.mtu or interface.mtu if interface.mtu else 0
                interfaces[index] = interface.replace(mac=wanted.mac or interface.mac, mtu=mtu)
        return previous.replace(interfaces=tuple(interfaces))

    def as_checked(self, request: Request) -> Request:
        """What a later tuning of the list has set is as it should be."""
        request = super().as_checked(request)
        config = self.config.read_lenient(request.document, "", [])
        given, now = config.wanted(request.args), in_force(config.documents(request), request)
        changed: dict[str, Any] = {
            name: getattr(now, name) if getattr(now, name) is not None else value
            for name in ATTRIBUTES
            if (value := getattr(given, name)) is not None
        }
        sysctls = {
            key: (now.sysctl or {}).get(sysctl_key(key, request.ifname), value)
            for key, value in (given.sysctl or {}).items()
        }
        settings = Settings(**changed, sysctl=sysctls or None).to_json()
        return request.replace(document={**request.document, "args": {"cni": settings}})

    def delete(self, request: Request) -> None:
        config = self.config.read_lenient(request.document, "", [])
        with (
            find_sandbox(request) as kernel,
            Backup(config.documents(request), request) as backup,
        ):
            failures = ownership.problems(kernel)
            for step in backup.restoration(config.wanted("")):
                try:
                    if _is_in_place(request.ifname, kernel):
                        executor.handler(step.kind).apply(step, kernel)
                except OSError as error:
                    if error.errno not in (errno.ENODEV, errno.ENOENT):  # the interface is gone
                        failures.append(executor.translate(error))
                except CNIError as error:
                    failures.append(error)
            is_kept = bool(failures) and backup.keep_once()
            if is_kept:
                ownership.keep_part(kernel)
            else:
                backup.remove()
                ownership.forget(kernel)
        if is_kept:
            raise join_errors(failures)

    def gc(self, request: Request, keep: frozenset[Attachment]) -> None:
        config = self.config.read_lenient(request.document, "", [])
        documents = config.documents(request)
        for name in documents.names():
            saved = saved_in(documents.read(name)) if name.endswith(".json") else None
            if saved is None or saved.network != request.network:
                continue
            owners = (Owner(request.network, one.container_id, one.ifname) for one in keep)
            if not any(saved.is_of(owner, name) for owner in owners):
                documents.remove(name)
        super().gc(request, keep)

    def check_status(self, config: TuningConfig, kernel: HostAndSandbox) -> None:
        try:
            refuse_unlisted(config)
        except CNIError as error:
            raise CNIError(UNAVAILABLE, error.message, error.details) from None


def _is_in_place(ifname: str, kernel: HostAndSandbox) -> bool:
    """Whether settings of the attachment can go back: its own sandbox is there, and nothing of
    another has the name of its interface."""
    if kernel.sandbox is None:
        return False
    own = ownership.own_link(kernel, ifname)
    return own.name == ifname if own is not None else kernel.sandbox.find(ifname) is None


def refuse_repeated(document: Mapping[str, Any]) -> None:
    """Raise a CNIError if one sysctl is given twice: which value is meant is unknown."""
    sysctl = lookup(document, "sysctl")
    repeated = repeated_keys(sysctl) if isinstance(sysctl, dict) else ()
    if repeated:
        raise invalid_config(
            "duplicated sysctl keys are not allowed", f'"sysctl" has {", ".join(repeated)} twice'
        )


def refuse_small_mtu(request: Request, mtu: int, previous: Result) -> None:
    """Raise a CNIError for an MTU that would cost the interface its IPv6 addresses."""
    listed = dict(enumerate(previous.interfaces))
    for entry in previous.ips:
        of = None if entry.interface is None else listed.get(entry.interface)
        own = of is None or (of.name == request.ifname and of.sandbox)
        if own and not entry.address.is_ipv4 and 0 < mtu < MIN_IPV6_MTU:
            raise invalid_config(
                f"with an MTU of {mtu} {request.ifname} would lose the address {entry.address}",
                f'IPv6 needs {MIN_IPV6_MTU} bytes: give a larger "mtu", or no IPv6 addresses',
            )


def refuse_unlisted(config: TuningConfig) -> None:
    """Raise a CNIError for a sysctl that the host's allowlist does not match.

    The list is of regular expressions, one a line, which may match anywhere in the key as the
    configuration writes it. Without the file everything is allowed.
    """
    keys = [*(config.sysctl or {}), *(config.args.cni.sysctl or {})]
    if not keys:
        return
    try:
        lines = read_file(ALLOWLIST).decode("utf-8", "replace").split("\n")
    except FileNotFoundError:
        return
    except OSError as error:
        raise CNIError(
            INVALID_CONFIG, f"cannot read {ALLOWLIST}: {error.strerror}", "it must be a file"
        ) from None
    import re

    patterns = [line for line in lines if line]
    for key in keys:
        try:
            if any(re.search(pattern, key) for pattern in patterns):
                continue
        except re.error as error:
            raise invalid_config(
                f"{ALLOWLIST} has a line that is no regular expression: {error}",
                f"the expression is {error.pattern!r}",
            ) from None
        raise invalid_config(
            f"Sysctl {key} is not allowed. Only the following sysctls are allowed: "
            f"[{' '.join(patterns)}]",
            f"the administrator of this host keeps the list in {ALLOWLIST}",
        )


plugin = Tuning()
