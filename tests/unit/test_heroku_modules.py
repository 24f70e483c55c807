"""The modules heroku_… and their client against the double's API: what goes wrong, and what is sent again."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import ansible.module_utils
import pytest

from boiler.settings import ROOT
from tests.heroku.api import Double, Fault

ansible.module_utils.__path__.append(str(ROOT / "deploy" / "module_utils"))

from ansible.module_utils import heroku as client  # noqa: E402
from ansible.module_utils import heroku_releases  # noqa: E402

SECRET = "hunter2-hunter2"


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "deploy" / "library" / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture
def double(postgres: str, tmp_path: Path) -> Iterator[Double]:
    with Double(postgres, tmp_path / "cache") as made:
        yield made
        assert made.violations == []


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def api(double: Double, pauses: list[float]) -> client.Heroku:
    return client.Heroku(double.url, double.key, pauses.append)


def ensure_app(api: client.Heroku, *, check: bool = False, **changes: Any) -> dict[str, Any]:
    parameters = {
        "app": "shop",
        "region": "us",
        "stack": "heroku-24",
        "team": "",
        "buildpacks": ["heroku/python"],
        "state": "present",
    }
    return module("heroku_app").work({**parameters, **changes}, api, check)


def ensure_config(api: client.Heroku, values: dict[str, Any], *, check: bool = False) -> dict[str, Any]:
    parameters = {"app": "shop", "values": values, "generated": ["DJANGO_SECRET_KEY"]}
    return module("heroku_config").work(parameters, api, check)


def error_of(call: Any) -> str:
    with pytest.raises(client.HerokuError) as raised:
        call()
    text = str(raised.value)
    assert "\n" not in text
    return text


def test_a_new_app_has_its_stack_and_buildpack_and_a_second_run_changes_nothing(
    api: client.Heroku, double: Double
) -> None:
    made = ensure_app(api)
    assert made["changed"]
    assert made["address"] == double.apps["shop"].router.url
    before = double.changes()
    assert before == ["POST /apps", "PUT /apps/shop/buildpack-installations"]
    assert not ensure_app(api)["changed"]
    assert double.changes() == before


def test_a_new_stack_counts_from_the_next_build_on(api: client.Heroku, double: Double) -> None:
    ensure_app(api)
    assert ensure_app(api, stack="heroku-26")["diff"]["after"].splitlines()[1] == "stack: heroku-26"
    assert not ensure_app(api, stack="heroku-26")["changed"]
    assert double.changes().count("PATCH /apps/shop") == 1


def test_an_app_does_not_move_to_another_region(api: client.Heroku) -> None:
    ensure_app(api)
    assert "shop is in us, not eu" in error_of(lambda: ensure_app(api, region="eu"))


def test_config_is_one_request_and_a_secret_is_made_once(api: client.Heroku, double: Double) -> None:
    ensure_app(api)
    first = ensure_config(api, {"DYNO_GRACE": 30, "DEBUG": False, "PASSWORD": SECRET})
    config = double.apps["shop"].config
    key = config["DJANGO_SECRET_KEY"]
    assert len(key) >= 50
    assert config == {"DYNO_GRACE": "30", "DEBUG": "0", "PASSWORD": SECRET, "DJANGO_SECRET_KEY": key}
    second = ensure_config(api, {"DYNO_GRACE": 25, "DEBUG": None, "PASSWORD": SECRET})
    assert double.apps["shop"].config == {"DYNO_GRACE": "25", "PASSWORD": SECRET, "DJANGO_SECRET_KEY": key}
    assert second["diff"] == {"before": "DEBUG: set\nDYNO_GRACE: set\n", "after": "DYNO_GRACE: set anew\n"}
    assert not ensure_config(api, {"DYNO_GRACE": "25", "DEBUG": None, "PASSWORD": SECRET})["changed"]
    assert double.changes().count("PATCH /apps/shop/config-vars") == 2
    assert SECRET not in str(first) + str(second)
    assert key not in str(first) + str(second)


def test_check_mode_tells_what_a_new_app_would_get_and_sends_no_change(api: client.Heroku, double: Double) -> None:
    assert ensure_app(api, check=True)["changed"]
    assert ensure_config(api, {"DYNO_GRACE": 30}, check=True)["changed"]
    addon = module("heroku_addon").work({"app": "shop", "plan": "heroku-postgresql:essential-0"}, api, True)
    formation = {"app": "shop", "quantities": {"web": 1}, "size": "basic"}
    scaled = module("heroku_formation").work(formation, api, True)
    domains = module("heroku_domains").work({"app": "shop", "domains": ["shop.example.com"]}, api, True)
    assert addon["changed"]
    assert scaled["diff"] == {"before": "", "after": "web: 1 x basic\n"}
    assert domains["changed"]
    assert double.changes() == []
    assert double.apps == {}


def test_an_app_that_is_gone_is_an_error_unless_in_check_mode(api: client.Heroku) -> None:
    assert "404 not_found" in error_of(lambda: ensure_config(api, {"A": "b"}))


def test_the_database_is_waited_for_and_attached_once(
    api: client.Heroku, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure_app(api)
    addon = module("heroku_addon")
    monkeypatch.setattr(addon, "PAUSE", 0.1)
    assert addon.work({"app": "shop", "plan": "heroku-postgresql:essential-0"}, api, False)["changed"]
    assert double.apps["shop"].addons[0].state == "provisioned"
    again = addon.work({"app": "shop", "plan": "heroku-postgresql:standard-0"}, api, False)
    assert not again["changed"]
    assert "shop has heroku-postgresql:essential-0, not heroku-postgresql:standard-0" in again["warning"]
    assert double.changes().count("POST /apps/shop/addons") == 1


def test_domains_are_added_with_certificates_and_none_is_removed(api: client.Heroku, double: Double) -> None:
    ensure_app(api)
    double.apps["shop"].domains.append("old.example.com")
    domains = module("heroku_domains")
    assert domains.work({"app": "shop", "domains": ["shop.example.com"]}, api, False)["changed"]
    assert not domains.work({"app": "shop", "domains": ["shop.example.com"]}, api, False)["changed"]
    assert double.apps["shop"].domains == ["old.example.com", "shop.example.com"]
    assert double.apps["shop"].acm


def test_too_many_requests_are_waited_out_as_long_as_heroku_says(
    api: client.Heroku, double: Double, pauses: list[float]
) -> None:
    double.faults = [Fault("POST", "/apps$", 429, "rate_limit", times=2, headers={"Retry-After": "7"})]
    ensure_app(api)
    assert pauses == [7, 7]
    assert double.changes().count("POST /apps") == 3


def test_a_used_up_rate_limit_ends_in_one_line(api: client.Heroku, double: Double) -> None:
    double.faults = [Fault("GET", "/apps/shop", 429, "rate_limit", times=99)]
    assert "429 rate_limit" in error_of(lambda: ensure_app(api))
    assert len(double.requests) == len(client.PAUSES) + 1


@pytest.mark.parametrize(("status", "after"), [(503, False), (0, False), (0, True)])
def test_a_read_or_a_change_that_can_be_repeated_is(
    api: client.Heroku, double: Double, pauses: list[float], status: int, after: bool
) -> None:
    ensure_app(api)
    double.faults = [
        Fault("GET", "config-vars", status, "unavailable", times=2, after=after),
        Fault("PATCH", "config-vars", status, "unavailable", times=2, after=after),
    ]
    ensure_config(api, {"DYNO_GRACE": 30})
    assert double.apps["shop"].config["DYNO_GRACE"] == "30"
    assert pauses == [1, 2, 1, 2]


@pytest.mark.parametrize(("status", "after"), [(503, True), (0, True), (0, False)])
def test_a_post_that_may_have_taken_effect_is_not_repeated_and_the_next_run_goes_on(
    api: client.Heroku, double: Double, status: int, after: bool
) -> None:
    double.faults = [Fault("POST", "/apps$", status, "unavailable", after=after)]
    assert "may have taken effect: run this again" in error_of(lambda: ensure_app(api))
    assert double.changes() == ["POST /apps"]
    assert ensure_app(api)["changed"]
    assert list(double.apps) == ["shop"]


def test_an_answer_that_does_not_come_in_time_is_no_answer(
    api: client.Heroku, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "TIMEOUT", 0.2)
    double.faults = [
        Fault("POST", "/apps$", after=True, delay=1),
        Fault("GET", "/buildpack-installations$", delay=1),
    ]
    assert "no answer (timed out), so it may have taken effect" in error_of(lambda: ensure_app(api))
    monkeypatch.setattr(client, "TIMEOUT", 30)
    assert ensure_app(api)["changed"], "the next run finds the app and goes on"
    assert double.changes().count("POST /apps") == 1


@pytest.mark.parametrize(
    ("status", "kind", "advice"),
    [
        (401, "unauthorized", "heroku login"),
        (402, "delinquent", "dashboard.heroku.com/account/billing"),
        (402, "verification_needed", "https://heroku.com/verify"),
        (403, "forbidden", "another account's"),
        (403, "suspended", "support"),
        (403, "two_factor", "heroku authorizations:create"),
        (409, "conflict", "another change"),
        (422, "invalid_params", "deploy/inventory.yml"),
        (422, "verification_needed", "https://heroku.com/verify"),
    ],
)
def test_each_refusal_is_one_line_with_what_to_do(
    api: client.Heroku, double: Double, status: int, kind: str, advice: str
) -> None:
    double.faults = [Fault("POST", "/apps$", status, kind, "Heroku's words.\nMore of them.")]
    text = error_of(lambda: ensure_app(api))
    assert text.startswith(f"POST /apps: {status} {kind}: Heroku's words. More of them: ")
    assert advice in text
    assert double.changes() == ["POST /apps"]


def test_a_name_that_another_account_has_is_explained(api: client.Heroku, double: Double) -> None:
    double.taken.add("shop")
    assert "another account's" in error_of(lambda: ensure_app(api))


def test_a_wrong_key_is_explained_and_not_shown(double: Double) -> None:
    text = error_of(lambda: client.Heroku(double.url, SECRET).get("/account"))
    assert "HEROKU_API_KEY is not accepted" in text
    assert SECRET not in text


def test_the_key_travels_by_https_or_stays_on_this_machine() -> None:
    for url in ("http://api.example.com", "http://127.0.0.1.example.com", "ftp://127.0.0.1", "api.example.com"):
        assert "must begin with https://" in error_of(lambda url=url: client.Heroku(url, SECRET))
    for url in ("https://api.example.com/", "http://127.0.0.1:5000", "http://[::1]:5000"):
        assert not client.Heroku(url, SECRET).url.endswith("/")


def test_the_key_comes_from_the_environment_or_from_heroku_login(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, double: Double
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HEROKU_API_URL", double.url)
    monkeypatch.delenv("HEROKU_API_KEY", raising=False)
    assert "no key for Heroku" in error_of(client.Heroku.from_environment)
    login = tmp_path / ".netrc"
    login.write_text(f"machine 127.0.0.1 login cook@example.com password {double.key}\n")
    login.chmod(0o600)
    assert client.Heroku.from_environment().get("/account")["email"] == "cook@example.com"
    monkeypatch.setenv("HEROKU_API_KEY", "another")
    assert "401" in error_of(lambda: client.Heroku.from_environment().get("/account"))


def test_a_dyno_of_the_release_before_that_has_crashed_is_waited_for(
    api: client.Heroku, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure_app(api)
    dynos = module("heroku_dynos")
    monkeypatch.setattr(dynos, "PAUSE", 0)
    current = double.apps["shop"].current.version

    def dyno(state: str, release: int, name: str = "web.1") -> dict[str, Any]:
        return {"name": name, "type": name.partition(".")[0], "state": state, "release": {"version": release}}

    seen = iter(
        [
            [dyno("crashed", current - 1), dyno("crashed", current, "run.1")],
            [dyno("starting", current)],
            [dyno("up", current), dyno("up", current - 1, "worker.1")],
            [dyno("up", current), dyno("idle", current, "worker.1")],
        ]
    )
    monkeypatch.setattr(api, "get", lambda path, **_: next(seen) if path.endswith("/dynos") else double_releases)
    double_releases = [{"version": current, "current": True}]
    assert not dynos.work({"app": "shop", "wait": 60}, api, False)["changed"]
    assert next(seen, None) is None
    seen = iter([[dyno("crashed", current)]])
    assert f"web.1 is crashed (v{current})" in error_of(lambda: dynos.work({"app": "shop", "wait": 60}, api, False))


def test_the_output_of_a_failed_build_is_shown_to_its_end_although_the_connection_breaks() -> None:
    output = "one\nzwei: \u00fc\nthree\n".encode()
    shown = bytearray()

    class Api:
        def get(self, _path: str) -> dict[str, str]:
            return {"status": "failed", "output_stream_url": "https://stream"}

        def stream(self, _url: str, start: int, _timeout: float) -> Iterator[bytes]:
            yield output[start : start + 11]  # in the middle of a character
            if start + 11 < len(output):
                raise ConnectionResetError

    class Live:
        def write(self, piece: bytes) -> None:
            shown.extend(piece)

    assert heroku_releases.watch(Api(), "/apps/shop/builds/1", Live())["status"] == "failed"
    assert shown == output


class Builds:
    """The API of an app that runs `commit`, built by whoever; `pending` is a commit whose build is under way."""

    def __init__(self, commit: str, pending: str = "") -> None:
        self.builds = [{"id": "1", "status": "succeeded", "slug": {"id": "s"}, "source_blob": {"version": commit}}]
        if pending:
            self.builds += [{"id": "2", "status": "pending", "slug": None, "source_blob": {"version": pending}}]
        self.posted: list[str] = []

    def get(self, path: str, **_: str) -> Any:
        if path.endswith("/builds"):
            return [*self.builds]
        if path.endswith("/releases"):
            return [{"version": 3, "current": True, "slug": {"id": "s"}}]
        if path.endswith("/builds/2"):
            return {**self.builds[1], "status": "succeeded", "release": {"id": "r"}}
        return {"version": 4, "status": "succeeded"}

    def post(self, path: str, _body: Any = None) -> Any:
        self.posted.append(path)
        raise client.HerokuError("no more is needed here")


def test_a_commit_that_was_pushed_by_hand_counts_as_deployed_and_another_does_not() -> None:
    build = module("heroku_build")
    parameters = {"app": "shop", "checkout": str(ROOT), "commit": "HEAD"}
    assert not build.work(parameters, Builds("HEAD"), False)["changed"]
    pushed = Builds("another")
    assert build.work(parameters, pushed, True)["diff"] == {"before": "another\n", "after": "HEAD\n"}
    assert "no more is needed" in error_of(lambda: build.work(parameters, pushed, False))
    assert pushed.posted == ["/apps/shop/sources"]


def test_a_build_of_the_commit_that_is_under_way_is_waited_for_instead_of_a_second_one() -> None:
    api = Builds("another", pending="HEAD")
    parameters = {"app": "shop", "checkout": str(ROOT), "commit": "HEAD"}
    assert module("heroku_build").work(parameters, api, False)["changed"]
    assert api.posted == []
