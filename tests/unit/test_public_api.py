"""What other programs import, as their tools see it: type hints, signatures, misspelt options."""

from __future__ import annotations

import inspect
import subprocess
import sys
import typing
from collections.abc import Iterator
from typing import Any

import pytest

import pycni
from pycni import runtime
from pycni.runtime import Endpoint, Network, Outcome
from pycni.runtime.aio import AsyncNetwork
from pycni.runtime.options import Options
from pycni.spec.errors import CNIError
from pycni.spec.result import Result


def public() -> Iterator[tuple[str, Any]]:
    """Classes, functions, methods and properties."""
    for owner in (Options, *(getattr(pycni, name) for name in pycni.__all__)):
        yield owner.__name__, owner
        for name, value in vars(owner).items():
            if inspect.isfunction(value) and (not name.startswith("_") or name == "__init__"):
                yield f"{owner.__name__}.{name}", value
            if isinstance(value, property):
                yield f"{owner.__name__}.{name}", value.fget


PUBLIC = dict(public())


@pytest.mark.parametrize("name", PUBLIC)
def test_type_hints_can_be_resolved(name: str) -> None:
    assert isinstance(typing.get_type_hints(PUBLIC[name]), dict)


@pytest.mark.parametrize("name", [name for name in PUBLIC if "__init__" not in name])
def test_all_is_documented(name: str) -> None:
    assert PUBLIC[name].__doc__


def test_what_runtimes_need_is_in_one_place() -> None:
    assert {*runtime.__all__} < {*pycni.__all__}
    assert pycni.AsyncNetwork is AsyncNetwork
    assert (pycni.CNIError, pycni.Result) == (CNIError, Result)
    assert {*pycni.__all__} < {*dir(pycni)}
    with pytest.raises(AttributeError, match="module 'pycni' has no attribute 'Netwrok'"):
        pycni.Netwrok  # type: ignore[attr-defined]  # noqa: B018


def test_a_plugin_s_start_imports_none_of_it() -> None:
    program = "import sys, pycni; sys.exit(any(name.startswith('pycni.') for name in sys.modules))"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_signature_of_a_record() -> None:
    parameters = inspect.signature(Endpoint).parameters
    assert list(parameters) == ["container_id", "netns", "ifname", "args", "capabilities"]
    assert parameters["container_id"].default is inspect.Parameter.empty
    assert parameters["ifname"].default == "eth0"
    assert parameters["netns"].annotation == "str | os.PathLike[str] | None"
    assert "result" in inspect.signature(Outcome).parameters


async def misspelt(network: Network) -> None:
    """Read by type checkers only, which have to refuse each line (`make lint` runs mypy)."""
    network.add("one", "/run/netns/one", tiemout=5)  # type: ignore[call-arg]
    network.gc([], timeout="5")  # type: ignore[arg-type]
    Endpoint("one", netnss="/run/netns/one")  # type: ignore[call-arg]
    await AsyncNetwork(network).add("one", "/run/netns/one", tiemout=5)  # type: ignore[call-arg]
    await AsyncNetwork(network).delete_many([], worker=2)  # type: ignore[call-arg]
