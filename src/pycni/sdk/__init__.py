"""What a plugin's author imports: base classes, typed configuration, requests, results, delegation.

    from pycni.sdk import ChainedPlugin, NetConf, Plan, Text, field

Names are looked up when they are asked for, so that a plugin loads what it uses and no more.
Besides them there are the modules `pycni.sdk.delegate` (other plugins), `pycni.sdk.addressing`,
`pycni.sdk.mac` and `pycni.sdk.veth_name` (what plugins that make interfaces share), and
`pycni.sdk.testing`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.kernel.netfilter import nftables as nftables
    from pycni.plan import steps as steps
    from pycni.plan.plan import Plan as Plan
    from pycni.plan.plan import Reported as Reported
    from pycni.plan.steps import HOST as HOST
    from pycni.plan.steps import SANDBOX as SANDBOX
    from pycni.plan.steps import Step as Step
    from pycni.sdk.chained import ChainedPlugin as ChainedPlugin
    from pycni.sdk.entry import main as main
    from pycni.sdk.interface import InterfacePlugin as InterfacePlugin
    from pycni.sdk.ipam import Allocation as Allocation
    from pycni.sdk.ipam import delegate_ipam as delegate_ipam
    from pycni.sdk.netns import find_sandbox as find_sandbox
    from pycni.sdk.netns import open_sandbox as open_sandbox
    from pycni.sdk.planned import PlannedPlugin as PlannedPlugin
    from pycni.sdk.plugin import Plugin as Plugin
    from pycni.sdk.request import Request as Request
    from pycni.sdk.request import require_prev_result as require_prev_result
    from pycni.spec import errors as errors
    from pycni.spec import versions as versions
    from pycni.spec.config import DNS as DNS
    from pycni.spec.config import Attachment as Attachment
    from pycni.spec.config import NetConf as NetConf
    from pycni.spec.errors import CNIError as CNIError
    from pycni.spec.errors import invalid_config as invalid_config
    from pycni.spec.ip import IPAddress as IPAddress
    from pycni.spec.ip import IPNetwork as IPNetwork
    from pycni.spec.owner import Owner as Owner
    from pycni.spec.result import Interface as Interface
    from pycni.spec.result import IPConfig as IPConfig
    from pycni.spec.result import Result as Result
    from pycni.spec.result import Route as Route
    from pycni.spec.schema import CIDR as CIDR
    from pycni.spec.schema import Address as Address
    from pycni.spec.schema import Anything as Anything
    from pycni.spec.schema import Config as Config
    from pycni.spec.schema import Flag as Flag
    from pycni.spec.schema import Integer as Integer
    from pycni.spec.schema import ListOf as ListOf
    from pycni.spec.schema import MACAddress as MACAddress
    from pycni.spec.schema import MapOf as MapOf
    from pycni.spec.schema import Object as Object
    from pycni.spec.schema import Text as Text
    from pycni.spec.schema import field as field
    from pycni.steps.executor import Transaction as Transaction
    from pycni.steps.executor import translate as translate
    from pycni.steps.namespaces import HostAndSandbox as HostAndSandbox


# Where each name is: a module, and what of it; the module itself for "".
_NAMES = {
    "Address": ("pycni.spec.schema", "Address"),
    "Anything": ("pycni.spec.schema", "Anything"),
    "Flag": ("pycni.spec.schema", "Flag"),
    "Integer": ("pycni.spec.schema", "Integer"),
    "ListOf": ("pycni.spec.schema", "ListOf"),
    "MACAddress": ("pycni.spec.schema", "MACAddress"),
    "MapOf": ("pycni.spec.schema", "MapOf"),
    "CIDR": ("pycni.spec.schema", "CIDR"),
    "Object": ("pycni.spec.schema", "Object"),
    "Text": ("pycni.spec.schema", "Text"),
    "Allocation": ("pycni.sdk.ipam", "Allocation"),
    "Attachment": ("pycni.spec.config", "Attachment"),
    "CNIError": ("pycni.spec.errors", "CNIError"),
    "ChainedPlugin": ("pycni.sdk.chained", "ChainedPlugin"),
    "Config": ("pycni.spec.schema", "Config"),
    "DNS": ("pycni.spec.config", "DNS"),
    "HOST": ("pycni.plan.steps", "HOST"),
    "IPAddress": ("pycni.spec.ip", "IPAddress"),
    "IPConfig": ("pycni.spec.result", "IPConfig"),
    "IPNetwork": ("pycni.spec.ip", "IPNetwork"),
    "Interface": ("pycni.spec.result", "Interface"),
    "InterfacePlugin": ("pycni.sdk.interface", "InterfacePlugin"),
    "HostAndSandbox": ("pycni.steps.namespaces", "HostAndSandbox"),
    "NetConf": ("pycni.spec.config", "NetConf"),
    "Owner": ("pycni.spec.owner", "Owner"),
    "Plan": ("pycni.plan.plan", "Plan"),
    "PlannedPlugin": ("pycni.sdk.planned", "PlannedPlugin"),
    "Plugin": ("pycni.sdk.plugin", "Plugin"),
    "Reported": ("pycni.plan.plan", "Reported"),
    "Request": ("pycni.sdk.request", "Request"),
    "Result": ("pycni.spec.result", "Result"),
    "Route": ("pycni.spec.result", "Route"),
    "SANDBOX": ("pycni.plan.steps", "SANDBOX"),
    "Step": ("pycni.plan.steps", "Step"),
    "Transaction": ("pycni.steps.executor", "Transaction"),
    "delegate_ipam": ("pycni.sdk.ipam", "delegate_ipam"),
    "errors": ("pycni.spec.errors", ""),
    "field": ("pycni.spec.schema", "field"),
    "find_sandbox": ("pycni.sdk.netns", "find_sandbox"),
    "invalid_config": ("pycni.spec.errors", "invalid_config"),
    "main": ("pycni.sdk.entry", "main"),
    "nftables": ("pycni.kernel.netfilter.nftables", ""),
    "open_sandbox": ("pycni.sdk.netns", "open_sandbox"),
    "require_prev_result": ("pycni.sdk.request", "require_prev_result"),
    "steps": ("pycni.plan.steps", ""),
    "translate": ("pycni.steps.executor", "translate"),
    "versions": ("pycni.spec.versions", ""),
}


def __getattr__(name: str) -> object:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    path, attribute = _NAMES[name]
    module = __import__(path, fromlist=[attribute])
    value = getattr(module, attribute) if attribute else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES})
