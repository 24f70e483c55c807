"""What the deployments share: the checkout, the environment variables; and the files that Heroku reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import ansible.module_utils
import pytest
import yaml

from boiler import cli
from boiler.settings import ROOT, SETTINGS

ansible.module_utils.__path__.append(str(ROOT / "deploy" / "module_utils"))

from ansible.module_utils import checkout, config  # noqa: E402

DEFAULTS = yaml.safe_load((ROOT / "deploy" / "group_vars" / "heroku.yml").read_text())


@pytest.fixture
def work_tree(tmp_path: Path) -> Path:
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    (tmp_path / "deploy").mkdir()
    for name in ("a.txt", "b b.txt", "deploy/inventory.yml"):
        (tmp_path / name).write_text("old\n")
    commit(tmp_path)
    return tmp_path


def commit(folder: Path) -> None:
    git = ["git", "-C", str(folder), "-c", "user.name=Cook", "-c", "user.email=cook@example.com"]
    subprocess.run([*git, "add", "--all"], check=True)
    subprocess.run([*git, "-c", "commit.gpgsign=false", "commit", "--quiet", "-m", "A change"], check=True)


def test_changed_new_and_deleted_files_are_named(work_tree: Path) -> None:
    tree = checkout.Checkout(str(work_tree))
    tree.require_clean(dirty=False)
    (work_tree / "a.txt").unlink()
    (work_tree / "b b.txt").write_text("new\n")
    (work_tree / "c.txt").write_text("new\n")
    with pytest.raises(checkout.CheckoutError, match=r"not be deployed: a\.txt, b b\.txt, c\.txt: commit"):
        tree.require_clean(dirty=False)
    tree.require_clean(dirty=True)
    for number in range(10):
        (work_tree / f"{number}.txt").write_text("new\n")
    with pytest.raises(checkout.CheckoutError, match=r"0\.txt, 1\.txt, .* and 8 more: commit"):
        tree.require_clean(dirty=False)


def test_what_is_below_deploy_need_not_be_committed(work_tree: Path) -> None:
    (work_tree / "deploy" / "inventory.yml").write_text("new\n")
    checkout.Checkout(str(work_tree)).require_clean(dirty=False)


def test_the_archive_is_the_commit_not_the_work_tree(work_tree: Path) -> None:
    tree = checkout.Checkout(str(work_tree))
    (work_tree / "a.txt").write_text("not committed\n")
    (work_tree / "archive.tar.gz").write_bytes(tree.archive(tree.head()))
    shown = subprocess.run(
        ["tar", "-xzOf", "archive.tar.gz", "a.txt"], cwd=work_tree, capture_output=True, text=True, check=True
    )
    assert shown.stdout == "old\n"


def test_a_folder_that_is_no_checkout_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(checkout.CheckoutError, match="deploy from a git checkout") as error:
        checkout.Checkout(str(tmp_path)).head()
    assert "\n" not in str(error.value)


def test_a_generated_value_is_made_once_and_other_variables_are_left_alone() -> None:
    first = config.change({"OTHER": "1"}, {"A": 1}, ["KEY"])
    assert first.keys() == {"A", "KEY"}
    assert config.change({"OTHER": "1", **first}, {"A": "1"}, ["KEY"]) == {}
    assert config.change({"OTHER": "1"}, {"OTHER": None, "GONE": None}, []) == {"OTHER": None}


def test_the_difference_has_names_alone() -> None:
    shown = config.names_only({"A": "secret", "B": "secret"}, {"A": "hidden", "B": None, "C": "hidden"})
    assert shown == {"before": "A: set\nB: set\n", "after": "A: set anew\nC: set\n"}


def test_what_herokus_buildpack_sets_is_not_taken_for_a_wish() -> None:
    guessed = {
        "WEB_CONCURRENCY": "17",
        "WEB_CONCURRENCY_SET_BY": "heroku/python",
        "GUNICORN_CMD_ARGS": "--access-logfile -",
    }
    cli.complete_environment(guessed)
    assert not {"WEB_CONCURRENCY", "GUNICORN_CMD_ARGS"} & guessed.keys()
    wished = {"WEB_CONCURRENCY": "3", "GUNICORN_CMD_ARGS": "--max-requests 100"}
    cli.complete_environment(wished)
    assert wished["WEB_CONCURRENCY"] == "3"
    assert wished["GUNICORN_CMD_ARGS"] == "--max-requests 100"


def test_app_json_asks_for_what_the_playbook_sets() -> None:
    app = json.loads((ROOT / "app.json").read_text())
    shared = yaml.safe_load((ROOT / "deploy" / "group_vars" / "all.yml").read_text())
    assert app["stack"] == DEFAULTS["stack"]
    assert [one["url"] for one in app["buildpacks"]] == DEFAULTS["buildpacks"]
    for place in (app, app["environments"]["review"]):
        assert place["addons"] == [{"plan": DEFAULTS["database_plan"]}]
        assert place["formation"] == {"web": {"quantity": DEFAULTS["dynos"], "size": DEFAULTS["size"]}}
    assert app["env"].keys() <= SETTINGS.keys()
    assert {name for name, one in app["env"].items() if one.get("generator") == "secret"} == {
        *shared["generated_config"]
    }
    assert app["env"]["DYNO_GRACE"]["value"] == str(shared["grace"])


def test_the_root_has_one_lock_file_and_nothing_that_switches_builders() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    locks = {"requirements.txt", "poetry.lock", "uv.lock", "Pipfile.lock", "Pipfile", "package.json"}
    assert locks & set(tracked) == {"requirements.txt"}
    assert not {"project.toml", "Dockerfile", "manage.py", "heroku.yml"} & set(tracked)
    assert not [name for name in tracked if name.split("/")[0] in ("venv", ".venv")]


PLAYBOOKS = sorted(
    path.name for path in (ROOT / "deploy").glob("*.yml") if path.name not in ("choose.yml", "inventory.yml")
)
STEPS = [
    "Code is committed",
    "App exists",
    "Database attached",
    "Config set",
    "Code released",
    "Scaled",
    "Domains attached",
    "Dynos run the release",
    "Healthy",
    "Verified if anything was changed",
    "Remote for dokku-toolbelt",
    "Address",
]


@pytest.mark.parametrize("name", PLAYBOOKS)
def test_a_playbook_and_its_modules_are_understood_by_ansible(name: str) -> None:
    program = Path(sys.executable).parent / "ansible-playbook"
    words = ["--syntax-check", "--extra-vars", "deployment=shop", "--inventory", "shop,", f"deploy/{name}"]
    environ = {**os.environ, "ANSIBLE_CONFIG": "deploy/ansible.cfg"}
    done = subprocess.run([program, *words], cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("platform", ["heroku", "dokku", "piku"])
def test_the_steps_have_the_same_names_and_order_on_every_platform(platform: str) -> None:
    play = yaml.safe_load((ROOT / "deploy" / f"{platform}.yml").read_text())[-1]
    steps = [task["name"] for task in play["tasks"]]
    if platform == "piku":  # whose first push would start every line of the Procfile
        steps.remove("Scaled")
    assert steps == [step for step in STEPS if step in steps]
