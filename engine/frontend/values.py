"""Values that instructions take: durations, ports, signals, key-value texts. They raise InputError without a line."""

from __future__ import annotations

import ipaddress
import re

from storage.errors import InputError

_UNITS = {
    "ns": 1, "us": 1_000, "µs": 1_000, "μs": 1_000, "ms": 1_000_000, "s": 1_000_000_000,
    "m": 60_000_000_000, "h": 3_600_000_000_000,
}  # fmt: skip
_DURATION_PART = re.compile(r"([0-9]{1,20}(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_MAX_DURATION = 2**63 - 1
_MIN_HEALTH_DURATION = 1_000_000

_SIGNALS = frozenset(
    {
        "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE", "POLL",
        "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU", "URG", "USR1",
        "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN", "RTMAX",
    }
    | {f"RTMIN+{n}" for n in range(1, 16)}
    | {f"RTMAX-{n}" for n in range(1, 15)}
)  # fmt: skip


def parse_duration(text: str) -> int:
    """Nanoseconds of a duration as Go writes it: `1m30s`, `500ms`, `1.5h`, `0`."""
    bare = text.removeprefix("+")
    if bare == "0":
        return 0
    total = 0
    position = 0
    while found := _DURATION_PART.match(bare, position):
        number, unit = found.groups()
        whole, _, fraction = number.partition(".")
        total += int(whole or "0") * _UNITS[unit]
        total += int(fraction[:18] or "0") * _UNITS[unit] // 10 ** len(fraction[:18])
        position = found.end()
    if not position or position != len(bare):
        raise InputError(f"not a duration: {text!r}", hint="a duration reads 30s, 1m30s or 500ms")
    if total > _MAX_DURATION:
        raise InputError(f"duration {text!r} is too long")
    return total


def parse_health_duration(flag: str, text: str) -> int:
    """Nanoseconds, 0 or at least one millisecond (Docker's smallest)."""
    duration = parse_duration(text)
    if 0 < duration < _MIN_HEALTH_DURATION:
        raise InputError(f"--{flag}={text}: cannot be less than 1ms")
    return duration


def format_duration(ns: int) -> str:
    """As Go prints a duration: `0s`, `1.5ms`, `5s`, `1m30s`, `1h0m0s`."""
    if ns == 0:
        return "0s"
    for unit, name in ((1_000, "ns"), (1_000_000, "µs"), (1_000_000_000, "ms")):
        if ns < unit:
            return f"{_decimal(ns, unit // 1_000)}{name}"
    minutes, rest = divmod(ns, _UNITS["m"])
    hours, minutes = divmod(minutes, 60)
    text = f"{_decimal(rest, _UNITS['s'])}s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text


def _decimal(value: int, unit: int) -> str:
    whole, rest = divmod(value, unit)
    digits = f"{rest:0{len(str(unit)) - 1}d}".rstrip("0") if rest else ""
    return f"{whole}.{digits}" if digits else str(whole)


def parse_port(text: str) -> list[str]:
    """`port/protocol` of an EXPOSE word: `80`, `53/udp`, `8000-8010`, also with an (ignored) host part before a `:`."""
    host, _, container = text.rpartition(":")
    ports, _, protocol = container.partition("/")
    protocol = protocol.lower() or "tcp"
    if protocol not in {"tcp", "udp", "sctp"}:
        raise InputError(f"invalid protocol {protocol!r} in EXPOSE {text}", hint="protocols are tcp, udp and sctp")
    first, last = _port_range(ports, text)
    if host:
        _check_host_part(host, text)
    return [f"{port}/{protocol}" for port in range(first, last + 1)]


def _port_range(text: str, written: str) -> tuple[int, int]:
    found = re.fullmatch("([0-9]{1,5})(?:-([0-9]{1,5}))?", text, re.ASCII)
    first = int(found[1]) if found else -1
    last = int(found[2]) if found and found[2] else first
    if not 0 <= first <= last <= 65535:
        raise InputError(f"invalid port in EXPOSE {written}", hint="write 80, 53/udp or 8000-8010")
    return first, last


def _check_host_part(host: str, written: str) -> None:
    address, colon, ports = host.rpartition(":")
    if ports:
        _port_range(ports, written)
    if colon and address:
        try:
            ipaddress.ip_address(address.removeprefix("[").removesuffix("]"))
        except ValueError:
            raise InputError(f"invalid IP address {address!r} in EXPOSE {written}") from None


def check_signal(text: str) -> None:
    """Raises InputError unless `text` is a signal's number or Linux name, with or without SIG."""
    known = int(text) > 0 if re.fullmatch("[0-9]{1,3}", text) else text.upper().removeprefix("SIG") in _SIGNALS
    if not known:
        raise InputError(f"invalid signal {text!r}", hint="write a name as in SIGTERM, or a number")


_SYMBOLIC = re.compile(r"[ugoa]*(?:[-+=](?:[ugo]|[rwxXst]*))+")


def check_chmod(text: str) -> None:
    """Raises InputError unless `text` is an octal mode of at most 07777, or a symbolic one as in chmod(1)."""
    if re.fullmatch("[0-7]+", text):
        if int(text, 8) <= 0o7777:
            return
    elif text and all(_SYMBOLIC.fullmatch(clause) for clause in text.split(",")):
        return
    hint = "write a mode between 0 and 07777, as in --chmod=755, or a symbolic one, as in --chmod=u=rwX,go=rX"
    raise InputError(f"--chmod={text}: not an octal mode, nor a symbolic one", hint=hint)
