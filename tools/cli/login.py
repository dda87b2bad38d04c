"""`refledger login` and `logout`: credentials, checked and kept where docker keeps them."""

from __future__ import annotations

import asyncio
import sys

import click

from storage.credentials.lookup import Credential
from storage.errors import InputError, RegistryError
from storage.reference import DEFAULT_REGISTRY, is_host
from tools import connecting
from tools.cli.writing import print_aside, print_line
from tools.text import clean

LARGEST = 64 * 1024
"""Bytes of a password; cloud registries give tokens and whole key files for one."""


@click.command(short_help="Log in to a registry.")
@click.argument("registry", default=DEFAULT_REGISTRY)
@click.option("-u", "--username", metavar="USER", help="Who logs in.")
@click.option("-p", "--password", metavar="PASSWORD", help="Can be seen by others: rather use --password-stdin.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
def login(registry: str, username: str | None, password: str | None, *, password_stdin: bool) -> None:
    """Log in to REGISTRY (host[:port], default Docker Hub).

    The credentials are checked, then kept in docker's config.json or by its credential helpers.
    """
    host = _registry(registry)
    if password is not None:
        _warn("a password in an argument can be seen by others: use --password-stdin")
        if password_stdin:
            raise InputError("--password and --password-stdin exclude each other", hint="use --password-stdin")
    if username is None and (password is not None or password_stdin):
        raise InputError("a password needs a user name beside it", hint="add --username")
    if username is None and _works_already(host):
        return
    credential = _ask(host, username, _read_password() if password_stdin else password)
    accepted = asyncio.run(connecting.check_login(host, credential))
    if accepted.identity_token:
        credential = Credential(credential.username, identity_token=accepted.identity_token)
    kept = connecting.credential_store().keep(host, credential)
    if not accepted.asked:
        _warn(f"{host} asked for no credentials: they are kept, but could not be checked")
    if not kept.helper:
        _warn(f"the credentials are stored unencrypted in {kept.path}; a credential helper (credsStore) avoids that")
    print_line("Login Succeeded")


@click.command(short_help="Forget the credentials for a registry.")
@click.argument("registry", default=DEFAULT_REGISTRY)
def logout(registry: str) -> None:
    """Forget the credentials for REGISTRY (host[:port], default Docker Hub)."""
    host = _registry(registry)
    dropped = connecting.credential_store().drop(host)
    print_line(f"Removing login credentials for {host}" if dropped else f"Not logged in to {host}")


def _registry(text: str) -> str:
    """The host in `text`, which may be a URL, as docker takes it. Raises InputError."""
    host, _, path = text.removeprefix("https://").removeprefix("http://").partition("/")
    if not is_host(host) or path.strip("/") not in {"", "v1", "v2"}:
        raise InputError(f"not a registry: {text[:300]!r}", hint="write host[:port], as in quay.io")
    return DEFAULT_REGISTRY if host.lower() in {"index.docker.io", "registry-1.docker.io"} else host


def _works_already(host: str) -> bool:
    """Say so when the credentials that are kept are accepted. Where a person can be asked for others, those that are
    not are no error."""
    credential = asyncio.run(connecting.kept_credentials().lookup(host))
    if credential is None:
        return False
    who = f"as {clean(credential.username)}" if credential.username else "with a token"
    try:
        asyncio.run(connecting.check_login(host, credential))
    except RegistryError as error:
        if error.kind != "auth" or not sys.stdin.isatty():
            raise
        _warn(f"already logged in to {host} {who}, but: {error.what}")
        return False
    print_line(f"Already logged in to {host} {who}")
    return True


def _ask(host: str, username: str | None, password: str | None) -> Credential:
    """What is missing, from the terminal. Raises InputError."""
    if password is None and not sys.stdin.isatty():
        raise InputError(
            f"nobody can be asked for the credentials for {host}: this is no terminal",
            hint="use --username and --password-stdin",
        )
    if username is None:
        username = click.prompt("Username", err=True)
    if password is None:
        password = click.prompt("Password", hide_input=True, err=True)
    if not username or not password:
        raise InputError("user name and password must not be empty")
    if ":" in username:
        raise InputError("a user name has no colon", hint="RFC 7617 section 2")
    return Credential(username, password)


def _read_password() -> str:
    data = sys.stdin.buffer.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise InputError(f"the password on standard input is longer than {LARGEST} bytes")
    try:
        # reason: `echo` and editors end with a line break; others belong to it (a key file has many)
        return data.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise InputError("the password on standard input is not UTF-8") from None


def _warn(what: str) -> None:
    print_aside(f"WARNING: {what}")
