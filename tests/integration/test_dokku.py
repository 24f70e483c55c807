"""`make deploy-dokku` from a clone, against the double of a Dokku host in tests/dokku/."""

from __future__ import annotations

import http.client
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.clone import GitClone
from tests.docker import docker, wheelhouse_image
from tests.dokku.double import Double
from tests.wait import wait_for

# An image is built for each commit, and a deployment starts real containers.
pytestmark = pytest.mark.timeout(900)

SECRET = secrets.token_hex(12)
INVENTORY = """
dokku:
  hosts:
    shop:
      builder: dockerfile
      python_image: {image}
      grace: 10
      verify: {verify}
      config:
        LOG_LEVEL: {level}
        MAIL_PASSWORD: "{{{{ lookup('ansible.builtin.env', 'MAIL_PASSWORD') }}}}"
"""

# A scheduled job every two seconds, and a note of every time that one was sent.
SCHEDULE = """
CREATE TABLE sends (at timestamptz);
GRANT ALL ON sends TO dyno;
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
    $$BEGIN INSERT INTO public.sends VALUES (NEW.last_run_at); RETURN NEW; END$$;
WITH interval AS (INSERT INTO django_celery_beat_intervalschedule (every, period) VALUES (2, 'seconds') RETURNING id)
INSERT INTO django_celery_beat_periodictask
    (name, task, args, kwargs, headers, one_off, enabled, total_run_count, date_changed, description, interval_id)
    SELECT 'often', 'demo.tasks.prune', '[]', '{}', '{}', false, true, 0, now(), '', id FROM interval;
CREATE TRIGGER sent AFTER UPDATE OF total_run_count ON django_celery_beat_periodictask FOR EACH ROW
    WHEN (NEW.name = 'often' AND NEW.total_run_count > OLD.total_run_count) EXECUTE FUNCTION note();
UPDATE django_celery_beat_periodictasks SET last_update = now();
"""


