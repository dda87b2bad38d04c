"""`refledger report`: what the page says, that nothing in it is loaded or run, and that a real browser shows it."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.builder import Builder, base_image, layer_digests
from tests.registry_fixture import RegistryProcess
from tests.waiting import PATIENCE

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")

EVIL = "</script><img src=x onerror=alert(1)>"
NAME = "<img src=x onerror=alert(2)>"
CHROMIUM = shutil.which("chromium")


@dataclass
class Page(HTMLParser):
    """What a browser would find in a page: its `text`, the `tags` with attributes, in order."""

    html: str
    text: str = ""
    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attrs for name, attrs in self.tags if name == tag]


@dataclass(frozen=True)
class Told:
    """Two builds of one root: `made` with pulls and cached steps, `failed` with output of whoever."""

    builder: Builder
    image: dict[str, object]
    digests: list[str]
    first: str
    made: str
    failed: str


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, registry: RegistryProcess) -> Told:
    builder = Builder(tmp_path_factory.mktemp("report"))
    image = base_image(registry, "t/report/base", layers=3)
    base = image["reference"]
    dockerfile = (
        f"FROM {base} AS made\nCOPY a /a\nRUN seq 1 100; cat /a > /b\nFROM {base}\nRUN echo other > /o\n"
        "COPY --from=made /b /b\n"
    )
    builder.write({"a": "one"})
    builder.must_build(dockerfile)
    builder.write({"a": "two"})
    builder.must_build(dockerfile, "-t", "shop:1")
    builder.context = builder.context.with_name(NAME)  # a build is called after its directory
    builder.write({"evil.sh": f"echo '{EVIL}'\nprintf '\\033]0;title\\007bell\\n'\nsync\nexit 3\n"})
    done = builder.build(f"FROM {base}\nCOPY evil.sh /\nRUN sh /evil.sh # {EVIL}\n")
    assert done.code != 0
    failed, made, first = (record["id"] for record in builder.builds())
    return Told(builder, image, layer_digests(image), first, made, failed)


def page_of(told: Told, build: str) -> Page:
    done = told.builder.run("report", build, "-o", "-")
    assert (done.code, done.err) == (0, "")
    return Page(done.out)


def test_the_page_tells_the_pulls_of_each_step_with_their_provider(told: Told) -> None:
    page = page_of(told, told.first)
    host = str(told.image["reference"]).rpartition(":")[0]
    assert [row["title"] for row in page.all("td") if "title" in row][: len(told.digests)] == told.digests
    assert page.text.count(host) >= len(told.digests)
    pulled = told.builder.builds()[-1]["bytes_pulled"]
    assert f"pulled{pulled / 1000:.0f}kB" in page.text or f"pulled{pulled / 1e6:.1f}MB" in page.text
    assert len([bar for bar in page.all("rect") if bar["class"] == "pull done"]) >= len(told.digests)


def test_the_page_tells_why_steps_were_cached_or_not_and_what_they_printed(told: Told) -> None:
    page = page_of(told, told.made)
    reasons = told.builder.run("why", told.made, "COPY a").out.splitlines()[1:]
    for line in reasons:
        assert line.strip() in page.text
    assert f"cached: made by build {told.first}" in page.text
    assert {bar["class"] for bar in page.all("rect")} >= {"done", "cached"}
    numbers = [line for line in page.text.splitlines() if line.isdecimal()]
    assert numbers == [str(number) for number in range(1, 101)]
    assert "85 lines before" in page.text
    assert "shop:1" in page.text
    assert len(page.all("circle")) == len(re.findall(r"<li>", page.html))


def test_the_page_of_a_failure_has_its_output_error_and_lines_of_the_dockerfile(told: Told) -> None:
    page = page_of(told, told.failed)
    assert f"\n{EVIL}\n\\x1b]0;title\\x07bell" in page.text
    assert f"   3 | >>> RUN sh /evil.sh # {EVIL}" in page.text
    assert "did not complete successfully: exit code 3" in page.text
    assert [item["id"] for item in page.all("details") if "open" in item] == ["step-4"]


def test_a_build_that_never_came_to_a_step_has_a_page_too(told: Told) -> None:
    assert told.builder.build("FROM scratch\nCOPPY a /a\n").code != 0
    newest = told.builder.builds()[0]
    page = page_of(told, newest["id"])
    assert newest["error"] in page.text
    assert "COPPY" in page.text
    assert "Timeline" not in page.text


def test_of_very_much_output_the_page_has_the_end_and_says_what_it_lacks(told: Told) -> None:
    told.builder.must_build(f"FROM {told.image['reference']}\nRUN seq 1 60000\n")
    page = page_of(told, told.builder.builds()[0]["id"])
    numbers = [int(line) for line in page.text.splitlines() if line.isdecimal()]
    assert numbers == list(range(numbers[0], 60001))
    assert f"{numbers[0] - 1} lines before these are not on this page" in page.text
    assert len(page.html) < 400_000


def test_what_a_build_is_called_or_prints_is_never_markup(told: Told) -> None:
    page = page_of(told, told.failed)
    assert not {tag for tag, _ in page.tags} & {"img", "script", "link", "iframe", "object"}
    assert not [attrs for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert f"{NAME}: failed" in page.text
    assert f"RUN sh /evil.sh # {EVIL}" in page.text
    assert "\x1b" not in page.html
    assert "\x07" not in page.html


@pytest.mark.parametrize("which", ["first", "made", "failed"])
def test_the_page_loads_nothing(told: Told, which: str) -> None:
    page = page_of(told, getattr(told, which))
    ids = {f"#{attrs['id']}" for _, attrs in page.tags if "id" in attrs}
    for tag, attrs in page.tags:
        assert not set(attrs) & {"src", "srcset", "style", "data", "action", "xlink:href", "background"}, (tag, attrs)
        assert attrs.get("href", "#step-1") in ids
    (style,) = re.findall(r"<style>(.*?)</style>", page.html, re.DOTALL)
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = (meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    own = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{own}'; base-uri 'none'; form-action 'none'"


def test_the_same_log_gives_the_same_file_and_nothing_beside_it(told: Told, tmp_path: Path) -> None:
    for name in ("one.html", "two.html", "one.html"):
        done = told.builder.run("report", told.made[:8], "-o", str(tmp_path / name))
        assert (done.code, done.out, done.err) == (0, f"{tmp_path / name}\n", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.html", "two.html"]
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()
    assert (tmp_path / "one.html").read_text() == page_of(told, told.made).html


def test_a_place_that_cannot_be_written_is_one_clear_line(told: Told, tmp_path: Path) -> None:
    done = told.builder.run("report", told.made, "-o", str(tmp_path / "none" / "x.html"))
    assert done.code == 2
    assert len(done.err.splitlines()) == 1
    assert f"{tmp_path}/none: there is no such directory to write to" in done.err
    assert told.builder.run("report", "ffffffffffff", "-o", str(tmp_path / "x.html")).code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium")
def test_a_real_browser_shows_the_page_and_runs_nothing_of_it(told: Told, tmp_path: Path) -> None:
    path = tmp_path / "failed.html"
    assert told.builder.run("report", told.failed, "-o", str(path)).code == 0
    dom = _chromium(tmp_path, "--dump-dom", path.as_uri())
    page = Page(dom.stdout)
    assert f"   3 | >>> RUN sh /evil.sh # {EVIL}" in page.text
    assert not page.all("img")
    assert "Content Security Policy" not in dom.stderr  # it lets the style through, and nothing else asks for anything
    shot = tmp_path / "shot.png"
    _chromium(tmp_path, f"--screenshot={shot}", "--window-size=1200,1600", path.as_uri())
    assert shot.read_bytes().startswith(b"\x89PNG")
    assert shot.stat().st_size > 20_000  # an empty page of that size is a tenth of it


def _chromium(directory: Path, *args: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    return subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--disable-dev-shm-usage",
         f"--user-data-dir={directory / 'profile'}", *args],
        env={"PATH": os.environ["PATH"], "HOME": str(directory)}, text=True, capture_output=True, check=True,
        timeout=PATIENCE,
    )  # fmt: skip
