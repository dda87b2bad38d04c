"""Git repositories, through git's own command line, which trusts nothing that lies in them.

No hooks, no configuration but what is written here, no credential helper, no question at the terminal, and no
transport but http(s), git and ssh, for submodules too (`file:` and `ext:` could read or run what is on this machine).
Over ssh the caller's own keys, agent and known hosts serve. Sources: git-config(1), git(1) "GIT_ALLOW_PROTOCOL".
"""

from __future__ import annotations

import asyncio
import os
import re
import resource
import signal
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from storage.errors import DiskError, HostError, InputError
from storage.scratch import Scratch, clear_away, remove_tree
from storage.sources import Commit, Login
from storage.threads import in_thread

MAX_BYTES = 16 << 30
"""Bytes of one file that git may write."""
PATIENCE = 3600.0
"""Seconds that one command may take."""
_MOST_PRINTED = 16 << 20
"""Bytes that one command may print: a server says what it likes, also what is passed on as its messages."""
_FULL_ID = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
_SHORT_ID = re.compile("[0-9a-f]{4,39}")
_KEPT = (
    "PATH", "HOME", "USER", "LOGNAME", "SSH_AUTH_SOCK", "SSL_CERT_FILE", "SSL_CERT_DIR", "GIT_SSL_CAINFO", "TMPDIR",
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy",
)  # fmt: skip
_SETTINGS = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.symlinks": "true",
    "core.autocrlf": "false",
    "core.attributesFile": "/dev/null",
    "credential.helper": "",
    "init.defaultBranch": "master",
    "init.templateDir": "",
    "advice.detachedHead": "false",
    "fetch.recurseSubmodules": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "http.lowSpeedLimit": "1000",
    "http.lowSpeedTime": "60",
}
_SSH = "ssh -F /dev/null -o BatchMode=yes -o StrictHostKeyChecking=yes -o ConnectTimeout=15 -o ServerAliveInterval=20"
_ALL = ("+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*")


