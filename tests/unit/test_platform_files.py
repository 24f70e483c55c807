"""The files for other platforms in deploy/: each says the same in its platform's own words."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from boiler.settings import ROOT, SETTINGS, get

DEPLOY = ROOT / "deploy"
MIGRATE = "python app/manage.py migrate --noinput"
AT_START = "RELEASE_AT_START=1"
# Not ours: what the platforms' own build reads.
FOREIGN = {"PYTHON_VERSION"}


@dataclass(frozen=True)
class Said:
    """What a file says. `grace` is the platform's time to stop in seconds, None where it has a fixed one."""

    command: str
    containers: int
    memory: str
    health: str
    release: str
    grace: int | None
    settings: dict[str, str]


def read(name: str) -> Any:
    path = DEPLOY / name
    text = path.read_text()
    if path.suffix == ".toml":
        return tomllib.loads(text)
    return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)


def procfile(name: str) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in (ROOT / name).read_text().splitlines())


def release_of(settings: dict[str, str]) -> str:
    return AT_START if str(settings.get("RELEASE_AT_START")) == "1" else ""


def compose() -> Said:
    web = read("compose/compose.yml")["services"]["web"]
    settings = {name: re.sub(r"\$\{\w+(?::-(.*))?\}", r"\1", str(text)) for name, text in web["environment"].items()}
    grace = int(web["stop_grace_period"].removesuffix("s")) - 2
    memory = re.sub(r"\$\{\w+:-(.*)\}", r"\1", web["mem_limit"])
    health = web["healthcheck"]["test"][-1]
    return Said(" ".join(web["command"]), 1, memory, health, release_of(settings), grace, settings)


def scalingo() -> Said:
    found = read("scalingo/scalingo.json")
    settings = {name: one.get("value", "") for name, one in found["env"].items()}
    web, command = found["formation"].pop("web"), procfile("Procfile")["web"]
    assert {one["amount"] for one in found["formation"].values()} == {0}
    return Said(command, web["amount"], {"M": "512m"}[web["size"]], "/healthz", release_of(settings), None, settings)


def digitalocean() -> Said:
    found = read("digitalocean/app.yaml")
    (web,), (job,) = found["services"], found["jobs"]
    assert job["kind"] == "PRE_DEPLOY"
    settings = {one["key"]: one["value"] for one in web["envs"]}
    assert settings["PORT"] == str(web["http_port"])
    memory = {"apps-s-1vcpu-0.5gb": "512m"}[web["instance_size_slug"]]
    grace, health = web["termination"]["grace_period_seconds"], web["health_check"]["http_path"]
    return Said(web["run_command"], web["instance_count"], memory, health, job["run_command"], grace, settings)


def cloudfoundry() -> Said:
    (app,) = read("cloudfoundry/manifest.yml")["applications"]
    web, *others = app["processes"]
    assert {one["instances"] for one in others} == {0}
    health = web["health-check-http-endpoint"]
    return Said(web["command"], web["instances"], web["memory"].lower(), health, release_of(app["env"]), 10, app["env"])


def cloudrun() -> Said:
    template = read("cloudrun/service.yaml")["spec"]["template"]
    (web,) = template["spec"]["containers"]
    settings = {one["name"]: one.get("value", "") for one in web["env"]}
    notes = template["metadata"]["annotations"]
    assert notes["autoscaling.knative.dev/minScale"] == notes["autoscaling.knative.dev/maxScale"]
    memory = web["resources"]["limits"]["memory"].lower().removesuffix("i")
    health = web["startupProbe"]["httpGet"]["path"]
    assert health == web["livenessProbe"]["httpGet"]["path"]
    containers = int(notes["autoscaling.knative.dev/maxScale"])
    return Said(procfile("Procfile")["web"], containers, memory, health, release_of(settings), 10, settings)


