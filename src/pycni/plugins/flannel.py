"""flannel: joins containers to the host's part of a flannel network.

It makes nothing itself. From what flanneld wrote for this host it derives a configuration for
another plugin, by default bridge with host-local, and keeps that for the other operations.
"""

from __future__ import annotations

from pycni.plugins.shared import subnet_env
from pycni.sdk.delegate import delegate, find_delegate
from pycni.sdk.netns import locked
from pycni.sdk.plugin import Plugin
from pycni.spec.config import VALID_ATTACHMENTS, Attachment, NetConf
from pycni.spec.errors import (
    CHECK_FAILED,
    INTERNAL,
    UNAVAILABLE,
    CNIError,
    invalid_config,
    join_errors,
)
from pycni.spec.jsontext import dumps, lookup
from pycni.spec.result import FAMILIES, merge
from pycni.spec.schema import Anything, MapOf, Text, field
from pycni.state.attachment_files import Documents
from pycni.state.files import is_file_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar

    from pycni.plan.difference import Difference, StepReport
    from pycni.plugins.shared.subnet_env import SubnetEnv
    from pycni.sdk.request import Request
    from pycni.spec.result import Result

# What a file has besides the delegate's configuration: which interface of the container it is for,
# and which container, where its name does not say.
MARK = "pycni"
DATA_DIR = "/var/lib/cni/flannel"
SUBNET_FILE = "/run/flannel/subnet.env"
UNMARKED = "eth0"  # taken for the interface of a file that the reference wrote


class FlannelConfig(NetConf):
    """The keys of flannel. `ipam` and `delegate` are the base of the delegate's configuration."""

    subnet_file: str = field(
        "subnetFile",
        Text(),
        "",
        doc="what flanneld writes; in `/run/flannel`, `/etc/cni`, or where the administrator "
        "allows",
        default_doc="`/run/flannel/subnet.env`",
    )
    data_dir: str = field(
        "dataDir",
        Text(),
        "",
        doc="where the delegate's configurations are kept; in there, in `/run/cni/flannel`, or "
        "where the administrator allows",
        default_doc="`/var/lib/cni/flannel`",
    )
    ipam: dict[str, Any] | None = field(
        "ipam",
        MapOf(Anything()),
        None,
        doc="base of the delegate's `ipam`; its `ranges` are replaced",
    )
    delegate: dict[str, Any] = field(
        "delegate",
        MapOf(Anything()),
        None,
        doc="keys for the delegate, such as `type`, `bridge`, `mtu`; not `name`, not `ipam`",
    )

    @property
    def delegate_type(self) -> str:
        kind = (self.delegate or {}).get("type", "bridge")
        return kind if isinstance(kind, str) else "bridge"

    def documents(self, request: Request) -> Documents:
        """Where configurations are kept. Raises CNIError for a directory that is not allowed."""
        return Documents(request.allowed_path("flannel.dataDir", self.data_dir, DATA_DIR))

    def environment(self, request: Request) -> SubnetEnv:
        """What flanneld says. Raises CNIError."""
        file = request.allowed_path("flannel.subnetFile", self.subnet_file, SUBNET_FILE)
        return subnet_env.load(file)

    def validate(self) -> None:
        given = self.delegate or {}
        if not isinstance(given.get("type", ""), str):
            raise invalid_config(
                "'delegate' dictionary, if present, must have (string) 'type' field",
                "it names the plugin that makes the interface",
            )
        for key in ("name", "ipam"):
            if key in given:
                raise invalid_config(
                    f"'delegate' dictionary must not have '{key}' field, it'll be set by flannel",
                    f'"{key}" of the network itself is what counts',
                )


