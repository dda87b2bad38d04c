"""What a manifest says of itself: is it about another one?"""

from __future__ import annotations

import pytest

from storage.digest import canonical_json, sha256
from storage.errors import InputError
from storage.media_types import CONFIG, MANIFEST
from storage.referrers import referring

SUBJECT = {"mediaType": MANIFEST, "digest": str(sha256(b"image")), "size": 5}


@pytest.mark.parametrize("data", [b"{}", b'"subject"', b'{"subject"', b'{"subject":null}', b'["subject"]'])
def test_what_has_no_subject_refers_to_nothing(data: bytes) -> None:
    assert referring(data, MANIFEST) is None


def test_the_entry_tells_what_the_manifest_tells_of_itself() -> None:
    data = canonical_json({"subject": SUBJECT, "annotations": {"by": "me"}, "config": {"mediaType": CONFIG}})
    found = referring(data, MANIFEST)
    assert found is not None
    subject, entry = found
    assert subject == SUBJECT["digest"]
    assert (entry.manifest.digest, entry.manifest.size) == (sha256(data), len(data))
    assert (entry.manifest.annotations, entry.artifact_type) == ({"by": "me"}, CONFIG)


@pytest.mark.parametrize("subject", [5, [], {}, {**SUBJECT, "size": -1}, {**SUBJECT, "digest": "sha256:x"}])
def test_a_subject_that_is_no_descriptor_is_an_input_error(subject: object) -> None:
    with pytest.raises(InputError):
        referring(canonical_json({"subject": subject}), MANIFEST)
