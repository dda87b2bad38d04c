"""Where this host's apt takes Debian packages from, in a form that apt elsewhere can use."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from storage.errors import HostError

_FORMAT = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)|$(CODENAME)"
# proxies, certificates, retries, clocks: how to fetch; not what to index or how this host's machine is set up
_OPTION = re.compile(r"Acquire::(https?|ftp|socks|Retries|ForceIPv[46]|Check-|AllowInsecure|Proxy|Max-Valid)")


@dataclass(frozen=True, slots=True)
class DebianMirror:
    """`suite` is a code name such as `bookworm`, `sources` one-line-style sources, `options` apt.conf lines."""

    suite: str
    sources: str
    options: str

    @classmethod
    def of_host(cls) -> DebianMirror:
        """Ask apt itself, whichever files it is configured by. Raises HostError when it knows no Debian mirror."""
        found = _targets()
        if not found:
            _apt("apt-get", "-qq", "update")  # reason: origins are known from downloaded Release files only
            found = _targets()
        if not found:
            raise HostError("apt on this host has no Debian mirror", hint="see /etc/apt/sources.list.d")
        lines = dict.fromkeys(f"deb {uri} {release} {component}" for uri, release, component, _ in found)
        suite = next((name for _, release, _, name in found if release == name), found[0][1])
        options = [line for line in _apt("apt-config", "dump").splitlines() if _OPTION.match(line)]
        return cls(suite, "\n".join(lines) + "\n", "\n".join(options) + "\n")

    def write_config(self, directory: Path, *, seen_as: str) -> None:
        """Write `apt.conf` (for APT_CONFIG), `sources.list` and empty state below `directory`, which apt will see at
        the path `seen_as`: lists and archives stay there, out of the image."""
        for name in ("lists/partial", "cache/archives/partial"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        (directory / "sources.list").write_text(self.sources)
        (directory / "apt.conf").write_text(
            self.options
            + f'Dir::Etc::sourcelist "{seen_as}/sources.list";\nDir::Etc::sourceparts "-";\n'
            + f'Dir::State::lists "{seen_as}/lists";\nDir::Cache "{seen_as}/cache";\n'
            + 'DPkg::Options { "--force-unsafe-io"; };\n'  # reason: an image in the making needs no fsync a file
            + 'APT::Sandbox::User "root";\nAcquire::Languages "none";\n'
        )


def _targets() -> list[tuple[str, str, str, str]]:
    """(URI, release, component, code name) of each Debian package index this host uses."""
    text = _apt("apt-get", "indextargets", "--format", _FORMAT, "Created-By: Packages")
    rows = (line.split("|") for line in text.splitlines())
    return [(uri, release, component, name) for uri, release, component, origin, name in rows if origin == "Debian"]


def _apt(*command: str) -> str:
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise HostError(f"{command[0]} is not installed", hint="base images are made on Debian") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise HostError(f"{command[0]} failed: {last}")
    return done.stdout
