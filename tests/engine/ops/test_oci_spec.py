"""The OCI configuration of a step: what docker would give it, and nothing of the host."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.ops import seccomp
from engine.ops.oci_spec import ContainerMount, Host, Process, capability_names, runtime_config

HOST = Host("x86_64")


def make(uid: int = 0, gid: int = 0, groups: tuple[int, ...] = (), network: str = "host") -> Process:
    env = (("PATH", "/bin"), ("A", "x=y"))
    return Process(("/bin/sh", "-c", "true"), env, "/work", uid, gid, groups, network, Path("/some/root"))


def config(process: Process, host: Host = HOST) -> dict[str, Any]:
    made = runtime_config(process, host, cgroup="/refledger/x", binds=(("/host/file", "/etc/file"),))
    parsed: dict[str, Any] = json.loads(json.dumps(made))
    return parsed


def namespaces(process: Process, host: Host = HOST) -> set[str]:
    return {item["type"] for item in config(process, host)["linux"]["namespaces"]}


def test_the_process_is_what_was_asked() -> None:
    process = config(make(5, 6, (7, 6)))["process"]
    assert process["args"] == ["/bin/sh", "-c", "true"]
    assert process["env"] == ["PATH=/bin", "A=x=y"]
    assert process["cwd"] == "/work"
    assert process["user"] == {"uid": 5, "gid": 6, "umask": 0o22, "additionalGids": [6, 7]}
    assert not process["terminal"]
    assert process["rlimits"] == [{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]
    unlimited = config(make(), replace(HOST, core=-1))["process"]["rlimits"]
    assert unlimited == [{"type": "RLIMIT_CORE", "soft": 0, "hard": 2**64 - 1}]


def test_root_has_dockers_14_capabilities_and_others_only_may_gain_them() -> None:
    root, other = (config(make(uid, network="none"))["process"]["capabilities"] for uid in (0, 1))
    assert len(root["bounding"]) == 14
    assert root["effective"] == root["permitted"] == root["bounding"] == other["bounding"]
    assert other["effective"] == other["permitted"] == []
    assert "CAP_SYS_ADMIN" not in root["bounding"]
    assert not root.get("inheritable")
    hosts = config(make())["process"]["capabilities"]["bounding"]
    assert set(root["bounding"]) - set(hosts) == {"CAP_NET_RAW"}


def test_network_none_has_its_own_namespace() -> None:
    assert namespaces(make()) == {"mount", "pid", "ipc", "uts"}
    assert namespaces(make(network="none")) == {"mount", "pid", "ipc", "uts", "network"}


def test_a_cgroup_namespace_only_on_unified_hosts() -> None:
    assert "cgroup" in namespaces(make(), Host("x86_64", unified=True))


def test_binds_come_after_the_mounts_they_may_lie_in_and_are_read_only() -> None:
    mounts = config(make())["mounts"]
    assert [m["destination"] for m in mounts][-1] == "/etc/file"
    assert "ro" in mounts[-1]["options"]
    assert all("ro" in m["options"] for m in mounts if m["destination"].startswith("/sys"))


def test_mounts_of_the_step_come_last_and_say_what_they_may() -> None:
    step = (
        ContainerMount("/c", "/host/c"), ContainerMount("/r", "/host/r", readonly=True),
        ContainerMount("/t", size=4096, mode=0o700),
    )  # fmt: skip
    mounts = {m["destination"]: m for m in config(replace(make(), mounts=step))["mounts"]}
    assert list(mounts)[-3:] == ["/c", "/r", "/t"]
    assert mounts["/c"]["options"] == ["bind", "rw"]
    assert mounts["/r"]["options"] == ["bind", "ro"]
    assert (mounts["/t"]["type"], mounts["/t"]["options"][1:]) == ("tmpfs", ["rw", "mode=700", "size=4096"])


def test_insecure_lifts_what_the_sandbox_forbids_and_nothing_else() -> None:
    host = replace(HOST, capabilities=("CAP_A", "CAP_B"), loops=2)
    lifted, kept = config(replace(make(), insecure=True), host), config(make(), host)
    assert lifted["process"]["capabilities"]["effective"] == ["CAP_A", "CAP_B"]
    assert not {"seccomp", "maskedPaths", "readonlyPaths"} & set(lifted["linux"])
    assert {d["path"] for d in lifted["linux"]["devices"]} >= {"/dev/fuse", "/dev/loop0", "/dev/loop1"}
    assert all("ro" not in m["options"] for m in lifted["mounts"] if m["destination"].startswith("/sys"))
    assert lifted["linux"]["namespaces"] == kept["linux"]["namespaces"]
    assert "CAP_A" not in kept["process"]["capabilities"]["bounding"]


def test_what_tells_how_warm_processors_get_is_masked_unless_insecure() -> None:
    host = replace(HOST, thermal=("/sys/devices/system/cpu/cpu0/thermal_throttle",))
    assert {*host.thermal, "/proc/interrupts"} <= set(config(make(), host)["linux"]["maskedPaths"])
    assert "maskedPaths" not in config(replace(make(), insecure=True), host)["linux"]


def test_capabilities_are_named_by_their_bits() -> None:
    assert capability_names(0b11 | 1 << 21 | 1 << 40) == (
        "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_SYS_ADMIN", "CAP_CHECKPOINT_RESTORE",
    )  # fmt: skip


@pytest.mark.parametrize("machine", seccomp.MACHINES)
def test_seccomp_allows_no_name_unconditionally_that_escapes(machine: str) -> None:
    profile = seccomp.profile(machine)
    free = {n for r in profile["syscalls"] if r["action"] == "SCMP_ACT_ALLOW" and not r.get("args") for n in r["names"]}
    assert {"read", "execve", "openat", "chroot", "statx", "rseq"} <= free
    assert not free & {
        "mount", "umount2", "unshare", "setns", "clone", "clone3", "bpf", "keyctl", "add_key", "request_key",
        "kexec_load", "init_module", "reboot", "swapon", "open_by_handle_at", "io_uring_setup", "userfaultfd",
        "perf_event_open", "socket", "personality", "move_mount", "fsopen", "pivot_root", "ioperm", "settimeofday",
    }  # fmt: skip
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"


def test_seccomp_conditions() -> None:
    rules = {(r["names"][0], r["args"][0]["op"], r["args"][0]["value"])
             for r in seccomp.profile("x86_64")["syscalls"] if r.get("args")}  # fmt: skip
    assert ("clone", "SCMP_CMP_MASKED_EQ", 0x7E020000) in rules
    assert {rule[1:] for rule in rules if rule[0] == "socket"} == {
        ("SCMP_CMP_LT", 38), ("SCMP_CMP_EQ", 39), ("SCMP_CMP_GT", 40),  # all but AF_ALG and AF_VSOCK
    }  # fmt: skip
    assert {value for name, _, value in rules if name == "personality"} == {0, 8, 0x20000, 0x20008, 0xFFFFFFFF}


def test_seccomp_covers_every_abi_of_the_machine() -> None:
    assert seccomp.profile("x86_64")["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    assert "SCMP_ARCH_X32" in seccomp.profile("x86_64", x32=True)["architectures"]
    assert seccomp.profile("aarch64")["architectures"] == ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
