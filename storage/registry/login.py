"""Asking a registry whether it takes a credential.

Sources: OCI distribution-spec ("Determining Support": GET /v2/), distribution "Token Authentication Specification"
(`offline_token`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from storage.credentials.lookup import Credential
from storage.errors import RegistryError
from storage.registries import Registries
from storage.registry.auth import Authenticator
from storage.registry.failures import login_hint
from storage.registry.limits import Limits
from storage.registry.session import Call, Session
from storage.registry.transport import Transport


@dataclass(frozen=True, slots=True)
class Accepted:
    """The credential was not refused. `asked`: the registry did ask for one; `identity_token`: what its token server
    gave to be shown in place of the password."""

    asked: bool
    identity_token: str = field(default="", repr=False)


async def check_login(
    registry: str, credential: Credential, *, user_agent: str, registries: Registries, limits: Limits | None = None
) -> Accepted:
    """Show `credential` to `registry`, or to the token server that it names. Raises RegistryError, of kind auth when
    they refuse it."""
    if not credential.can_be_shown:
        what = "login failed: user name or password are not text in UTF-8"
        raise RegistryError(what, kind="auth", where=registry, hint="give them as the registry knows them")
    transport = Transport(user_agent, limits or Limits(), registries=registries)
    authenticator = Authenticator(_Given(credential), transport, user_agent, offline=True)
    session = Session(transport, authenticator)
    call = Call("GET", registry, "/v2/", registry, "its API", ())
    try:
        async with session.open(call) as response:
            if response.status_code != 200:
                raise await session.failure(call, response)
    except RegistryError as error:
        if error.kind == "auth" and error.hint == login_hint(registry):
            error.what = f"login failed: {error.what}"
            error.hint = "check user name and password; many registries want an access token in place of the password"
        raise
    finally:
        await transport.aclose()
    return Accepted(authenticator.asked_by(registry), authenticator.identity_token(registry))


@dataclass(frozen=True, slots=True)
class _Given:
    credential: Credential

    async def lookup(self, _registry: str) -> Credential | None:
        return self.credential
