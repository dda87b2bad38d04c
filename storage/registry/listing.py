"""What a repository has: its tags, and what refers to one of its manifests; page after page.

Source: OCI distribution-spec 1.1 ("Listing Tags", "Listing Referrers"), RFC 8288 (`Link`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from storage.digest import Digest, parse_json
from storage.errors import RegistryError
from storage.interfaces.images import Provider, Referrer
from storage.media_types import INDEX
from storage.reference import check_provider, is_tag
from storage.referrers import FallbackTag, read_referrers
from storage.registry.session import Call, Session
from storage.registry.transport import locate, origin

if TYPE_CHECKING:
    import httpx

PAGE = 1000
"""Entries that are asked for at once; registries give fewer as they like."""
PAGES = 1000
"""Pages of one list at most: a registry must not keep us for ever."""
ENTRIES = 1_000_000
"""Of one list at most: nor fill our memory."""
# reason: what registries say to a path that they do not know, or to a page size that they do not allow
_NO_API = frozenset({400, 404, 405, 406, 501})


class Listing:
    """See RegistryListing; `fallback` for registries without the referrers API."""

    def __init__(self, session: Session, fallback: FallbackTag) -> None:
        self._session = session
        self._fallback = fallback

    async def tags(self, provider: Provider) -> tuple[str, ...]:
        """See RegistryListing.tags."""
        path = f"/v2/{provider.repository}/tags/list"
        call = _call(provider, path, str(provider), "the list of tags")
        found: dict[str, None] = {}
        async for page in self._pages(call, {"n": str(PAGE)}):
            page.must_be_there()
            found.update(dict.fromkeys(_tags(page.body, str(provider))))
            _bound(found, str(provider))
        return tuple(found)

    async def referrers(self, provider: Provider, subject: Digest, artifact_type: str) -> tuple[Referrer, ...]:
        """See RegistryListing.referrers."""
        where = f"{provider}@{subject}"
        call = _call(provider, f"/v2/{provider.repository}/referrers/{subject}", where, "the list of referrers")
        found: dict[Digest, Referrer] = {}
        filtered = True
        async for page in self._pages(call, {"artifactType": artifact_type} if artifact_type else {}):
            if page.status != 200 or page.media_type != INDEX:  # also a web page that says that there is none
                found = {one.manifest.digest: one for one in await self._fallback.list(provider, subject)}
                filtered = False
                break
            filtered = filtered and "artifactType" in page.filters
            found.update((one.manifest.digest, one) for one in read_referrers(page.body, where))
            _bound(found, where)
        if artifact_type and not filtered:
            return tuple(one for one in found.values() if one.artifact_type == artifact_type)
        return tuple(found.values())

    async def _pages(self, call: Call, query: dict[str, str]) -> AsyncIterator[_Page]:
        """All pages of a list; the first one may be a refusal in _NO_API. Raises RegistryError."""
        seen = {call.target}
        page = await self._page(_at(call, f"{call.target}?{urlencode(query)}" if query else call.target))
        if page.status == 400 and "n" in query:  # a registry that does not allow pages of this size
            page = await self._page(call)
        yield page
        while page.next:
            if page.next in seen or len(seen) > PAGES:
                what = f"{call.asked} has no end" if len(seen) > PAGES else f"the pages of {call.asked} go in circles"
                raise RegistryError(what, kind="transport", where=call.where, hint="the registry is at fault")
            seen.add(page.next)
            page = await self._page(_at(call, page.next))
            page.must_be_there()
            yield page

    async def _page(self, call: Call) -> _Page:
        transport = self._session.transport

        async def attempt() -> _Page:
            async with self._session.open(call) as response:
                if response.status_code != 200:
                    failure = await self._session.failure(call, response)
                    if response.status_code not in _NO_API:
                        raise failure
                    return _Page(response, b"", "", failure)
                following = _next(response, call.where)
                body = await transport.read(response, transport.limits.manifest_bytes, call.where)
                return _Page(response, body, following)

        return await transport.persist(attempt)


class _Page:
    """One answer: `next` is the target of the page after it, "" on the last one."""

    def __init__(
        self, response: httpx.Response, body: bytes, following: str, failure: RegistryError | None = None
    ) -> None:
        self.status = response.status_code
        self.media_type = response.headers.get("content-type", "").partition(";")[0].strip()
        self.filters = {name.strip() for name in response.headers.get("oci-filters-applied", "").split(",")}
        self.body = body
        self.next = following
        self._failure = failure

    def must_be_there(self) -> None:
        """Raises RegistryError when it is a refusal."""
        if self._failure is not None:
            raise self._failure


def _next(response: httpx.Response, where: str) -> str:
    """Path and query of the page that `Link: <…>; rel="next"` names. Raises RegistryError when it is at another host:
    our credentials are not for that one, and neither is its answer the registry's."""
    link = response.links.get("next", {}).get("url", "")
    if not link:
        return ""
    here = str(response.url)
    url = response.url.join(locate(here, link, where))
    if origin(str(url)) != origin(here):
        what = f"the registry refers to {url.netloc.decode('ascii', 'replace')} for the next page of its list"
        raise RegistryError(what, kind="transport", where=where, hint="the registry, or a proxy before it, is at fault")
    return url.raw_path.decode("ascii")


def _call(provider: Provider, path: str, where: str, asked: str) -> Call:
    check_provider(provider.registry, provider.repository)
    headers = {"Accept": f"{INDEX}, application/json"}
    return Call("GET", provider.registry, path, where, asked, (provider.scope,), headers, repeat=False)


def _at(call: Call, target: str) -> Call:
    return Call(call.method, call.registry, target, call.where, call.asked, call.scopes, call.headers, repeat=False)


def _tags(body: bytes, where: str) -> list[str]:
    try:
        tags: Any = parse_json(body)["tags"] or []
        if not all(is_tag(tag) for tag in tags):
            raise ValueError("not a tag")
    except (ValueError, KeyError, TypeError) as error:
        what = "the registry's list of tags is malformed"
        raise RegistryError(what, kind="transport", where=where, hint="the registry is at fault") from error
    return list(tags)


def _bound(found: dict[Any, Any], where: str) -> None:
    if len(found) > ENTRIES:
        raise RegistryError(f"the registry lists more than {ENTRIES} entries", kind="transport", where=where)
