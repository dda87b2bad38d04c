"""A token server that a real registry trusts: it checks who asks, and puts into its tokens what they may do.

Source: distribution "Docker Registry v2 authentication via central service", "Token Authentication Implementation".
"""

from __future__ import annotations

import base64
import json
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.certificates import Authority
from tests.faulty import Answering, Seen

_LEEWAY = 60  # seconds that the registry adds to the life of a token


@dataclass(slots=True)
class Account:
    """`rights`: actions (`pull`, `push`) by repository."""

    password: str
    rights: dict[str, set[str]] = field(default_factory=dict)


class TokenServer(Answering):
    """`accounts` by name, "" for who shows nothing. A token is taken for `seconds`; `refresh` says whether
    `offline_token` is answered with an identity token. `asked` has what was wanted, scope by scope."""

    def __init__(self, directory: Path, accounts: Mapping[str, Account], *, seconds: float = 300) -> None:
        super().__init__(self._answer)
        self._pair = Authority(directory, "tokens", rsa=True).pair
        self.accounts = dict(accounts)
        self.seconds = seconds
        self.refresh = False
        self.asked: list[tuple[str, list[str]]] = []

    @property
    def registry_auth(self) -> dict[str, str]:
        """What RegistryProcess wants for `token`."""
        return {
            "realm": f"http://{self.host}/token", "service": "tests", "issuer": "tests",
            "rootcertbundle": str(self._pair.certificate),
        }  # fmt: skip

    def _answer(self, seen: Seen) -> tuple[int, Mapping[str, str], bytes]:
        form = parse_qs(seen.body.decode() if seen.method == "POST" else urlsplit(seen.path).query)
        name = self._who(seen, form)
        if name is None:
            return 401, {}, json.dumps({"details": "incorrect username or password"}).encode()
        scopes = [scope for text in form.get("scope", []) for scope in text.split()]
        self.asked.append((name, scopes))
        answer: dict[str, Any] = {"token": self.token(name, scopes), "expires_in": max(60, int(self.seconds))}
        if self.refresh and form.get("offline_token") == ["true"]:
            answer["refresh_token"] = f"refresh-{name}"
        return 200, {}, json.dumps(answer).encode()

    def _who(self, seen: Seen, form: Mapping[str, list[str]]) -> str | None:
        if form.get("grant_type") == ["refresh_token"]:
            name = form["refresh_token"][0].removeprefix("refresh-")
            return name if self.refresh and name in self.accounts else None
        scheme, _, shown = seen.headers.get("authorization", "").partition(" ")
        name, _, password = base64.b64decode(shown).decode().partition(":") if scheme == "Basic" else ("", "", "")
        account = self.accounts.get(name)
        return name if account is not None and account.password == password else None

    def token(self, name: str, scopes: list[str]) -> str:
        """A signed token for as much of `scopes` as `name` may do."""
        access = []
        for scope in scopes:
            kind, repository, actions = scope.split(":")
            allowed = self.accounts[name].rights.get(repository, set()) & set(actions.split(","))
            access.append({"type": kind, "name": repository, "actions": sorted(allowed)})
        now = time.time()
        claims = {
            "iss": "tests", "aud": "tests", "sub": name, "nbf": int(now) - 5,
            "exp": int(now + self.seconds - _LEEWAY), "access": access,
        }  # fmt: skip
        lines = self._pair.certificate.read_text().splitlines()
        head = {"typ": "JWT", "alg": "RS256", "x5c": ["".join(line for line in lines if "-----" not in line)]}
        text = f"{_encode(json.dumps(head).encode())}.{_encode(json.dumps(claims).encode())}"
        command = ["openssl", "dgst", "-sha256", "-sign", str(self._pair.key)]
        signature = subprocess.run(command, input=text.encode(), check=True, capture_output=True).stdout
        return f"{text}.{_encode(signature)}"


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