class Flannel(Plugin):
    """A delegate with the host's subnets."""

    type: ClassVar[str] = "flannel"
    gives_addresses: ClassVar[bool] = False
    config = FlannelConfig

    def add(self, request: Request) -> Result:
        config = self.config.decode(request.document)
        previous = request.prev_result
        document = delegate_config(config, config.environment(request))
        documents = config.documents(request)
        with locked(request, adding=True):
            result = _add(request, config.delegate_type, document, documents)
        if result is None:
            raise CNIError(INTERNAL, f"the delegate {config.delegate_type} gave no result")
        if previous is None or request.version in FAMILIES[0]:
            return result
        return merge(previous, result)

    def check(self, request: Request) -> None:
        document = self._kept(request)
        delegate(request, _type_of(document), "CHECK", document)

    def repair(
        self, request: Request, *, dry_run: bool = False, remake: bool = True
    ) -> list[Difference]:
        document = self._kept(request)
        plugin, _ = find_delegate(request, _type_of(document))
        if plugin is None:
            return super().repair(request, dry_run=dry_run, remake=remake)
        inner = request.replace(document=document)
        return plugin.repair(inner, dry_run=dry_run, remake=remake)

    def inspect(self, request: Request) -> list[StepReport]:
        document = self._kept(request)
        plugin, _ = find_delegate(request, _type_of(document))
        return [] if plugin is None else plugin.inspect(request.replace(document=document))

    def _kept(self, request: Request) -> dict[str, Any]:
        """The delegate's configuration that ADD kept, with the previous result."""
        config = self.config.decode(request.document)
        found = _find(config.documents(request), request)
        if found is None:
            raise CNIError(
                CHECK_FAILED,
                f"no delegate's configuration is kept for {request.container_id}",
                'ADD keeps it in the network\'s "dataDir"; delete the attachment and add it again',
            )
        return {**found[1], "prevResult": lookup(request.document, "prevResult")}

    def delete(self, request: Request) -> None:
        config = self._read(request)
        documents = config.documents(request)
        with locked(request, deleting=True) as notes:
            found = _find(documents, request)
            if found is None and notes.identity is None and not notes.is_known:
                return
            # Of an ADD that could not take back all it did, only what the delegate noted is kept.
            name, document = found or ("", {})
            document = document or _without_flanneld(config, request)  # lost, or damaged
            delegate(request, _type_of(document), "DEL", document)
            if name:
                documents.remove(name)

    def gc(self, request: Request, keep: frozenset[Attachment]) -> None:
        config = self._read(request)
        documents = config.documents(request)
        failures: list[CNIError] = []
        for name in documents.names():
            document = documents.read(name) or {}
            if document.get("name") != request.network or _is_kept(name, document, keep):
                continue
            ifname = _ifname_of(document) or UNMARKED
            container_id = _container_of(name, document)
            stale = request.replace(container_id=container_id, ifname=ifname)
            try:
                with locked(stale, deleting=True):
                    if documents.read(name) == document:
                        delegate(stale, _type_of(document), "DEL", _unmarked(document))
                        documents.remove(name)
            except CNIError as error:
                failures.append(error)
        document = _without_flanneld(config, request)
        document[VALID_ATTACHMENTS] = [attachment.to_json() for attachment in keep]
        try:
            delegate(request, config.delegate_type, "GC", document)
        except CNIError as error:
            failures.append(error)
        if failures:
            raise join_errors(failures)

    def status(self, request: Request) -> None:
        config = self.config.decode(request.document)
        try:
            environment = config.environment(request)
        except CNIError as error:
            raise CNIError(UNAVAILABLE, error.message, error.details) from None
        document = delegate_config(config, environment)
        delegate(request, config.delegate_type, "STATUS", document)

    def _read(self, request: Request) -> FlannelConfig:
        return self.config.read_lenient(request.document, "", [])


def _add(
    request: Request, kind: str, document: dict[str, Any], documents: Documents
) -> Result | None:
    """Have the delegate attach, with its configuration kept meanwhile."""
    ours, _ = find_delegate(request, kind)
    name, before = _save(documents, request, document)
    try:
        return delegate(request, kind, "ADD", document)
    except CNIError:
        try:
            # One of ours has taken back what it did; DEL would also take what was there before.
            if ours is None:
                delegate(request, kind, "DEL", document)
            if before is not None and ours is not None:  # of an attachment that is still there
                documents.write(name, dumps(before, sort_keys=True))
            else:
                documents.remove(name)
        except CNIError:
            pass  # the runtime's DEL needs the file, and will report it
        raise


