"""iptables and ip6tables: rules in the chains of the reference, for those who name this backend.

Reading asks the kernel first: `iptables-nft` keeps its chains in nftables' tables `ip` and `ip6`,
where netlink finds and deletes them; `iptables-legacy` has tables of its own, which /proc lists.
So what is not there costs no program. Rules are written by one `iptables-restore` transaction.

Rules are text in the form that `iptables-save` prints, so that they can be compared. Used by the
steps that have an iptables backend.
"""

from __future__ import annotations

import errno
import posix

from pycni.kernel.netfilter import iptables_legacy, nfnetlink
from pycni.kernel.netfilter.nfnetlink import NFPROTO_IPV4

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from pycni.kernel.netfilter.nfnetlink import NetfilterSocket
    from pycni.kernel.netlink.codec import NetlinkRequest

SYSTEM_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"
LOCK_SECONDS = 30  # how long a legacy program waits for another one's lock
TIMEOUT = 60.0
LONGEST_LINE = 10_238  # bytes that the programs read at once, without the line's end
ATTEMPTS = 5  # at changing a table that others change as well
_MOST_GIVEN = 500  # characters of what a program was given, in a message
_MOST_LINKS = 8  # from one program to another


class IPTablesError(OSError):
    """An iptables program is missing, or refused its input.

    errno: ENOENT without the program, EPERM, else EIO; text: the program's own words.
    """

    def __init__(self, number: int, program: str, text: str) -> None:
        super().__init__(number, posix.strerror(number), program)
        self.text = text
        self.way_out = (
            "install it, or name another backend: nftables" if number == errno.ENOENT else
            f"ask `{program}` by hand for the reason; a module of the kernel may be missing, or "
            "another program may change the table meanwhile"
        )  # fmt: skip

    def __str__(self) -> str:
        return f"{self.filename}: {self.text}"


def program(family: int) -> str:
    """The program for a family (AF_INET or AF_INET6)."""
    return _name(family, "")


def available(family: int) -> bool:
    """Whether the programs for a family (AF_INET or AF_INET6) are installed."""
    return _find(_name(family, "-restore")) is not None


def can_replace_nftables(error: OSError, families: Iterable[int]) -> bool:
    """Whether a refusal says that the host cannot do nftables, where it can do iptables.

    One by the library says so; one by netlink is about what was asked for.
    """
    from pycni.kernel.netfilter.nftables import NftError

    if not isinstance(error, NftError) or error.errno == errno.EPERM:
        return False
    return all(map(available, families))


def is_nft(family: int) -> bool:
    """Whether the programs for a family keep their rules in nftables."""
    path = _find(_name(family, "-restore")) or ""
    for _ in range(_MOST_LINKS):
        try:
            target = posix.readlink(path)
        except OSError:  # no link any more
            break
        path = target if target.startswith("/") else f"{path.rpartition('/')[0]}/{target}"
    return path.endswith("/xtables-nft-multi")


def comment(text: str) -> str:
    """A rule's comment as `iptables-save` prints it; part of a rule."""
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'-m comment --comment "{quoted}"'


def update(family: int, table: str, build: Callable[[], Sequence[str]]) -> None:
    """Carry out what `build` finds to do, again if that has changed meanwhile.

    It reads the table first, and what it finds missing another program may make before this one is
    done. Raises IPTablesError, and what `build` does.
    """
    lines = build()
    for _ in range(ATTEMPTS):
        if not lines:
            return
        try:
            restore(family, table, lines)
        except IPTablesError:
            refused, lines = lines, build()
            if lines == refused:
                raise
        else:
            return
    restore(family, table, lines)


def present(
    netfilter: NetfilterSocket, family: int, table: str, chains: Sequence[str]
) -> list[str]:
    """A table as `save` gives it, or [] where none of these chains is there.

    Raises IPTablesError, NetlinkError.
    """
    known = any(nfnetlink.chain_exists(netfilter, family, table, chain) for chain in chains)
    return save(family, table) if known or iptables_legacy.has_table(family, table) else []


def missing(present: Sequence[str], chains: Sequence[str], rules: Sequence[str]) -> list[str]:
    """The lines for `restore` that make the chains and rules which `present` lacks.

    Rules begin with `-A CHAIN ` to be the last of it, or `-I CHAIN ` to be the first.
    """
    # Declared, one that another program has just made would be emptied; so it is refused.
    declared = [f"-N {chain}" for chain in chains if not declares(present, chain)]
    return [*declared, *(rule for rule in rules if f"-A{rule[2:]}" not in present)]


