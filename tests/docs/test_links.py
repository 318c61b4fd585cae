"""Links between pages, on GitHub and on the site, without a network."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.docs.pages import PAGES, ROOT, anchors, name, prose

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
ELSEWHERE = ("http://", "https://", "mailto:")


def links(page):
    return [to for to in LINK.findall(prose(page)) if not to.startswith(ELSEWHERE)]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page):
    for link in links(page):
        to, _, anchor = link.partition("#")
        target = (page.parent / to).resolve() if to else page
        assert target.is_file(), f"{link} is not there"
        assert target.is_relative_to(ROOT), f"{link} is outside of the repository"
        assert not anchor or anchor in anchors(target), f"{link}: no such heading"


@pytest.mark.parametrize("page", [p for p in PAGES if p.parent != ROOT], ids=name)
def test_no_page_of_the_site_links_out_of_the_site(page):
    for link in links(page):
        target = (page.parent / link.partition("#")[0]).resolve()
        assert target.is_relative_to(ROOT / "docs"), link


def test_every_page_is_in_the_navigation_once():
    # The tag names a function of the site builder, which is not needed here.
    text = re.sub(r"!!python/\S+", "", (ROOT / "mkdocs.yml").read_text("utf-8"))

    def files(entry):
        if isinstance(entry, str):
            return [entry]
        entries = entry.values() if isinstance(entry, dict) else entry
        return [file for part in entries for file in files(part)]

    listed = files(yaml.safe_load(text)["nav"])
    docs = ROOT / "docs"
    assert sorted(listed) == sorted(p.relative_to(docs).as_posix() for p in docs.rglob("*.md"))


@pytest.mark.slow
def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("mkdocs", reason="`make docs` installs it")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = re.compile(r"<(?:script|img|iframe)[^>]*\ssrc=\"?(?:https?:)?//|url\([\"']?https?://")
    sheets = re.compile(r"<link[^>]*rel=\"?(?:stylesheet|preconnect|icon)[^>]*href=\"?https?://")
    pages: list[Path] = [*tmp_path.rglob("*.html"), *tmp_path.rglob("*.css")]
    assert len(pages) > len(PAGES) - 3
    for page in pages:
        text = page.read_text("utf-8")
        assert not loaded.search(text) and not sheets.search(text), page.name
