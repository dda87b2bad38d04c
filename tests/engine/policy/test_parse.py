"""A policy is read strictly: what is not understood is an error that says in which line."""

from __future__ import annotations

import pytest

from engine.policy.parse import parse_policy
from storage.digest import sha256
from storage.errors import InputError
from storage.signing.notes import new_signer

KEY = str(new_signer("ours.example", b"k" * 32).verifier)
HOUR = 3_600_000_000_000
HEAD = '[[rule]]\nname = "a"\n'


def test_every_kind_of_rule_is_read_with_all_it_takes() -> None:
    text = f"""# a policy
[[rule]]
name = "ours"
kind = "images"
allow = [
    "registry.example",
    "docker.io/library/*",
]
deny = ["registry.example/old/**"]

[[rule]]  # with a comment
name = "pinned"
kind = "digests"
images = ["docker.io"]

[[rule]]
name = "young"
kind = "age"
max = "36h"

[[rule]]
name = "signed"
kind = "signatures"
keys = ["{KEY}"]

[[ rule ]]
name = "web"
kind = "urls"
schemes = ["https"]

[[rule]]
name = "checked"
kind = "layers"
fetch = true
""".encode()
    policy = parse_policy(text, "p.toml")
    assert (policy.file, policy.digest, policy.text) == ("p.toml", str(sha256(text)), text)
    ours, pinned, young, signed, web, checked = policy.rules
    assert [rule.line for rule in policy.rules] == [2, 11, 16, 21, 26, 31]
    assert (ours.allow, ours.deny) == (("registry.example", "docker.io/library/*"), ("registry.example/old/**",))
    assert (pinned.images, pinned.digests, pinned.allow) == (("docker.io",), (), None)
    assert (young.max_age, signed.keys, web.schemes, checked.fetch) == (36 * HOUR, (KEY,), ("https",), True)
    assert policy.fetches
    assert not parse_policy(text.replace(b"fetch = true", b""), "p.toml").fetches


