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


# The names that each module has; of a package, its modules.
_HOMES = {
    "pycni.kernel.netfilter": "nftables",
    "pycni.plan": "steps",
    "pycni.plan.plan": "Plan Reported",
    "pycni.plan.steps": "HOST SANDBOX Step",
    "pycni.sdk.chained": "ChainedPlugin",
    "pycni.sdk.entry": "main",
    "pycni.sdk.interface": "InterfacePlugin",
    "pycni.sdk.ipam": "Allocation delegate_ipam",
    "pycni.sdk.netns": "find_sandbox open_sandbox",
    "pycni.sdk.planned": "PlannedPlugin",
    "pycni.sdk.plugin": "Plugin",
    "pycni.sdk.request": "Request require_prev_result",
    "pycni.spec": "errors versions",
    "pycni.spec.config": "Attachment DNS NetConf",
    "pycni.spec.errors": "CNIError invalid_config",
    "pycni.spec.ip": "IPAddress IPNetwork",
    "pycni.spec.owner": "Owner",
    "pycni.spec.result": "IPConfig Interface Result Route",
    "pycni.spec.schema": "Address Anything CIDR Config Flag Integer ListOf MACAddress MapOf Object "
    "Text field",
    "pycni.steps.executor": "Transaction translate",
    "pycni.steps.namespaces": "HostAndSandbox",
}
_NAMES = {name: home for home, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> object:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(__import__(_NAMES[name], fromlist=[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES})
