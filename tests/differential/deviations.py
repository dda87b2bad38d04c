"""Where Refledger differs from another builder, and may. docs/differences.md says of each who is right, and why."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from tests.differential.comparing import SLACK, Differences


@dataclass(frozen=True, slots=True)
class Deviation:
    """In `cases` (patterns) the differences `keys` (patterns) from `oracle` are known.

    `what` is the row of docs/differences.md. `fresh`: theirs is a time of the build itself.
    A case that is named without a wildcard must show each of `keys`, or the deviation is gone and has to go here too.
    """

    what: str
    oracle: str
    cases: tuple[str, ...]
    keys: tuple[str, ...]
    fresh: bool = False

    def explains(self, case: str, key: str, pair: tuple[Any, Any], before: float) -> bool:
        """Is this difference one of these?"""
        return (
            any(fnmatchcase(case, pattern) for pattern in self.cases)
            and any(fnmatchcase(key, pattern) for pattern in self.keys)
            and (not self.fresh or pair[1] > before - SLACK)
        )


BOTH = ("buildkit", "buildah")
COPIES = ("copy-*", "add-*", "ignore-*", "workdir-*")

DEVIATIONS = (
    # both
    *(Deviation("times of directories", oracle, COPIES, ("/*/ mtime",), fresh=True) for oracle in BOTH),
    *(Deviation("hard links of a context", oracle, COPIES, ("/* links",)) for oracle in BOTH),
    *(Deviation("`--chown` of an archive", oracle, ("add-tar-chown",), ("/u/top/* owner",)) for oracle in BOTH),
    *(Deviation("`WORKDIR` that ends in a slash", oracle, ("workdir-variables",), ("config.WorkingDir",))
      for oracle in BOTH),
    *(Deviation("mount points of the runtime", oracle, ("run-without-mount-points",),
                (*(f"/{name}/ only theirs" for name in ("dev", "proc", "sys")), "/etc/ mtime")) for oracle in BOTH),
    # BuildKit of dockerd 20.10
    Deviation("mount points of `RUN --mount`", "buildkit", ("mount-*", "ignore-hides-*"),
              ("/[mtbcd]/ only theirs", "/in/ only theirs", "/cache1/ only theirs", "/c[34]/ only theirs",
               "/w/t/ only theirs", "/deep/*only theirs")),
    Deviation("`ArgsEscaped`", "buildkit", ("*",), ("config.ArgsEscaped",)),
    Deviation("supplementary groups of a RUN", "buildkit", ("user-used-by-run",), ("/tmp/id content",)),
    Deviation("`ONBUILD` in the history", "buildkit", ("onbuild-kept", "onbuild-of-a-stage"), ("layers",)),
    Deviation("`mode` of a cache mount", "buildkit", ("mount-cache-mode-owner",), ("/x content",)),
    Deviation("fifos and devices of a stage", "buildkit", ("copy-from-stage-special-files",),
              ("/s/c type", "/s/c device", "/s/c content", "/s/c links", "/s/p only ours")),
    Deviation("extended attributes `user.*`", "buildkit", ("add-tar-user-xattr",), ("/u/f xattrs",)),
    Deviation("setuid of `--chmod`", "buildkit", ("copy-chmod",), ("/s mode",)),
    # buildah 1.28
    Deviation("time of `/run`", "buildah", ("*",), ("/run/ mtime",), fresh=True),
    Deviation("mount points of the runtime", "buildah", ("run-without-mount-points",),
              ("/run/ only theirs", *(f"/etc/{name} only theirs" for name in ("hosts", "hostname", "resolv.conf")))),
    Deviation("setuid of a context's file", "buildah", ("copy-special-bits", "copy-whole-context", "ignore-*"),
              ("/*/setuid mode",)),
    Deviation("`# escape=` and a backslash", "buildah", ("escape-backtick",), ("config.Env",)),
    Deviation("working directory of `scratch`", "buildah", ("from-scratch", "copy-from-earlier-of-two"),
              ("config.WorkingDir",)),
    Deviation("stage named by a variable", "buildah", ("from-argument",), ("config.Env",)),
    Deviation("case of a stage's name", "buildah", ("stage-names-any-case",), ("builds",)),
    Deviation("ARG in a child stage", "buildah", ("arg-goes-to-child-stages",), ("/x content",)),
    Deviation("directories of `VOLUME`", "buildah", ("volume-forms",), ("/c d/ only theirs", "/e/ only theirs")),
    Deviation("directories of `VOLUME`", "buildah", ("base-config-inherited", "workdir-of-the-base"),
              ("/vol/ only theirs",)),
    Deviation("tmpfs over a directory of the image", "buildah", ("mount-tmpfs-over-files",), ("/lib/* only ours",)),
    Deviation("wildcards with an escaped bracket", "buildah", ("copy-wildcard-escaped",), ("builds",)),
    Deviation("directory above an exception of `.dockerignore`", "buildah",
              ("ignore-exception-below", "ignore-everything-but"), ("/c/tree/ mode",)),
    Deviation("a wildcard that matches nothing", "buildah", ("copy-wildcard-nothing",), ("builds",)),
    Deviation("destination that is a link", "buildah", ("copy-to-a-link",),
              ("/data/1 *", "/f *", "/gone/x *", "/gone/x/one.txt only theirs")),
    Deviation("entry for `.` of an archive", "buildah", ("add-tar-of-a-root",), ("/u/ *",)),
    Deviation("entry for `.` of an archive", "buildah", ("copy-amid-all-else",), ("/opt/unpacked/ *",)),
    Deviation("shell form after `SHELL`", "buildah", ("copy-amid-all-else",), ("config.Cmd",)),
    Deviation("shell form after `SHELL`", "buildah", ("shell-for-run-cmd-entrypoint",),
              ("config.Cmd", "config.Entrypoint")),
    Deviation("order of `Env`", "buildah", ("copy-amid-all-else",), ("config.Env",)),
    Deviation("directory above an exception of `.dockerignore`", "buildah", ("ignore-exception-below",),
              ("/c/tree/sub/ mode",)),
)

# What an image of that builder always has or lacks, with the reason.
ALWAYS = {
    "created": "the time of the build",
    "history": "each tool words its own; which entries have a layer is compared as `layers`",
    "rootfs.diff_ids": "depend on times and on how a tool writes tar; their number is compared as `layers`",
    "moby.buildkit.buildinfo.v1": "a field of that BuildKit, not in the image-spec",
    **dict.fromkeys(
        ("container", "container_config", "docker_version", "id", "parent", "author", "Size", "config.Image",
         "config.Hostname", "config.Domainname", "config.Labels.io.buildah.version"),
        "a field of the classic docker builder, or how buildah signs",
    ),
}


def unexplained(case: str, oracle: str, found: Differences, before: float) -> Differences:
    """What of `found` no deviation explains."""
    known = [deviation for deviation in DEVIATIONS if deviation.oracle == oracle]
    return {
        key: pair for key, pair in found.items()
        if not _always(key) and not any(deviation.explains(case, key, pair, before) for deviation in known)
    }  # fmt: skip


def stale(case: str, oracle: str, found: Differences) -> list[str]:
    """Deviations listed for this very case that are not there any more."""
    return [
        f"{deviation.what}: {key}"
        for deviation in DEVIATIONS if deviation.oracle == oracle and case in deviation.cases
        for key in deviation.keys if not any(fnmatchcase(there, key) for there in found)
    ]  # fmt: skip


def _always(key: str) -> bool:
    return any(key == known or key.startswith(f"{known}.") for known in ALWAYS)