def lacking(rules: Iterable[str], present: Collection[str]) -> list[str]:
    """Those of some rules that are not among the lines of a table, as `save` gives them."""
    return [line for rule in rules if (line := f"-A{rule[2:]}") not in present]


def differences(family: int, table: str, rules: Iterable[str]) -> list[str]:
    """The rules that neither iptables has, a sentence each. Raises IPTablesError."""
    return sentences(family, table, lacking(rules, {*kept(family, table)}))


def sentences(family: int, table: str, lines: Iterable[str]) -> list[str]:
    """A sentence for CHECK for each rule that a table lacks."""
    return [f"{program(family)}: table {table} lacks the rule: {line}" for line in lines]


def kept(family: int, table: str) -> list[str]:
    """The lines of a table, whichever iptables keeps it. Raises IPTablesError."""
    return [*save(family, table), *legacy_lines(family, table)]


def delete_rules(
    netfilter: NetfilterSocket, family: int, table: str, chain: str, rules: Sequence[str]
) -> None:
    """Delete rules of a chain as often as they are there, whichever iptables made them.

    Raises IPTablesError, NetlinkError.
    """
    if not rules:
        return
    kept_by = {}
    if nfnetlink.chain_exists(netfilter, family, table, chain):
        kept_by[""] = save(family, table)
    variant = _legacy_variant(family) if iptables_legacy.has_table(family, table) else None
    if variant:
        kept_by[variant] = save(family, table, variant)
    for program, lines in kept_by.items():
        found = [f"-D{line[2:]}" for line in lines if line in rules]
        if found:
            restore(family, table, found, program)


def undo(family: int, table: str, lines: Sequence[str]) -> None:
    """Take back lines that `missing` gave. Raises IPTablesError."""
    reverse = [
        f"-X{line[2:]}" if line.startswith("-N ") else f"-D{line[2:]}" for line in reversed(lines)
    ]
    restore(family, table, reverse)


def removal(
    netfilter: NetfilterSocket, family: int, table: str, chain: str, callers: Sequence[str]
) -> list[NetlinkRequest]:
    """What deletes a chain that iptables-nft keeps, with the rules of `callers` that jump to it."""
    if not nfnetlink.chain_exists(netfilter, family, table, chain):
        return []
    jumps = [
        nfnetlink.delete_rule(family, table, caller, rule.handle)
        for caller in callers
        for rule in nfnetlink.rules(netfilter, family, table, caller)
        if rule.chain == chain
    ]
    return [*jumps, nfnetlink.delete_chain(family, table, chain)]


def gone(lines: Sequence[str], chains: Iterable[str]) -> list[str]:
    """The lines for `restore` that delete chains, with all rules of `lines` that jump to them."""
    declared = [chain for chain in chains if declares(lines, chain)]
    jumps = [f"-D{line[2:]}" for line in lines if jump_of(line) in declared]
    return [*jumps, *(line for chain in declared for line in (f"-F {chain}", f"-X {chain}"))]


def legacy_lines(family: int, table: str, chain: str = "") -> list[str]:
    """A table of iptables-legacy as `save` gives it, [] if it is not in use here.

    chain: one that it must have. Without it, [] is the answer too, and no program runs.
    """
    if not iptables_legacy.has_table(family, table):
        return []
    if chain and not iptables_legacy.names(family, table, chain):
        return []
    variant = _legacy_variant(family)
    return save(family, table, variant) if variant is not None else []


def restore_legacy(family: int, table: str, lines: Sequence[str]) -> None:
    """Carry out lines by iptables-legacy, see `restore`; nothing without lines."""
    if lines:
        restore(family, table, lines, _legacy_variant(family) or "")


def quoted(word: str) -> str:
    """A word as `restore` reads it."""
    if word and not any(character in word for character in " \t\"'\\"):
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def jump_of(rule: str) -> str:
    """The chain or target a rule jumps to, "" if none."""
    return rule.partition(" -j ")[2].partition(" ")[0] if rule.startswith("-A ") else ""