class GitClient:
    """Implements Repositories. Unfinished clones lie in `tmp`, named after `owner`."""

    def __init__(self, tmp: Path, owner: str, environment: Mapping[str, str], *, patience: float = PATIENCE) -> None:
        """Raises InputError when `owner` is not lower-case alphanumeric."""
        self._scratch = Scratch(tmp, owner)
        self._environment = {name: environment[name] for name in _KEPT if name in environment}
        # git runs programs in a working tree that anybody may have filled
        absolute = [place for place in self._environment.get("PATH", os.defpath).split(":") if place.startswith("/")]
        self._environment["PATH"] = ":".join(absolute)
        self._patience = patience

    async def resolve(self, remote: str, ref: str, *, login: Login | None = None) -> Commit:
        """See Repositories.resolve. A branch goes before a tag of the same name, as git checkout has it."""
        if _FULL_ID.fullmatch(ref):
            return Commit(ref)
        ref = "" if ref == "HEAD" else ref
        _check(remote, ref)
        asked = ["HEAD"] if not ref else [ref, f"{ref}^{{}}"]
        told = await self._git(["ls-remote", "--symref", "--", remote, *asked], remote, login)
        found, head = _advertised(told)
        if not ref:
            if "HEAD" not in found:
                raise InputError("the repository is empty", where=remote)
            return Commit(found["HEAD"], head)
        for name in _spellings(ref):
            if name in found:
                peeled = found.get(f"{name}^{{}}")
                return Commit(peeled or found[name], name, found[name] if peeled else "")
        if _SHORT_ID.fullmatch(ref) and (commit := await self._completed(remote, ref, login)):
            return Commit(commit)
        raise InputError(
            f"the repository has no branch, tag or commit {ref!r}", where=remote, hint=f"git ls-remote {remote}"
        )

    async def checkout(
        self, remote: str, commit: str, tree: Path, *, name: str = "", subdir: str = "", keep_git_dir: bool = False,
        submodules: bool = True, login: Login | None = None,
    ) -> None:  # fmt: skip
        """See Repositories.checkout. With a `subdir` there is no `.git` to keep."""
        _check(remote, name)
        if not _FULL_ID.fullmatch(commit) or any(part in {"", ".", ".."} for part in subdir.split("/") if subdir):
            raise InputError(f"not a commit and a directory in it: {commit[:80]!r}, {subdir[:200]!r}", where=remote)
        with self._directory() as scratch:
            work = scratch / "work" if subdir else tree
            work.mkdir(exist_ok=True)
            kept = keep_git_dir and not subdir
            apart = [] if kept else [f"--separate-git-dir={scratch / 'git'}"]
            await self._git(["init", "--quiet", *apart], remote, None, work)
            await self._git(["remote", "add", "origin", remote], remote, None, work)
            await self._fetch(remote, commit, name, kept, login, work)
            await self._git(["checkout", "--quiet", "--force", "--detach", commit], remote, None, work)
            if submodules and (work / ".gitmodules").is_file():
                update = ["submodule", "--quiet", "update", "--init", "--recursive", "--depth=1"]
                await self._git(update, remote, login, work)
            time = _seconds(await self._git(["log", "-1", "--format=%ct", commit], remote, None, work))
            await in_thread(lambda: _finish(work, tree, subdir, time, remote, keep=kept))

    # ------------------------------------------------------------ the parts

    async def _fetch(self, remote: str, commit: str, name: str, kept: bool, login: Login | None, work: Path) -> None:
        """The commit alone, by its id; by its name where the server gives no bare commits; else everything."""
        fetch = ["fetch", "--quiet", "--force", "--update-head-ok", "--no-tags"]
        named = [f"+{name}:{name}"] if name else []
        tries = [[*fetch, "--depth=1", "origin", *wanted] for wanted in ([commit], named) if wanted]
        if kept and named:
            tries.reverse()  # .git then has the branch or the tag, as after a clone
        for number, arguments in enumerate([*tries, [*fetch, "origin", *_ALL]]):
            try:
                await self._git(arguments, remote, login, work)
            except HostError:
                if number == len(tries):
                    raise
                continue
            if await self._has(commit, remote, work):
                return
        raise InputError(f"the repository has no commit {commit}", where=remote)

    async def _has(self, commit: str, remote: str, work: Path) -> bool:
        try:
            await self._git(["cat-file", "-e", f"{commit}^{{commit}}"], remote, None, work)
        except HostError:
            return False
        return True

    async def _completed(self, remote: str, beginning: str, login: Login | None) -> str:
        """The id of the one commit that begins with `beginning`, "" for none or several."""
        with self._directory() as scratch:
            await self._git(["init", "--quiet", "--bare"], remote, None, scratch)
            await self._git(["remote", "add", "origin", remote], remote, None, scratch)
            await self._git(["fetch", "--quiet", "--filter=tree:0", "origin", *_ALL], remote, login, scratch)
            try:
                told = await self._git(["rev-parse", "--verify", f"{beginning}^{{commit}}"], remote, None, scratch)
            except HostError:
                return ""
        return told.strip()

    @contextmanager
    def _directory(self) -> Iterator[Path]:
        try:
            directory = self._scratch.directory()
        except OSError as error:
            raise DiskError.of(error, "beginning a clone") from error
        try:
            yield directory
        finally:
            clear_away(directory)

    async def _git(self, arguments: Sequence[str], remote: str, login: Login | None, where: Path | None = None) -> str:
        """What `git ARGUMENTS` prints. Raises HostError, InputError. Cancelled, it leaves no process."""
        try:
            process = await asyncio.create_subprocess_exec(
                "git", *arguments, cwd=where or "/", env=self._environ(remote, login), umask=0o022,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )  # fmt: skip
        except FileNotFoundError:
            raise HostError("git is not installed", where=remote, hint="apt-get install git") from None
        with suppress(ProcessLookupError):
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (MAX_BYTES, MAX_BYTES))
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            async with asyncio.timeout(self._patience):
                (out, printed), (err, _) = await asyncio.gather(_read(process.stdout), _read(process.stderr))
                await process.wait()
        except TimeoutError:
            raise HostError(f"git {arguments[0]} took longer than {self._patience:.0f} s", where=remote) from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        if process.returncode != 0:
            raise _refused(arguments[0], err.decode("utf-8", "replace"), remote, login)
        if printed > _MOST_PRINTED:
            raise HostError(f"git {arguments[0]} printed {printed} bytes", where=remote, hint="is this a git server?")
        return out.decode("utf-8", "replace")

    def _environ(self, remote: str, login: Login | None) -> dict[str, str]:
        """Settings go through the environment: submodules get them too, and no other user sees them in a list of
        processes."""
        settings = dict(_SETTINGS)
        if login is not None:
            parts = urlsplit(remote)
            token = b64encode(":".join(login).encode()).decode()
            settings[f"http.{parts.scheme}://{parts.netloc}/.extraHeader"] = f"Authorization: Basic {token}"
        env = {
            **self._environment, "LC_ALL": "C", "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_ATTR_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "true", "SSH_ASKPASS": "true",
            "GIT_SSH_COMMAND": _SSH, "GIT_ALLOW_PROTOCOL": "http:https:git:ssh", "GIT_CONFIG_COUNT": str(len(settings)),
        }  # fmt: skip
        for number, (key, value) in enumerate(settings.items()):
            env |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
        return env


