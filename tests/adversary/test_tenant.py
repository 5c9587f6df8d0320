"""A tenant who writes any configuration: nothing but what is allowed is read, written or run."""

from __future__ import annotations

from pathlib import Path

import pytest

from adversary import tenant_trials as trials
from adversary.configurations import places, sweep
from adversary.tenant import Tenant
from harness import Host
from pycni import plugins


@pytest.mark.parametrize("name", plugins.NAMES)
def test_each_key_held(name: str, host: Host, plugin_dir: Path, tmp_path: Path) -> None:
    with Tenant(plugin_dir, tmp_path) as tenant:
        trials.each_key(tenant, name, first=0, many=1)
        trials.any_keys(tenant, name, seed="0", examples=10)
        assert not tenant.ends()


def test_a_network_held(host: Host, plugin_dir: Path, tmp_path: Path) -> None:
    with Tenant(plugin_dir, tmp_path) as tenant:
        trials.networks(tenant, seed="0", examples=25)
        assert not tenant.ends()


def test_executables_held(host: Host, plugin_dir: Path, tmp_path: Path) -> None:
    """They run libraries and programs that only the canary sees."""
    with Tenant(plugin_dir, tmp_path, cold=True) as tenant:
        for name in plugins.NAMES:
            trials.any_keys(tenant, name, seed="1", examples=1)
        trials.networks(tenant, seed="1", examples=5)
        assert not tenant.ends()


def test_every_declared_key_is_tried() -> None:
    for name in plugins.NAMES:
        declared = {declared.key for declared in plugins.load(name).config.declared.values()}
        assert declared <= {path[0] for path, _ in places(name)}
        assert len([*sweep(name, 0, 1)]) >= len(places(name))
