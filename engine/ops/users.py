"""Users and groups as an image's own /etc/passwd and /etc/group name them (passwd(5), group(5))."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from engine.errors import InputError
from engine.ops.rootfs import RootDir

_LIMIT = 1 << 20  # bytes read of an image's file; what lies beyond is not looked at
_MAX_ID = (1 << 31) - 1  # as docker: larger ids are refused
_HINT = "create it in an earlier step, or give a number"


class ExecUser(NamedTuple):
    """Who a step runs as. `additional_gids`: supplementary groups without `gid` itself; `home`: absolute path."""

    uid: int
    gid: int
    additional_gids: tuple[int, ...]
    home: str


class _User(NamedTuple):
    name: str
    uid: int
    gid: int
    home: str


class _Group(NamedTuple):
    name: str
    gid: int
    members: tuple[str, ...]


def resolve_user(root: RootDir, text: str) -> ExecUser:
    """What USER `text` (`user[:group]`, names or numbers, "" for root) means in the image at `root`.

    A name must be in passwd. A number need not: its group is 0 and its home `/` then. Supplementary groups count only
    when no group was given (Dockerfile reference, USER). Raises InputError.
    """
    user_text, colon, group_text = text.partition(":")
    user = _find_user(root, user_text or "0")
    if user is None:
        user = _User("", _number(user_text or "0", "user", text), 0, "/")
    if colon and group_text:
        return ExecUser(user.uid, _gid(root, group_text, text), (), user.home)
    gids = tuple(g.gid for g in _groups(root) if user.name and user.name in g.members and g.gid != user.gid)
    return ExecUser(user.uid, user.gid, tuple(dict.fromkeys(gids)), user.home)


def names_nobody(chown: str) -> bool:
    """Does `--chown` mean the same in every image: numbers, and no names?"""
    return all(_is_number(part) for part in chown.split(":"))


def resolve_owner(root: RootDir | None, chown: str) -> tuple[int, int]:
    """What `--chown` (`user[:group]`, names or numbers) means in the image at `root` (None for an empty one):
    `(uid, gid)`.

    Without a group, a number's is the same number and a name's that of passwd, as BuildKit and buildah have it; the
    reference (COPY --chown) says the former of both. Raises InputError.
    """
    user_text, colon, group_text = chown.partition(":")
    if not user_text or (colon and not group_text):
        missing = "group" if user_text else "user"
        raise InputError(f"--chown={chown} names no {missing}", hint="write user or user:group")
    user = None if _is_number(user_text) else _find_user(root, user_text)
    uid = user.uid if user else _number(user_text, "user", chown)
    return uid, (_gid(root, group_text, chown) if colon else user.gid if user else uid)


def directory_owner(root: RootDir | None, text: str) -> tuple[int, int]:
    """Who owns a directory that WORKDIR makes after USER `text` (`user[:group]`, "" for root): `(uid, gid)`.

    As BuildKit has it, the reference says nothing: a name's group is that of passwd, a number's the same number, and
    what the image does not know is root. Raises InputError for a number that is too large.
    """
    user_text, _, group_text = text.partition(":")
    if _is_number(user_text):
        uid = gid = _number(user_text, "user", text)
    else:
        user = _find_user(root, user_text) if user_text else None
        uid, gid = (user.uid, user.gid) if user else (0, 0)
    if _is_number(group_text):
        gid = _number(group_text, "group", text)
    elif group_text:
        gid = next((group.gid for group in _groups(root) if group.name == group_text), gid)
    return uid, gid


def _find_user(root: RootDir | None, text: str) -> _User | None:
    """By uid when `text` is a number, else by name; the first entry that matches."""
    if _is_number(text):
        uid = _number(text, "user", text)
        return next((user for user in _users(root) if user.uid == uid), None)
    return next((user for user in _users(root) if user.name == text), None)


def _gid(root: RootDir | None, text: str, whole: str) -> int:
    if not _is_number(text):
        group = next((group for group in _groups(root) if group.name == text), None)
        if group is not None:
            return group.gid
    return _number(text, "group", whole)


def _number(text: str, kind: str, whole: str) -> int:
    if not _is_number(text):
        file = "passwd" if kind == "user" else "group"
        raise InputError(f"{kind} {text!r} (of {whole!r}) is not in the image's /etc/{file}", hint=_HINT)
    if len(text) > 20 or int(text) > _MAX_ID:
        raise InputError(f"{kind} id {text[:20]} is too large", hint=f"ids go from 0 to {_MAX_ID}")
    return int(text)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _users(root: RootDir | None) -> Iterator[_User]:
    for parts in _records(root, "/etc/passwd", 4):
        if _is_id(parts[2]) and _is_id(parts[3]):
            home = parts[5] if len(parts) > 5 and parts[5].startswith("/") else "/"
            yield _User(parts[0], int(parts[2]), int(parts[3]), home)


def _groups(root: RootDir | None) -> Iterator[_Group]:
    for parts in _records(root, "/etc/group", 3):
        if _is_id(parts[2]):
            yield _Group(parts[0], int(parts[2]), tuple(parts[3].split(",")) if len(parts) > 3 else ())


def _is_id(text: str) -> bool:
    return _is_number(text) and len(text) <= 10 and int(text) <= _MAX_ID


def _records(root: RootDir | None, path: str, least: int) -> Iterator[list[str]]:
    """Lines with at least `least` fields. A file that is missing or cannot be read names nobody; a bad line too."""
    if root is None:
        return
    try:
        data = root.read_bytes(path, _LIMIT)
    except OSError:
        return
    for line in data.decode("utf-8", "surrogateescape").split("\n"):
        parts = line.strip().split(":")
        if len(parts) >= least and parts[0] and not parts[0].startswith("#"):
            yield parts