class Clone(GitClone):
    """A clone that is deployed to the double."""

    def __init__(self, root: Path, double: Double) -> None:
        super().__init__(root)
        self.double = double
        self.write_inventory("info", verify=True)
        self.first = self.commit()

    def write_inventory(self, level: str, *, verify: bool = False) -> None:
        image = wheelhouse_image() if self.double.docked else ""
        text = INVENTORY.format(level=level, verify=verify, image=image)
        (self.root / "deploy" / "inventory.yml").write_text(text)

    def make(self, *words: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if name == "LANG"}
        done = subprocess.run(
            ["make", *words, f"HOST={self.double.host}", "APP=shop"],
            cwd=self.root,
            env={**kept, **self.double.environ, "MAIL_PASSWORD": SECRET},
            capture_output=True,
            text=True,
            check=False,
        )
        print(done.stdout, done.stderr)
        return done

    def deploy(self, *words: str) -> str:
        """Deploy, which must succeed; returns what was printed."""
        done = self.make("deploy-dokku", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


class Visitor:
    """Uses the deployed app through nginx."""

    def __init__(self, double: Double) -> None:
        self.port = double.port
        self.failed: list[str] = []
        self.served = 0

    def ask(self, path: str, body: Any = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection("localhost", self.port, timeout=90)  # nginx gives up after 60 s
        try:
            data = None if body is None else json.dumps(body)
            headers = {"Content-Type": "application/json"} if data else {}
            connection.request("GET" if data is None else "POST", path, data, headers)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    @contextmanager
    def at_work(self) -> Iterator[list[int]]:
        """Ask for the page and send jobs again and again; note what fails, and the ids of the jobs."""
        ids: list[int] = []
        done = threading.Event()

        def visit(path: str, body: Any) -> None:
            while not done.wait(0.1):
                try:
                    status, answer = self.ask(path, body)
                except (OSError, http.client.HTTPException) as error:
                    self.failed.append(repr(error))
                    continue
                self.served += 1
                if status == 202:
                    ids.extend(json.loads(answer)["ids"])
                elif status != 200:
                    self.failed.append(f"{path}: {status} {answer[:1000]}")

        works = [("/", None), ("/", None), ("/jobs", {"kind": "sleep", "seconds": 0.2})]
        threads = [threading.Thread(target=visit, args=work) for work in works]
        for thread in threads:
            thread.start()
        try:
            yield ids
        finally:
            done.set()
            for thread in threads:
                thread.join()


@pytest.fixture(scope="module")
def double() -> Iterator[Double]:
    with Double() as double:
        yield double


@pytest.fixture(scope="module")
def clone(double: Double, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    return Clone(tmp_path_factory.mktemp("clone") / "a shop", double)


@pytest.fixture(scope="module")
def deployed(clone: Clone) -> str:
    """What the first deployment printed, its checks included; those that follow do without."""
    output = clone.deploy()
    clone.write_inventory("info")
    return output


@pytest.fixture
def warehouse(double: Double) -> Iterator[str]:
    """An app that is never deployed."""
    double.ssh("apps:create warehouse")
    yield "warehouse"
    double.ssh("--force apps:destroy warehouse")


def run_module(clone: Clone, name: str, **arguments: Any) -> bool:
    """Run one of deploy/'s modules on the app warehouse, which must succeed; returns whether it changed something."""
    words = json.dumps({"host": clone.double.host, "app": "warehouse", **arguments})
    python = f"ansible_python_interpreter={sys.executable}"
    command = [str(clone.root / ".venv/bin/ansible"), "localhost", "-i", "localhost,", "-c", "local", "-e", python]
    done = subprocess.run(
        [*command, "-m", name, "-a", words],
        cwd=clone.root,
        env={**os.environ, **clone.double.environ, "ANSIBLE_CONFIG": str(clone.root / "deploy" / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return "| CHANGED" in done.stdout


def changed(output: str) -> list[str]:
    """The tasks that have changed something."""
    return re.findall(r"^TASK \[(.*?)\][^\n]*\n(?:(?!^TASK).*\n)*?changed: ", output, re.MULTILINE)


def rows(double: Double, query: str) -> list[tuple[Any, ...]]:
    """What the deployed app's database says."""
    url = f"postgresql://super@127.0.0.1:{double.postgres.port}/shop-db"
    with psycopg.connect(url) as connection:
        return connection.execute(query).fetchall()


def execute(double: Double, statements: str) -> None:
    url = f"postgresql://super@127.0.0.1:{double.postgres.port}/shop-db"
    with psycopg.connect(url) as connection:
        connection.execute(statements)


def test_check_mode_shows_everything_and_changes_nothing(clone: Clone, double: Double) -> None:
    output = clone.deploy("CHECK=1")
    assert "+app: shop" in output
    assert "+DJANGO_SECRET_KEY: set" in output
    assert f"+{clone.first}" in output
    assert SECRET not in output
    assert not list((double.folder / "apps").iterdir())
    assert "dokku" not in clone.git("remote")


def test_the_first_deployment_ends_verified(clone: Clone, double: Double, deployed: str) -> None:
    assert "ok    " in deployed and "FAIL" not in deployed
    assert f"http://{double.host}:{double.port}" in deployed
    config = double.state("shop")["config"]
    assert len(config["DJANGO_SECRET_KEY"]) >= 50
    assert len(config["STATUS_TOKEN"]) >= 50
    assert config["MAIL_PASSWORD"] == SECRET
    assert config["DJANGO_HTTPS"] == "0"
    everything = deployed + "".join(double.commands())
    for name in ("DJANGO_SECRET_KEY", "STATUS_TOKEN", "MAIL_PASSWORD"):
        assert config[name] not in everything
    inspected = json.loads(docker("inspect", double.container("shop")))[0]["HostConfig"]
    assert inspected["Memory"] == 512 * 2**20
    assert inspected["RestartPolicy"]["Name"] == "unless-stopped"
    assert clone.git("remote", "get-url", "dokku") == f"dokku@{double.host}:shop"


def test_the_second_deployment_changes_nothing(clone: Clone, double: Double, deployed: str) -> None:
    before, container = double.state("shop"), double.container("shop")
    double.commands()
    assert changed(clone.deploy()) == []
    assert len(double.commands()) < 23  # each takes a distant server's Dokku a quarter of a second or more
    assert double.state("shop") == before
    assert double.container("shop") == container


def test_a_new_commit_under_load_fails_no_request_loses_no_job_and_sends_no_scheduled_job_twice(
    clone: Clone, double: Double, deployed: str
) -> None:
    visitor = Visitor(double)
    execute(double, SCHEDULE)
    wait_for(lambda: rows(double, "SELECT FROM sends"), "a scheduled job was sent", 60)
    old = double.container("shop")
    clone.commit()
    with visitor.at_work() as ids:
        assert changed(clone.deploy()) == ["Code released"]
        wait_for(lambda: old not in docker("ps", "--quiet", "--no-trunc"), "the old container has ended", 60)
        ended = rows(double, "SELECT now()")[0][0]
    assert visitor.failed == []
    assert visitor.served > 20
    listed = ",".join(map(str, ids))
    unfinished = f"SELECT id, state FROM demo_job WHERE id IN ({listed}) AND state <> 'done'"
    wait_for(lambda: rows(double, unfinished) == [], "all jobs are done", 60)
    later = f"SELECT FROM sends WHERE at > '{ended}'"
    wait_for(lambda: rows(double, later), "the new container sent a scheduled job", 60)
    sent = [at for (at,) in rows(double, "SELECT at FROM sends ORDER BY at")]
    # By the schedule's own clock: two that are closer were sent by two beats.
    assert min(second - first for first, second in pairwise(sent)) > timedelta(seconds=1.9)
    execute(double, "DELETE FROM django_celery_beat_periodictask WHERE name = 'often'")


def test_a_new_setting_is_one_restart(clone: Clone, double: Double, deployed: str) -> None:
    clone.write_inventory("warning")
    old = double.container("shop")
    double.commands()
    assert changed(clone.deploy()) == ["Config set", "Code released"]
    assert [line for line in double.commands() if line.startswith(("ps:rebuild", "ps:restart"))] == ["ps:rebuild shop"]
    assert double.container("shop") != old
    assert changed(clone.deploy()) == []


def test_a_deployment_that_was_cut_off_before_its_restart_is_made_up_for(
    clone: Clone, double: Double, deployed: str
) -> None:
    double.edit("shop", config={**double.state("shop")["config"], "MAIL_HOST": "mail.example.com"})
    assert changed(clone.deploy()) == ["Code released"]
    environ = docker("exec", double.container("shop"), "printenv", "MAIL_HOST")
    assert environ == "mail.example.com"


def test_the_daily_cron_entry_clears_expired_sessions_and_no_others(
    clone: Clone, double: Double, deployed: str
) -> None:
    execute(double, "INSERT INTO django_session VALUES ('old', '', now() - interval '1 day')")
    execute(double, "INSERT INTO django_session VALUES ('new', '', now() + interval '1 day')")
    (entry,) = json.loads(double.ssh("cron:list shop --format json").stdout)
    assert entry["schedule"] == "@daily"
    ran = double.ssh(f"cron:run shop {entry['id']}")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert rows(double, "SELECT session_key FROM django_session") == [("new",)]


def test_a_dyno_that_ended_with_0_is_back_by_its_restart_policy(clone: Clone, double: Double, deployed: str) -> None:
    container = double.container("shop")
    subprocess.run(["docker", "exec", container, "app/boil", "stop"], check=False)  # ends with the container
    wait_for(lambda: docker("inspect", "--format={{.RestartCount}}", container) != "0", "it was started again", 60)
    wait_for(lambda: Visitor(double).ask("/healthz")[0] == 200, "it is healthy", 90)


def test_a_container_that_is_down_is_brought_back_by_the_next_deployment(
    clone: Clone, double: Double, deployed: str
) -> None:
    docker("stop", "--time", "10", double.container("shop"))
    assert Visitor(double).ask("/healthz")[0] in (502, 504)
    assert changed(clone.deploy()) == ["Code released"]
    assert Visitor(double).ask("/healthz")[0] == 200


def test_a_commit_that_can_not_start_leaves_the_old_one_running(clone: Clone, double: Double, deployed: str) -> None:
    old, running = double.container("shop"), clone.git("rev-parse", "HEAD")
    good = (clone.root / "LocalProcfile").read_text()
    (clone.root / "LocalProcfile").write_text(good.replace("config.wsgi", "config.nosuch"))
    app_json = clone.root / "dokku" / "app.json"
    app_json.write_text(re.sub(r'"attempts": \d+', '"attempts": 3', app_json.read_text()))
    clone.commit()
    failed = clone.make("deploy-dokku")
    assert failed.returncode != 0
    assert "the deployment failed, what ran before runs on" in failed.stderr
    assert "Healthcheck failed" in failed.stderr
    assert double.container("shop") == old
    assert Visitor(double).ask("/healthz")[0] == 200
    clone.git("reset", "--quiet", running)
    clone.git("checkout", "--", "LocalProcfile", "dokku/app.json")
    assert changed(clone.deploy()) == []


def test_the_lock_of_a_rebuild_that_broke_off_is_removed_but_not_that_of_one_under_way(
    clone: Clone, double: Double, deployed: str
) -> None:
    builds = double.state("shop")["builds"]
    double.edit("shop", builds=[{"status": "running", "pid": os.getpid()}, *builds])
    (double.folder / "apps" / "shop" / "lock").touch()
    refused = clone.make("deploy-dokku")
    assert refused.returncode != 0
    assert "shop: another deployment of it is under way: wait for it" in refused.stderr
    double.edit("shop", builds=[{"status": "running", "pid": 2**22 + 1}, *builds])
    assert changed(clone.deploy()) == ["App exists"]
    assert not (double.folder / "apps" / "shop" / "lock").exists()


def test_what_stands_in_no_known_host_file_is_not_trusted(clone: Clone, double: Double) -> None:
    known = double.folder / "known_hosts"
    kept = known.read_text()
    known.write_text("")
    try:
        subprocess.run(["ssh", "-O", "exit", "dokku@localhost"], env={**os.environ, **double.environ}, check=False)
        shutil.rmtree(double.folder / "home" / ".ansible" / "cp", ignore_errors=True)
        refused = clone.make("deploy-dokku")
        assert refused.returncode != 0
        assert "Host key verification failed: type `ssh dokku@localhost version` to see why" in refused.stderr
    finally:
        known.write_text(kept)


def test_buildpacks_are_as_listed_in_their_order_and_set_once(clone: Clone, double: Double, warehouse: str) -> None:
    own = "https://example.com/me/buildpack.git#v1"
    node, python = (f"https://github.com/heroku/heroku-buildpack-{name}.git" for name in ("nodejs", "python"))
    for listed, kept in (
        (["heroku/nodejs", "heroku/python"], [node, python]),
        ([python, own, "heroku-community/nodejs"], [python, own, node]),
        ([], []),
    ):
        assert run_module(clone, "dokku_app", buildpacks=listed)
        assert double.state(warehouse)["buildpacks"] == kept
        assert not run_module(clone, "dokku_app", buildpacks=listed)
        assert double.state(warehouse)["buildpacks"] == kept


def test_build_options_are_set_once_however_they_are_written(clone: Clone, double: Double, warehouse: str) -> None:
    for listed, kept in (
        (["--build-arg B=2", "--add-host a:::1"], ["--add-host a:::1", "--build-arg B=2"]),
        (['--build-arg B=2 --build-arg A="one two"'], ["--build-arg 'A=one two'", "--build-arg B=2"]),
        (["--label it='$HOME & `id`'"], ["--label 'it=$HOME & `id`'"]),
        ([], []),
    ):
        assert run_module(clone, "dokku_app", build_options=listed)
        assert double.state(warehouse)["build_options"] == kept
        assert not run_module(clone, "dokku_app", build_options=listed)


def test_a_mount_that_is_there_is_taken_as_it_is(clone: Clone, double: Double, warehouse: str) -> None:
    mount = "/var/lib/dokku/data/storage/elsewhere:/postgres"
    double.ssh(f"storage:mount {warehouse} {mount}")
    arguments = {"service": "warehouse-db", "folder": "/postgres"}
    assert run_module(clone, "dokku_database", **arguments)  # the old container is to be stopped first from now on
    assert not run_module(clone, "dokku_database", **arguments)
    state = double.state(warehouse)
    assert (state["mounts"], state["disabled"], state["links"]) == ([mount], ["web"], [])


def test_a_formation_in_app_json_that_says_another_number_is_an_error(
    clone: Clone, double: Double, deployed: str
) -> None:
    app_json, inventory = clone.root / "dokku" / "app.json", clone.root / "deploy" / "inventory.yml"
    before = app_json.read_text()
    app_json.write_text(json.dumps({**json.loads(before), "formation": {"web": {"quantity": 1}}}))
    clone.commit()
    inventory.write_text(inventory.read_text().replace("grace: 10", "grace: 10\n      dynos: 2"))
    failed = clone.make("deploy-dokku")
    assert failed.returncode != 0
    assert "shop: its app.json has a `formation`, which decides the number of containers: change it" in failed.stderr
    assert list(double.state("shop")["containers"]) == ["web.1"]
    app_json.write_text(before)
    clone.commit()
    clone.write_inventory("info")


def test_the_app_and_its_database_can_be_removed(clone: Clone, double: Double, deployed: str) -> None:
    kept = clone.double.environ
    done = subprocess.run(
        ["script", "--quiet", "--return", "--command", f"make destroy-dokku HOST={double.host} APP=shop", "/dev/null"],
        cwd=clone.root,
        env={**os.environ, **kept},
        input="shop\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    assert double.ssh("apps:exists shop").returncode == 20
    assert double.ssh("postgres:exists shop-db").returncode == 1


def test_without_the_postgres_plugin_the_database_is_on_the_hosts_disk_and_outlives_a_deployment(
    tmp_path: Path,
) -> None:
    with Double(plugins=()) as double:
        clone = Clone(tmp_path / "a shop", double)
        clone.write_inventory("info")
        output = clone.deploy()
        assert "RELEASE_AT_START=1: the dyno runs this at its start" in output
        (mount,) = double.state("shop")["mounts"]
        assert mount == "/var/lib/dokku/data/storage/shop-postgres:/postgres"
        visitor = Visitor(double)
        status, answer = visitor.ask("/jobs", {"kind": "sleep", "seconds": 0})
        assert status == 202
        (job,) = json.loads(answer)["ids"]
        # A second container, such as cron's, may not open the data.
        (entry,) = json.loads(double.ssh("cron:list shop --format json").stdout)
        refused = double.ssh(f"cron:run shop {entry['id']}")
        assert refused.returncode == 1
        assert refused.stderr == (
            "boil: /postgres/data: another PostgreSQL runs on this folder: stop that dyno first\n"
        )
        inside = double.ssh(f"enter shop web {entry['command']}")
        assert (inside.returncode, inside.stderr) == (0, "")
        clone.commit()
        assert changed(clone.deploy()) == ["Code released"]
        assert changed(clone.deploy()) == []
        wait_for(lambda: json.loads(visitor.ask(f"/jobs/{job}")[1])["state"] == "done", "the job is done", 60)


def test_where_no_docker_can_run_the_same_deployment_ends_in_the_dyno_double(tmp_path: Path) -> None:
    with Double(docked=False) as double:
        clone = Clone(tmp_path / "a shop", double)
        clone.write_inventory("info")
        clone.deploy()
        old = double.container("shop")
        assert Visitor(double).ask("/healthz")[0] == 200
        clone.commit()
        assert changed(clone.deploy()) == ["Code released"]
        assert double.container("shop") != old
        assert Visitor(double).ask("/jobs", {"kind": "sleep", "seconds": 0})[0] == 202
        assert changed(clone.deploy()) == []
