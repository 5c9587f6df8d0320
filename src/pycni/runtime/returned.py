"""What the ADD of a plugin object of the program's own returns: whether it is a result, throughout.

Between processes JSON sees to that. Called by `pycni.runtime.foreign`.
"""

from __future__ import annotations

from typing import cast

from pycni.spec import versions
from pycni.spec.config import DNS
from pycni.spec.errors import CNIError
from pycni.spec.ip import IPAddress, IPNetwork
from pycni.spec.result import Interface, IPConfig, Result, Route, decode_result, encode_result
from pycni.spec.schema import CIDR, Address, Fault, Kind, ListOf, Object, Text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.spec.schema import Config

_FIELDS: dict[str, Kind] = {
    "interfaces": ListOf(Object(Interface)),
    "ips": ListOf(Object(IPConfig)),
    "routes": ListOf(Object(Route)),
    "dns": Object(DNS),
    "cni_version": Text(),
}


def copied(result: Result, faults: list[Fault]) -> Result:
    """A copy of a result that shares nothing with it; anything if there are faults."""
    for name, kind in _FIELDS.items():
        _look(getattr(result, name), kind, name, faults)
    if faults:
        return result
    try:
        document = encode_result(result, versions.CURRENT)
        copy = decode_result(document, versions.CURRENT)
    except CNIError as error:
        faults.append(Fault("", error.message, error.details))
        return result
    return copy.replace(cni_version=result.cni_version)


def _look(value: object, kind: Kind, path: str, faults: list[Fault]) -> None:
    """Note what is wrong with a value as a plugin has it, which is decoded, not JSON."""
    expected, classes = _expected(kind)
    if not isinstance(value, classes):
        faults.append(Fault(path, f"{what(value)} is not valid", f"expected {expected}"))
    elif isinstance(kind, ListOf):
        for index, item in enumerate(cast("tuple[object, ...]", value)):
            _look(item, kind.item, f"{path}[{index}]", faults)
    elif isinstance(kind, Object):
        _look_into(cast("Config", value), path, faults)
    elif isinstance(value, (str, int)):
        kind.decode(value, path, faults)


def _expected(kind: Kind) -> tuple[str, type | tuple[type, ...]]:
    """What a decoded value of a kind is, in words and as classes."""
    if isinstance(kind, ListOf):
        return "a tuple", (tuple, list)
    if isinstance(kind, Object):
        return an(kind.config.__name__), kind.config
    if isinstance(kind, CIDR):
        return "an IPNetwork, as pycni.spec.ip.parse_network makes", IPNetwork
    if isinstance(kind, Address):
        return "an IPAddress, as pycni.spec.ip.parse_address makes", IPAddress
    return kind.expected, (str, int)


def _look_into(value: Config, path: str, faults: list[Fault]) -> None:
    for name, declared in value.declared.items():
        item = getattr(value, name)
        if item is not None or declared.required or declared.default is not None:
            _look(item, declared.kind, f"{path}.{name}", faults)


def what(value: object) -> str:
    """What a value is, in words."""
    if value is None:
        return "None"
    return f"the class {value.__name__}" if isinstance(value, type) else an(type(value).__name__)


def an(name: str) -> str:
    """A name with its article."""
    return f"{'an' if name[:1] in 'aeioAEIO' else 'a'} {name}"
