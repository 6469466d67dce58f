# SPDX-License-Identifier: Apache-2.0
"""Reports in a real browser: light, dark and on a telephone, without network and without errors."""

from __future__ import annotations

import browser
import pytest
from browser import browser_page
from report_pages import folder_of, hostile_run, row

WITHOUT = browser.why_not()
pytestmark = pytest.mark.skipif(WITHOUT is not None, reason=str(WITHOUT))
READY = "document.documentElement.dataset.ready"


@pytest.mark.parametrize(
    ("width", "dark", "touch"), [(1200, False, False), (1200, True, False), (390, True, True)]
)
def test_page_opens_without_network_or_errors(two_runs, report, width, dark, touch):
    made = report(two_runs / "ahpa", two_runs / "none")
    with browser_page(width=width, dark=dark, touch=touch) as page:
        page.open(made.path, READY)
        page.value("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        page.wait_for("[...document.querySelectorAll('.plot')].every((plot) => plot.data)")
        drawn = page.value("document.querySelectorAll('.plot .main-svg').length")
        # Text and page in the two colours of the scheme.
        light = (
            page.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        )
        ink = page.value("getComputedStyle(document.querySelector('.xtick text')).fill")
        assert page.value("document.documentElement.scrollWidth") == width
        page.value(
            "{ const axis = document.getElementById('axis'); axis.value = 'images';"
            " axis.dispatchEvent(new Event('change')); }"
        )
        page.wait_for("document.querySelector('.plot').data[1].x.at(-1) === 6 * 32")
        assert drawn
        assert light is not dark
        assert ink == ("rgb(228, 232, 236)" if dark else "rgb(27, 31, 36)")
        assert page.complaints == []
        assert page.requests == []


def test_what_a_run_says_is_never_executed(tmp_path, report):
    other = folder_of(tmp_path, "other", [row(1), row(2)])
    made = report(hostile_run(tmp_path), other)
    with browser_page() as page:
        page.open(made.path, READY)
        page.value("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        page.wait_for("[...document.querySelectorAll('.plot')].every((plot) => plot.data)")
        legend = page.value("document.querySelector('.legendtext').textContent")
        assert legend.startswith("</script><script>")
        assert page.value("window.hurt") is None
        assert page.value("document.scripts.length") == 4
        assert page.complaints == []
        assert page.requests == []
