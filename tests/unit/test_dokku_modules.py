"""The Dokku client's own rules: what it sends, how it reads errors; and what the files for Dokku say."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from types import ModuleType
from typing import Any

import ansible.module_utils
import pytest
import yaml

from boiler.settings import ROOT

ansible.module_utils.__path__.append(str(ROOT / "deploy" / "module_utils"))

from ansible.module_utils import dokku  # noqa: E402

STEPS = ["App exists", "Database attached", "Config set", "Code released", "Scaled"]


@pytest.mark.parametrize("value", ["a b", "it's", 'say "x"', "$HOME `id` $(id)", "back\\slash", "ä", "*"])
def test_words_arrive_on_the_host_as_they_were(value: str) -> None:
    line = dokku.one_line(("config:set", "--no-restart", "shop", f"K={value}"))
    split = subprocess.run(["xargs", "-n", "1"], input=line, capture_output=True, text=True, check=True)
    assert split.stdout.splitlines() == ["config:set", "--no-restart", "shop", f"K={value}"]


def test_a_line_break_is_refused_before_it_is_lost() -> None:
    with pytest.raises(dokku.DokkuError, match="a value with a line break can't be sent to Dokku"):
        dokku.one_line(("config:set", "K=a\nb"))


@pytest.mark.parametrize("host", ["root@example.com", "example.com:2222", "", "-oProxyCommand=id", "a b"])
def test_a_host_is_a_name_alone(host: str) -> None:
    with pytest.raises(dokku.DokkuError, match=r"user, port and jump host belong into ~/\.ssh/config"):
        dokku.Dokku(host)


def test_the_reason_of_a_failed_push_is_dokkus_own_line_not_gits() -> None:
    output = """\
remote:  !     django.db.utils.OperationalError: no such host
remote: \x1b[1G\x1b[K !     Execution of release task failed: app/boil release
To example.com:shop
 ! [remote rejected] 0123 -> main (pre-receive hook declined)
error: failed to push some refs to 'example.com:shop'
"""
    assert dokku.last_words(output) == "Execution of release task failed: app/boil release"


def test_a_failure_without_a_mark_is_its_last_line() -> None:
    assert dokku.last_words("one\nPermission denied (publickey).\n\n") == "Permission denied (publickey)"
    assert dokku.last_words("") == "no reason given"


def test_a_diff_has_a_line_for_what_differs_alone() -> None:
    shown = dokku.difference({"same": 1, "old": "x", "gone": "y"}, {"same": 1, "old": "z", "gone": ""})
    assert shown == {"before": "gone: y\nold: x\n", "after": "old: z\n"}


def test_the_steps_are_those_of_heroku_in_the_same_order() -> None:
    for platform in ("heroku", "dokku"):
        plays = yaml.safe_load((ROOT / "deploy" / f"{platform}.yml").read_text())
        names = [task["name"] for task in plays[1]["tasks"]]
        assert [name for name in names if name in STEPS] == STEPS


def test_dokku_asks_the_page_that_knows_of_every_process_and_leaves_the_scale_to_the_deployment() -> None:
    described = json.loads((ROOT / "dokku" / "app.json").read_text())
    (check,) = described["healthchecks"]["web"]
    assert check["path"] == "/healthz"
    assert "formation" not in described


def test_what_would_switch_builders_is_not_in_the_root() -> None:
    for name in ("Dockerfile", "package.json", "project.toml"):
        assert not (ROOT / name).exists()


def test_the_toolbelts_lock_file_names_no_registry() -> None:
    packages = json.loads((ROOT / "dokku" / "package-lock.json").read_text())["packages"]
    assert not any("resolved" in one for one in packages.values())
    assert all(one.get("integrity") for name, one in packages.items() if name)


class Host:
    """Stands for a host with the letsencrypt plugin; notes what it is told."""

    host = "example.com"

    def __init__(self, *plugins: str, domains: str = "shop.example.com", certified: str = "false") -> None:
        self.plugins, self.domains, self.certified = plugins, domains, certified
        self.told: list[tuple[str, ...]] = []

    def has_plugin(self, name: str) -> bool:
        return name in self.plugins

    def report(self, *_: str) -> dict[str, str]:
        return {"app-vhosts": self.domains, "app-enabled": "true"}

    def ask(self, *_: str) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 0, self.certified + "\n", "")

    def run(self, *words: str) -> None:
        self.told.append(words)

    def run_live(self, _live: Any, *words: str) -> None:
        self.told.append(words)


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "deploy" / "library" / f"{name}.py")
    assert spec and spec.loader
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


WANTED = {"app": "shop", "domains": ["a.org", "b.org"], "letsencrypt_email": "me@a.org"}


def test_domains_replace_those_of_the_host_and_get_a_certificate() -> None:
    host = Host("letsencrypt")
    assert module("dokku_domains").work(WANTED, host, False)["changed"]
    assert host.told == [
        ("domains:set", "shop", "a.org", "b.org"),
        ("letsencrypt:set", "shop", "email", "me@a.org"),
        ("letsencrypt:enable", "shop"),
    ]


def test_domains_with_their_certificate_are_left_alone() -> None:
    host = Host("letsencrypt", domains="b.org a.org", certified="true")
    assert not module("dokku_domains").work(WANTED, host, False)["changed"]
    assert host.told == []


def test_a_host_that_can_not_make_certificates_is_named_before_anything_is_changed() -> None:
    host = Host()
    with pytest.raises(dokku.DokkuError, match=r"example\.com has no letsencrypt plugin: install it there"):
        module("dokku_domains").work(WANTED, host, False)
    assert host.told == []