async def _read(stream: asyncio.StreamReader) -> tuple[bytes, int]:
    """All that comes, or the end of it where that is too much; and how much it was."""
    kept, count = bytearray(), 0
    while data := await stream.read(1 << 16):
        kept += data
        count += len(data)
        if len(kept) > 2 * _MOST_PRINTED:
            del kept[:-_MOST_PRINTED]
    return bytes(kept), count


def _check(remote: str, ref: str) -> None:
    """Raises InputError for what git would take for an option or for another transport."""
    if remote.startswith("-") or "::" in remote.partition("/")[0]:
        raise InputError("not a git repository", where=remote[:200])
    if ref.startswith("-") or any(char in ref for char in " ~^:?*[\\\n\0"):
        raise InputError(f"not a git ref: {ref[:100]!r}", where=remote[:200])


def _advertised(told: str) -> tuple[dict[str, str], str]:
    """Full ref names → ids, and the branch that HEAD stands for."""
    found: dict[str, str] = {}
    head = ""
    for line in told.splitlines():
        value, _, name = line.partition("\t")
        if value.startswith("ref: ") and name == "HEAD":
            head = value.removeprefix("ref: ")
        elif _FULL_ID.fullmatch(value):
            found[name] = value
    return found, head


def _seconds(told: str) -> int:
    """A commit's time; 0 for one that is none, or that no file can have: a commit says what it likes."""
    text = told.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else 0


def _spellings(ref: str) -> Iterator[str]:
    if ref.startswith("refs/"):
        yield ref
    yield f"refs/heads/{ref.removeprefix('refs/heads/')}"
    yield f"refs/tags/{ref.removeprefix('refs/tags/')}"
    yield f"refs/{ref}"


_HINTS = (
    ("Host key verification failed", "add the host's key to ~/.ssh/known_hosts: ssh-keyscan HOST"),
    ("Permission denied", "is the right ssh key there, or an agent in SSH_AUTH_SOCK?"),
    ("could not read Username", "the repository is not there, or it asks for a login"),
    ("Authentication failed", "the repository is not there, or it asks for a login"),
    ("not allowed", "only http(s), git and ssh are used, for submodules too"),
)


def _refused(command: str, said: str, remote: str, login: Login | None) -> HostError:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    important = [line for line in lines if line.startswith(("fatal:", "error:", "remote:", "ERR"))] or lines[-1:]
    text = "; ".join(important[:3]).replace("fatal: ", "")
    for secret in (login or ()):
        if secret:
            text = text.replace(secret, "…")
    text = "".join(char if char.isprintable() else " " for char in text)[:300]
    hint = next((hint for sign, hint in _HINTS if sign in said), "check the URL, and that this machine reaches it")
    return HostError(f"git {command} failed: {text or 'without a word'}", where=remote, hint=hint)


def _finish(work: Path, tree: Path, subdir: str, time: int, remote: str, *, keep: bool) -> None:
    """Leave in `tree` what is wanted of `work`, with `time` (seconds since the epoch) on everything."""
    try:
        if keep:
            for name in ("FETCH_HEAD", "ORIG_HEAD", "logs"):
                remove_tree(tree / ".git" / name)
        else:
            _remove_git(work)
        if subdir:
            _real_directory(work, subdir, remote).rename(tree)
        for parent, inner, files in os.walk(os.fsencode(tree), topdown=False):
            for entry in (*inner, *files):
                os.utime(os.path.join(parent, entry), (time, time), follow_symlinks=False)  # noqa: PTH118 - bytes
            os.utime(parent, (time, time))
    except OSError as error:
        raise DiskError.of(error, f"checking out {remote}") from error


def _remove_git(work: Path) -> None:
    """Remove `.git` of the repository and of its submodules: nothing else can be called so in one."""
    for directory, names, files in os.walk(os.fsencode(work)):
        if b".git" in names or b".git" in files:
            remove_tree(Path(os.fsdecode(directory)) / ".git")
            names[:] = [name for name in names if name != b".git"]


def _real_directory(work: Path, subdir: str, remote: str) -> Path:
    """`subdir` of `work`, without following a link in it. Raises InputError when it is not there."""
    path = work
    for part in subdir.split("/"):
        path /= part
        if path.is_symlink() or not path.is_dir():
            raise InputError(f"the repository has no directory {subdir!r} in this commit", where=remote)
    return path
