"""What the ADD of a plugin object of the program's own returns: whether it is a result, throughout.

Between processes JSON sees to that. Called by `pycni.runtime.foreign`.
"""

from __future__ import annotations

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
    if isinstance(kind, ListOf):
        if isinstance(value, (tuple, list)):
            for index, item in enumerate(value):
                _look(item, kind.item, f"{path}[{index}]", faults)
        else:
            _wrong(value, "a tuple", path, faults)
    elif isinstance(kind, Object):
        if isinstance(value, kind.config):
            _look_into(value, path, faults)
        else:
            _wrong(value, an(kind.config.__name__), path, faults)
    elif isinstance(kind, CIDR):
        if not isinstance(value, IPNetwork):
            _wrong(value, "an IPNetwork, as pycni.spec.ip.parse_network makes", path, faults)
    elif isinstance(kind, Address):
        if not isinstance(value, IPAddress):
            _wrong(value, "an IPAddress, as pycni.spec.ip.parse_address makes", path, faults)
    elif isinstance(value, (str, int)):
        kind.decode(value, path, faults)
    else:
        _wrong(value, kind.expected, path, faults)


def _look_into(value: Config, path: str, faults: list[Fault]) -> None:
    for name, declared in value.declared.items():
        item = getattr(value, name)
        if item is not None or declared.required or declared.default is not None:
            _look(item, declared.kind, f"{path}.{name}", faults)


def _wrong(value: object, expected: str, path: str, faults: list[Fault]) -> None:
    faults.append(Fault(path, f"{what(value)} is not valid", f"expected {expected}"))


def what(value: object) -> str:
    """What a value is, in words."""
    if value is None:
        return "None"
    return f"the class {value.__name__}" if isinstance(value, type) else an(type(value).__name__)


def an(name: str) -> str:
    """A name with its article."""
    return f"{'an' if name[:1] in 'aeioAEIO' else 'a'} {name}"