def comment_of(rule: str) -> str:
    """The comment of a rule in iptables-save's form, "" if it has none."""
    text = rule.partition('--comment "')[2].rpartition('"')[0]
    return text.replace('\\"', '"').replace("\\\\", "\\")


def without_comment(rule: str) -> str:
    """A rule in iptables-save's form without its comment."""
    text = comment_of(rule)
    return rule.replace(f" {comment(text)}", "") if text else rule


def save(family: int, table: str, variant: str = "") -> list[str]:
    """A table as lines: `:CHAIN ...` for each chain, then the rules. Raises IPTablesError."""
    return _run(_name(family, f"{variant}-save"), ["-t", table], "").splitlines()


def restore(family: int, table: str, lines: Sequence[str], variant: str = "") -> None:
    """Carry out lines as one transaction; what they do not name stays. Raises IPTablesError."""
    for line in lines:  # the second half of a broken one would be a line of its own
        if "\n" in line or len(line.encode()) > LONGEST_LINE:
            what = "with a line break in it" if "\n" in line else "that is too long"
            reason = f"a rule {what}: {line[:_MOST_GIVEN]!r}"
            raise IPTablesError(errno.EINVAL, _name(family, f"{variant}-restore"), reason)
    text = "\n".join((f"*{table}", *lines, "COMMIT", ""))
    arguments = ["--noflush", f"--wait={LOCK_SECONDS}"]
    _run(_name(family, f"{variant}-restore"), arguments, text)


def restoring(family: int, table: str, lines: Sequence[str]) -> Callable[[], None]:
    """What carries out lines, as they are now, by `restore`."""
    kept = [*lines]
    return lambda: restore(family, table, kept)


def has_chain(netfilter: NetfilterSocket, family: int, table: str, chain: str) -> bool:
    """Whether a chain exists, whichever iptables made it."""
    return nfnetlink.chain_exists(netfilter, family, table, chain) or declares(
        legacy_lines(family, table, chain), chain
    )


def declares(lines: Sequence[str], chain: str) -> bool:
    """Whether a table, as `save` gives it, has a chain."""
    return any(line.startswith(f":{chain} ") for line in lines)


def _legacy_variant(family: int) -> str | None:
    """What to put into a program's name to have the legacy one; None if it is not installed."""
    if _find(_name(family, "-legacy-restore")):
        return "-legacy"
    if _find(_name(family, "-restore")) is None:
        return None
    # Without variants installed beside it, the plain one says what it is.
    return "" if "nf_tables" not in _run(_name(family, ""), ["--version"], "") else None


def _name(family: int, suffix: str) -> str:
    return ("iptables" if family == NFPROTO_IPV4 else "ip6tables") + suffix


def _find(name: str) -> str | None:
    import os  # posix.environ is that of the start

    from pycni.kernel import process  # a host with iptables-nft alone is asked by netlink

    return process.find(name, f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}")


def _run(name: str, arguments: list[str], text: str) -> str:
    from pycni.kernel import process

    path = _find(name)
    if path is None:
        raise IPTablesError(errno.ENOENT, name, "not found in PATH, /usr/sbin or /sbin")
    environment = {"PATH": SYSTEM_PATH, "LC_ALL": "C"}
    code, stdout, stderr = process.run([path, *arguments], text.encode(), environment, TIMEOUT)
    if code != 0:
        said = stderr.decode("utf-8", "replace")
        number = errno.EPERM if "Permission denied" in said else errno.EIO
        raise IPTablesError(number, name, _explain(said, text, code))
    return stdout.decode("utf-8", "replace")


def _explain(said: str, text: str, code: int) -> str:
    """The program's complaint in one line, with the input line that it is about."""
    lines = [line.strip() for line in said.splitlines()]
    wanted = [line for line in lines if line and not line.startswith(("Try `", "#", "Error occ"))]
    reason = "; ".join(dict.fromkeys(wanted))
    if not reason:
        given = "; ".join(text.splitlines())[:_MOST_GIVEN]
        reason = f"exit code {code}, without a word" + (f", for: {given}" if given else "")
    numbered = said.partition("line: ")[2].split()  # Error occurred at line: 3
    if numbered and numbered[0].isdigit() and 0 < int(numbered[0]) <= text.count("\n"):
        reason += f" (at: {text.splitlines()[int(numbered[0]) - 1]})"
    return reason
