"""The demo's page in a real browser, on the packed dyno."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.dyno import Dyno
from tests.wait import wait_for

QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PHONE = {"width": 360, "height": 740}
Open = Callable[..., AbstractContextManager[Page]]


@pytest.fixture
def visit(chromium: str, dyno: Dyno) -> Iterator[Open]:
    """Open the page in a browser: `with visit(viewport=…) as page`.

    The console must stay without an error, except for one that contains `excused`.
    """

    @contextmanager
    def visiting(excused: str = "", **options: Any) -> Iterator[Page]:
        context = browser.new_context(**options)
        page = context.new_page()
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(dyno.url)
        yield page
        context.close()
        assert [text for text in complaints if not excused or excused not in text] == []

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=QUIET)
        yield visiting
        browser.close()


def cook(page: Page, kind: str, seconds: str) -> None:
    page.get_by_role("radio", name=kind).check()
    page.get_by_label("seconds", exact=True).fill(seconds)
    page.get_by_role("button", name="Cook it").click()


def newest(page: Page) -> Any:
    return page.locator("#jobs tr").first


def test_a_click_is_followed_to_done_without_a_reload(visit: Open, dyno: Dyno):
    with visit() as page:
        page.evaluate("window.loadedOnce = true")
        expect(page.locator("#jobs tr")).to_have_count(0)
        cook(page, "sleep", "1.5")
        expect(newest(page)).to_contain_text("running", timeout=20_000)
        expect(page.get_by_role("status")).to_have_text(re.compile(r"Job \d+ is running in process \d+\."))
        worker = dyno.inner("worker")
        pid = newest(page).locator("[data-field=pid]").inner_text()
        assert int(pid) in {child["pid"] for child in worker["children"]}
        expect(newest(page)).to_contain_text("done", timeout=20_000)
        expect(newest(page)).to_contain_text("1.5 s")
        expect(page.get_by_role("status")).to_have_text(re.compile(r"Job \d+ is done\."))
        assert page.evaluate("window.loadedOnce")


def test_the_dyno_is_pictured_with_its_processes_and_a_restarted_one_is_seen(visit: Open, dyno: Dyno):
    with visit() as page:
        before = dyno.inner("beat")["pid"]
        beat = page.locator("#processes > li").filter(has_text="celery beat")
        for name, what in (("web", "gunicorn"), ("worker", "celery worker"), ("beat", "celery beat")):
            bowl = page.locator(f"#processes > li[data-name={name}]")
            expect(bowl).to_contain_text(what)
            expect(bowl).to_contain_text("running", timeout=20_000)
        expect(beat).to_contain_text(str(before))
        os.kill(before, signal.SIGKILL)
        expect(beat).to_contain_text("restarted 1", timeout=20_000)
        expect(beat).to_contain_text("running", timeout=20_000)
        assert str(before) not in beat.inner_text().split()


def test_every_kind_of_job_is_cooked_and_a_refusal_is_said(visit: Open):
    with visit(excused="status of 400") as page:
        for kind in ("sleep", "cpu", "io") * 5:
            cook(page, kind, "0.05")
            expect(newest(page)).to_contain_text(kind)
        expect(page.locator("#jobs tr").filter(has_text="done")).to_have_count(12, timeout=20_000)
        expect(page.locator("#jobs tr")).to_have_count(12)
        complaint = page.get_by_role("alert")
        expect(complaint).to_be_empty()
        page.evaluate("document.getElementById('order').noValidate = true")
        cook(page, "sleep", "61")
        expect(complaint).to_have_text("seconds must be a number from 0 to 60.")
        cook(page, "sleep", "0")
        expect(complaint).to_be_empty()


def test_the_page_is_used_by_keyboard_alone_and_without_javascript(visit: Open):
    with visit() as page:
        page.get_by_role("radio", name="sleep").focus()
        page.keyboard.press("ArrowDown")
        expect(page.get_by_role("radio", name="cpu")).to_be_checked()
        page.keyboard.press("Tab")
        page.keyboard.press("ControlOrMeta+a")
        page.keyboard.type("0.1")
        page.keyboard.press("Enter")
        expect(newest(page)).to_contain_text("cpu 100 ms")
        expect(newest(page)).to_contain_text("done", timeout=20_000)
    with visit(java_script_enabled=False) as page:
        cook(page, "io", "0.1")
        expect(newest(page)).to_contain_text("io 100 ms")

        def is_done_after_a_reload() -> bool:
            page.get_by_role("link", name="Reload").click()
            return "done" in newest(page).inner_text()

        wait_for(is_done_after_a_reload, "the job is shown done")


def test_the_page_fits_a_phone_in_light_and_dark(visit: Open):
    for scheme in ("light", "dark"):
        with visit(viewport=PHONE, color_scheme=scheme, is_mobile=True, has_touch=True) as page:
            cook(page, "sleep", "0.1")
            expect(newest(page)).to_contain_text("done", timeout=20_000)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            background = page.evaluate("getComputedStyle(document.body).backgroundColor")
            brightness = sum(map(int, re.findall(r"\d+", background)[:3]))
            assert (brightness < 200) == (scheme == "dark")