@pytest.mark.parametrize(("written", "seconds"), [("90m", 5400), ("12h", 43_200), ("3d", 259_200), ("8w", 4_838_400)])
def test_ages_have_four_units(written: str, seconds: int) -> None:
    (rule,) = parse_policy(f'{HEAD}kind = "age"\nmax = "{written}"\n'.encode(), "p.toml").rules
    assert rule.max_age == seconds * 10**9


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("", 1, "tables headed"),
        ("rule = 3\n", 1, "tables headed"),
        ('rule = [{name = "a", kind = "digests"}]\n', 1, "tables headed"),
        ("[[collect]]\nall = true\n", 1, "unknown key 'collect'"),
        (f'{HEAD}kind = "digests"\n\n[images]\nallow = []\n', 5, "unknown key 'images'"),
        ('[[rule]]\nkind = "digests"\n', 1, "needs name"),
        ('[[rule]]\nname = ""\nkind = "digests"\n', 2, "a rule's name"),
        ('[[rule]]\nname = "a\\u001bb"\nkind = "digests"\n', 2, "a rule's name"),
        ("[[rule]]\nname = 3\n", 2, "name is not a string"),
        (HEAD, 1, "needs kind"),
        (f'{HEAD}kind = "image"\n', 3, "no kind of rule"),
        (f'{HEAD}kind = "images"\nalow = []\n', 4, "unknown key 'alow'"),
        (f'{HEAD}kind = "images"\n"max" = "3d"\nallow = []\n', 4, "unknown key 'max'"),
        (f'{HEAD}kind = "images"\n', 3, "forbids nothing"),
        (f'{HEAD}kind = "images"\nallow = "x"\n', 4, "not a list of strings"),
        (f'{HEAD}kind = "images"\nallow = [1]\n', 4, "not a list of strings"),
        (f'{HEAD}kind = "images"\nallow = [""]\n', 4, "not a list of strings"),
        (f'{HEAD}kind = "images"\nallow.x = 1\n', 4, "not a list of strings"),
        (f'{HEAD}kind = "digests"\nimages = []\n', 4, "images is empty"),
        (f'{HEAD}kind = "digests"\ndigests = []\n', 4, "digests is empty"),
        (f'{HEAD}kind = "digests"\ndigests = ["sha256:12"]\n', 4, "is not a digest"),
        (f'{HEAD}kind = "age"\n', 3, "needs max"),
        (f'{HEAD}kind = "age"\nmax = "soon"\n', 4, "not an age"),
        (f'{HEAD}kind = "age"\nmax = 30\n', 4, "max is not a string"),
        (f'{HEAD}kind = "signatures"\n', 3, "needs keys"),
        (f'{HEAD}kind = "signatures"\nkeys = []\n', 4, "keys is empty"),
        (f'{HEAD}kind = "signatures"\nkeys = ["ours"]\n', 4, "no Ed25519 key"),
        (f'{HEAD}kind = "signatures"\nkeys = ["{KEY.replace("ours", "hers")}"]\n', 4, "key is damaged"),
        (f'{HEAD}kind = "network"\nallow = ["bridge"]\n', 4, "cannot stand in allow"),
        (f'{HEAD}kind = "privileges"\nallow = ["root"]\n', 4, "cannot stand in allow"),
        (f'{HEAD}kind = "urls"\nschemes = ["ftp"]\n', 4, "cannot stand in schemes"),
        (f'{HEAD}kind = "layers"\nfetch = "yes"\n', 4, "not true or false"),
        (f'{HEAD}kind = "digests"\n{HEAD}kind = "digests"\n', 4, "line 1 is called 'a', too"),
        (f'{HEAD}kind = "digests"\nkind = "age"\n', 4, "not TOML"),
        (f"{HEAD}kind = \n", 3, "not TOML"),
        (f'{HEAD}kind = "age"\nmax = {"9" * 5000}\n', 5, "not TOML"),
        (f'{HEAD}kind = "images"\nallow = ["{"x" * 1001}"]\n', 4, "up to 1000"),
        (f'{HEAD}kind = "images"\nallow = ["a\\u001b"]\n', 4, "printable"),
        ("".join(f'[[rule]]\nname = "{n}"\nkind = "digests"\n' for n in range(1001)), 3001, "at most 1000 rules"),
        ('[[rule]]\nname = """\n[[rule]]\n"""\nkind = "digests"\n', 2, "several lines"),
    ],
)
def test_what_is_not_understood_is_one_line_that_says_where(text: str, line: int, says: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_policy(text.encode(), "p.toml")
    assert str(caught.value).startswith(f"p.toml:{line}: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text_or_too_large_is_refused() -> None:
    for data in (b"\xff\xfe", b"#" * (2 << 20), HEAD.encode() + b'kind = "digests"\n#' + b"\xff"):
        with pytest.raises(InputError):
            parse_policy(data, "p.toml")


@pytest.mark.parametrize(("kind", "pattern", "says"), [
    ("urls", "https://evil.example/**", "no scheme"), ("git", "ssh://git@evil.example", "no scheme"),
    ("git", "git@evil.example:ours/*", "does not begin with a host"), ("urls", "/x", "does not begin with a host"),
    ("git", "evil.example:ours/*", "does not begin with a host"), ("urls", "evil.example/a/../b", "empty parts"),
    ("urls", "evil.example//a", "empty parts"), ("images", "oci-layout/srv/./x", "empty parts"),
    ("images", "docker.io/library/debian:12", "by its repository"), ("caches", "a.example/c@x", "by its repository"),
    ("images", "debian", "is no registry"), ("images", "library/debian", "is no registry"),
    ("exports", "local/x", "is no registry"), ("exports", "registry", "is no registry"),
])  # fmt: skip
def test_a_pattern_that_fits_nothing_is_refused(kind: str, pattern: str, says: str) -> None:
    """It was taken, and a rule that denied it forbade nothing."""
    for key in ("allow", "deny"):
        with pytest.raises(InputError, match=rf"p.toml:4: .*{says}"):
            parse_policy(f'{HEAD}kind = "{kind}"\n{key} = ["ok.example", "{pattern}"]\n'.encode(), "p.toml")
    if kind == "images":
        with pytest.raises(InputError, match=says):
            parse_policy(f'{HEAD}kind = "age"\nmax = "3d"\nimages = ["{pattern}"]\n'.encode(), "p.toml")


@pytest.mark.parametrize(("kind", "pattern"), [
    ("images", "docker.io/library/*"), ("images", "*"), ("images", "**"), ("images", "localhost"), ("images", "a:1/x"),
    ("images", "localhost:5000/**"), ("images", "[::1]:5000/x"), ("images", "::1"), ("images", "oci-layout/srv/a:b"),
    ("images", "oci-layout/**"), ("exports", "oci"), ("exports", "*.example:*"), ("urls", "intranet/x"),
    ("urls", "h.example:8080/a?b"), ("urls", "h.example/"), ("urls", "h.example/a:b@c"), ("git", "h.example/x.git"),
    ("secrets", "a://b"), ("images", "127.1"),
])  # fmt: skip
def test_a_pattern_that_may_fit_is_taken(kind: str, pattern: str) -> None:
    (rule,) = parse_policy(f'{HEAD}kind = "{kind}"\ndeny = ["{pattern}"]\n'.encode(), "p.toml").rules
    assert rule.deny == (pattern,)
