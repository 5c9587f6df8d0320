"""An attachment as a runtime asks for it: which container, where, under which name, with what."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from pycni.spec.errors import INVALID_CONFIG, INVALID_ENVIRONMENT, CNIError
from pycni.spec.jsontext import dumps
from pycni.spec.names import check_container_id, check_interface_name
from pycni.spec.record import Record

Path = str | os.PathLike[str]
Args = Mapping[str, str] | Iterable[tuple[str, str]]

IFNAME = "eth0"


class Endpoint(Record):
    """A container's end of an attachment, as `add_many` and `delete_many` take it.

    container_id: letters, digits, '_', '.', '-'; netns: the path of its network namespace; ifname:
    at most 15 bytes; args: what plugins get as CNI_ARGS, by name; capabilities: settings by the
    names of capabilities, each goes to the plugins that declare it, such as
    {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}. args and
    capabilities left at None mean none for ADD, and those that ADD was given for what comes later;
    a netns of None means the one that ADD was given.
    """

    container_id: str
    netns: str | os.PathLike[str] | None = None
    ifname: str = IFNAME
    args: Args | None = None
    capabilities: Mapping[str, Any] | None = None

    def check(self) -> None:
        """Raise CNIError (code 4) for a name that breaks a rule, or what is of a wrong type."""
        _require("container_id", self.container_id, str)
        _require("ifname", self.ifname, str)
        check_container_id(self.container_id)
        check_interface_name(self.ifname)
        if self.netns is not None:
            _require("netns", self.netns, (str, os.PathLike))
            _require("netns", os.fspath(self.netns), str)
        if self.args is not None:
            _require("args", self.args, Iterable)
            if not isinstance(self.args, Mapping):
                for pair in self.args:
                    _require("args", pair, (tuple, list))
                    if len(pair) != 2:
                        raise _mistyped("args", pair, "pairs of a name and a value")
            for name, value in pairs(self.args):
                _require("args", name, str)
                _require("args", value, str)
        if self.capabilities is not None:
            _require("capabilities", self.capabilities, Mapping)

    @property
    def pod(self) -> str:
        """The pod or container that the arguments name, as NAMESPACE/NAME or NAME; "" for none."""
        return pod_of(self.args)

    @property
    def path(self) -> str:
        """The namespace's path as text, "" for none."""
        return "" if self.netns is None else os.fspath(self.netns)


def _require(name: str, value: object, kinds: type | tuple[type, ...]) -> None:
    """Raise CNIError for what is of none of these types."""
    if not isinstance(value, kinds):
        expected = kinds if isinstance(kinds, tuple) else (kinds,)
        raise _mistyped(name, value, " or ".join(kind.__name__ for kind in expected))


def _mistyped(name: str, value: object, expected: str) -> CNIError:
    return CNIError(
        INVALID_ENVIRONMENT,
        f"{name} is {value!r}, of type {type(value).__name__}",
        f"expected {expected}",
    )


def pod_of(args: Args | None) -> str:
    """The pod, or what a runtime calls its container, that arguments name: NAMESPACE/NAME, NAME or
    "". By convention of Kubernetes' runtimes (K8S_POD_NAMESPACE, K8S_POD_NAME).
    """
    given = dict(args or ())
    names = (given.get(f"K8S_POD_{key}", "") for key in ("NAMESPACE", "NAME"))
    return "/".join(name for name in names if name)


def pairs(args: Args | None) -> tuple[tuple[str, str], ...]:
    """The arguments as pairs, in order."""
    return tuple(args.items() if isinstance(args, Mapping) else (args or ()))


def check_args(given: Iterable[tuple[str, str]]) -> None:
    """Raise CNIError for arguments that CNI_ARGS cannot say."""
    for name, value in given:
        if not name or any(sign in name + value for sign in ";=\0"):
            raise CNIError(
                INVALID_ENVIRONMENT,
                f'invalid CNI_ARGS pair "{name}={value}"',
                "a name is needed, and neither name nor value can hold ';' or '='",
            )


def cni_args(given: Iterable[tuple[str, str]]) -> str:
    """The arguments as CNI_ARGS has them.

    What another runtime gave to an ADD is handed on as it was, but for what no variable can hold.
    """
    return ";".join(f"{name}={value}" for name, value in given if "\0" not in name + value)


def check_capabilities(given: Mapping[str, Any]) -> None:
    """Raise CNIError if the settings cannot be handed on."""
    try:
        dumps(dict(given))
    except (TypeError, ValueError) as error:
        raise CNIError(
            INVALID_CONFIG,
            f"capabilities cannot be written as JSON: {error}",
            "expected a JSON value for each capability's name",
        ) from None
