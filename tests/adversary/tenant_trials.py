"""Many configurations of a tenant's, one after the other; a failure says which, made small."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import hypothesis
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from adversary.configurations import TEXT, Document, documents, lists, sweep
from adversary.tenant import Tenant
from pycni.plugins import NAMES

# CNI_ARGS is of a user of the cluster.
_ARGS = st.just("") | st.sampled_from(("IP", "MAC", "DEBUG", "GATEWAY", "IgnoreUnknown")).flatmap(
    lambda key: TEXT.filter(lambda text: "\0" not in text and text.isascii()).map(
        lambda text: f"IgnoreUnknown=1;{key}={text[:4000]}"
    )
)


_VALUES = 2  # of each group for each key, in a round of the long run


def attempt(
    what: str, executables: Path, folder: Path, *, seed: str, number: int, examples: int
) -> tuple[int, str]:
    """A part of a round of the long run: how many calls there were, and what did not hold.

    what: a plugin, "networks" or "executables"; number: of the round.
    """
    with Tenant(executables, folder, cold=what == "executables") as tenant:
        try:
            if what in NAMES:
                each_key(tenant, what, number * _VALUES, _VALUES)
                any_keys(tenant, what, seed, examples)
            elif what == "networks":
                networks(tenant, seed, examples * 5)
            else:
                for name in NAMES:
                    any_keys(tenant, name, seed, max(1, examples // 10))
                networks(tenant, seed, examples // 2)
        except AssertionError as error:
            return tenant.tried, "\n".join([str(error), *getattr(error, "__notes__", ())])
        return tenant.tried, tenant.ends()


def each_key(tenant: Tenant, name: str, first: int, many: int) -> None:
    """Each declared key of a plugin, see `configurations.sweep`."""
    for what, document in sweep(name, first, many):
        wrong = tenant.plugin(name, document)
        assert not wrong, f"{what}: {wrong}"


def any_keys(tenant: Tenant, name: str, seed: object, examples: int) -> None:
    """Configurations with several keys of the tenant's making."""

    def tried(document: Document, args: str, raw: bool) -> None:
        wrong = tenant.plugin(name, document, args=args, raw=raw)
        assert not wrong, wrong
        wrong = tenant.lint(name, document, raw=raw)
        assert not wrong, wrong

    _try(given(documents(name), _ARGS, st.booleans())(tried), seed, examples)


def networks(tenant: Tenant, seed: object, examples: int) -> None:
    """Lists of such, by the runtime."""

    def tried(listed: list[Document]) -> None:
        wrong = tenant.network(listed)
        assert not wrong, wrong

    _try(given(lists())(tried), seed, examples)


def _try(test: Callable[[], None], seed: object, examples: int) -> None:
    """Have hypothesis try: the same for the same seed, with nothing kept."""
    settings = hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    hypothesis.seed(seed)(settings(test))()