def elasticbeanstalk() -> Said:
    found = read("elasticbeanstalk/.ebextensions/dyno.config")
    options = found["option_settings"]
    assert options["aws:elasticbeanstalk:environment"] == {"EnvironmentType": "SingleInstance"}
    lines = procfile("deploy/elasticbeanstalk/Procfile")
    assert list(lines) == ["web"], "it runs every line"
    settings = options["aws:elasticbeanstalk:application:environment"]
    release = found["container_commands"]["01_release"]["command"]
    assert release == procfile("Procfile")["release"]
    health = options["aws:elasticbeanstalk:application"]["Application Healthcheck URL"]
    memory = f"{settings['DYNO_RAM']}m"
    return Said(lines["web"], 1, memory, health, release.removeprefix("app/boil release "), None, settings)


def railway() -> Said:
    found = read("railway/railway.json")["deploy"]
    memory = f"{found['limitOverride']['containers']['memoryBytes'] // 2**20}m"
    (release,) = found["preDeployCommand"]
    return Said(
        found["startCommand"],
        found["numReplicas"],
        memory,
        found["healthcheckPath"],
        release,
        found["drainingSeconds"],
        {"DYNO_GRACE": "30"},  # as its section in docs/platforms.md says: the file can hold no variables
    )


def render() -> Said:
    (web,) = read("render/render.yaml")["services"]
    settings = {one["key"]: str(one.get("value", "")) for one in web["envVars"]}
    memory = {"starter": "512m"}[web["plan"]]
    return Said(
        web["startCommand"],
        web["numInstances"],
        memory,
        web["healthCheckPath"],
        web["preDeployCommand"],
        web["maxShutdownDelaySeconds"],
        settings,
    )


def fly() -> Said:
    found = read("fly/fly.toml")
    assert found["env"]["PORT"] == str(found["http_service"]["internal_port"])
    assert found["kill_signal"] == "SIGTERM", "it would be SIGINT"
    assert (DEPLOY / "fly" / found["build"]["dockerfile"]).parent.is_dir()
    (check,), (machine,) = found["http_service"]["checks"], found["vm"]
    return Said(
        procfile("Procfile")["web"],
        found["http_service"]["min_machines_running"],
        machine["memory"].removesuffix("b"),
        check["path"],
        found["deploy"]["release_command"],
        found["kill_timeout"],
        found["env"],
    )


PLATFORMS = [compose, scalingo, digitalocean, cloudfoundry, cloudrun, elasticbeanstalk, railway, render, fly]


@pytest.mark.parametrize("platform", PLATFORMS, ids=lambda one: one.__name__)
def test_a_file_starts_one_packed_dyno_of_512_mb_and_migrates_before(platform: Any) -> None:
    said = platform()
    assert (said.command, said.containers, said.memory) == ("app/boil start", 1, "512m")
    assert "/healthz" in said.health
    assert said.release in (MIGRATE, AT_START)


@pytest.mark.parametrize("platform", PLATFORMS, ids=lambda one: one.__name__)
def test_a_file_names_real_settings_and_the_grace_that_the_platform_gives(platform: Any) -> None:
    said = platform()
    assert said.settings.keys() <= SETTINGS.keys() | FOREIGN
    plain = {name: str(value) for name, value in said.settings.items() if SETTINGS.get(name)}
    for name, value in plain.items():
        if not SETTINGS[name].secret and not re.search(r"\$\{|\(\(", value):
            get(name, plain)  # raises SettingError
    assert said.grace in (None, get("DYNO_GRACE", plain))


def test_docs_have_a_section_and_a_row_for_every_folder_and_help_prints_its_three_commands() -> None:
    text = (ROOT / "docs" / "platforms.md").read_text()
    assert re.findall(r"^## (\w+)$", text, re.MULTILINE) == [one.__name__ for one in PLATFORMS]
    for platform in PLATFORMS:
        name = platform.__name__
        assert f"deploy/{name}/" in text
        words = ["make", "--no-print-directory", f"help-{name}"]  # the tests may run below a make themselves
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
        assert len(done.stdout.splitlines()) == 3, done.stdout