def delegate_config(config: FlannelConfig, environment: SubnetEnv) -> dict[str, Any]:
    """The configuration for the delegate, keys and defaults as the reference gives them."""
    document: dict[str, Any] = {
        "type": config.delegate_type,
        "ipMasq": not environment.masquerades,
        "mtu": environment.mtu,
    }
    if config.delegate_type == "bridge":
        document["isGateway"] = True
    document.update(config.delegate or {})
    document["name"] = config.name
    if config.cni_version:
        document["cniVersion"] = config.cni_version
    if config.runtime_config is not None:
        document["runtimeConfig"] = config.runtime_config
    ipam = {"type": "host-local", **(config.ipam or {})}
    ipam["ranges"] = [[{"subnet": str(subnet)}] for subnet in environment.subnets]
    given = ipam.get("routes") or []
    if isinstance(given, list):  # the address plugin refuses what is none
        listed = [lookup(route, "dst") for route in given if isinstance(route, dict)]
        networks = [text for text in map(str, environment.networks) if text not in listed]
        ipam["routes"] = [*given, *({"dst": text} for text in networks)]
    return {**document, "ipam": ipam}


def _without_flanneld(config: FlannelConfig, request: Request) -> dict[str, Any]:
    """A configuration to clean up with, where flanneld's file may have gone."""
    try:
        return delegate_config(config, config.environment(request))
    except CNIError:
        return delegate_config(config, subnet_env.SubnetEnv((), (), 0, False))


# --- the files -----------------------------------------------------------------------------------
#
# `<containerID>`, as the reference has it; `<containerID>@<ifname>` where another interface of the
# container has taken that; the owner's tag where a name would be longer than a file's may be.


def _save(
    documents: Documents, request: Request, document: dict[str, Any]
) -> tuple[str, dict[str, Any] | None]:
    """Keep the delegate's configuration for the other operations.

    Returns the file's name, and what was in it before, None for nothing.
    """
    mark = {"ifname": request.ifname}
    second, name = _names(request)
    if name != request.container_id:
        mark["containerID"] = request.container_id
    text = dumps({**document, MARK: mark}, sort_keys=True)
    if documents.create(name, text):
        return name, None
    taken = documents.read(name)
    if taken and not _is_ours(taken, request):
        name = second
        taken = documents.read(name)
    documents.write(name, text)
    return name, taken or None


def _names(request: Request) -> tuple[str, str]:
    """The names that an attachment's file may have: the second choice, and the first."""
    container_id = request.container_id
    names = f"{container_id}@{request.ifname}", container_id
    second, first = (name if is_file_name(name) else request.owner.tag for name in names)
    return second, first


def _find(documents: Documents, request: Request) -> tuple[str, dict[str, Any]] | None:
    """The attachment's file and the configuration in it, {} if it is damaged."""
    for name in _names(request):
        document = documents.read(name)
        if document is not None and (not document or _is_ours(document, request)):
            return name, _unmarked(document)
    return None


def _is_ours(document: dict[str, Any], request: Request) -> bool:
    """Whether a file is the attachment's. The reference's say nothing of the interface."""
    return document.get("name") == request.network and _ifname_of(document) in ("", request.ifname)


def _is_kept(name: str, document: dict[str, Any], keep: frozenset[Attachment]) -> bool:
    ifname = _ifname_of(document)
    return any(
        attachment.container_id == _container_of(name, document)
        and ifname in ("", attachment.ifname)
        for attachment in keep
    )


def _container_of(name: str, document: dict[str, Any]) -> str:
    return _marked(document, "containerID") or name.partition("@")[0]


def _ifname_of(document: dict[str, Any]) -> str:
    return _marked(document, "ifname")


def _marked(document: dict[str, Any], key: str) -> str:
    mark = document.get(MARK)
    value = mark.get(key) if isinstance(mark, dict) else ""
    return value if isinstance(value, str) else ""


def _type_of(document: dict[str, Any]) -> str:
    kind = document.get("type")
    return kind if isinstance(kind, str) else "bridge"


def _unmarked(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key != MARK}


plugin = Flannel()
