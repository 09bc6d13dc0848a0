"""The site as `make docs` builds it: strictly, with a page for every method, and with nothing from elsewhere."""

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

from headstart.docs.pages import filled
from headstart.methods import registry

ROOT = Path(__file__).parents[2]


def test_pages_that_ask_for_what_is_not_there_are_refused() -> None:
    with pytest.raises(Exception, match="did you mean 'minference'"):
        filled("<!-- methods: minferense -->", {})
    with pytest.raises(Exception, match="which is not there"):
        filled("<!-- reference: headstart.training.recipe:Recipes -->", {})
    with pytest.raises(Exception, match="methods, reference and names"):
        filled("<!-- metods: minference -->", {})


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does: strictly."""
    pytest.importorskip("material", reason="building the documentation needs the docs extra")
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return out


def test_the_site_has_a_page_for_every_method(site: Path) -> None:
    """Each with its claim, a measurement or that there is none, when not to use it, and its commands."""
    index = (site / "catalogue" / "index.html").read_text(encoding="utf-8")
    for card in registry.catalogue():
        page = (site / "catalogue" / f"{card.key}.html").read_text(encoding="utf-8")
        assert f'href="{quote(card.key)}.html"' in index
        for title in ("what-it-does", "when-not-to-use-it", "the-papers-claim", "measured-here", "commands"):
            assert f'id="{title}"' in page, f"{card.key} has no part {title}"
        assert ("There is no code yet" in page) == (card.status == "planned")


def test_the_site_fetches_nothing_from_elsewhere(site: Path) -> None:
    """No fonts, scripts, styles or pictures; links for readers may lead elsewhere."""
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert re.findall(r'<(?:script|img|iframe)[^>]+src="(?:https?:)?//', text) == [], page.name
        assert re.findall(r'<link[^>]+href="(?:https?:)?//', text) == [], page.name
