"""The files for other platforms in deploy/, held against what the platforms publish on PyPI and npm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from boiler.settings import ROOT
from tests.needs import needs

PYPI = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--dest"]
NPM = ["npm", "pack", "--silent", "--pack-destination"]
CLOUD_RUN = "google-api-python-client==2.202.0"
CLOUD_FOUNDRY = "cloudfoundry-client==1.40.4"
DIGITALOCEAN = "@digitalocean/mcp@1.0.70"


def download(command: list[str], package: str, folder: Path) -> Path:
    """The package's file."""
    if os.environ.get("CI") != "true":
        pytest.skip("downloads packages: runs with CI=true")
    needs(command[0])
    for _ in range(3):  # a registry may be away for a moment
        done = subprocess.run([*command, str(folder), package], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            break
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = folder.iterdir()
    return found


def closed(schema: Any) -> Any:
    """The same schema, in which an unknown name is an error."""
    if isinstance(schema, dict):
        known = {"additionalProperties": False} if "properties" in schema else {}
        return {**known, **{name: closed(one) for name, one in schema.items()}}
    return [closed(one) for one in schema] if isinstance(schema, list) else schema


def test_digitalocean_knows_every_name_of_its_file(tmp_path: Path) -> None:
    with tarfile.open(download(NPM, DIGITALOCEAN, tmp_path)) as package:
        schema = json.load(package.extractfile("package/dist/app-create-schema.json"))
    spec = yaml.safe_load((ROOT / "deploy/digitalocean/app.yaml").read_text())
    jsonschema.validate({"spec": spec}, closed(schema))
    spec["services"][0]["health_check"]["route"] = "/healthz"
    with pytest.raises(jsonschema.ValidationError, match="'route' was unexpected"):
        jsonschema.validate({"spec": spec}, closed(schema))


def test_cloud_run_knows_every_name_of_its_file(tmp_path: Path) -> None:
    with zipfile.ZipFile(download(PYPI, CLOUD_RUN, tmp_path)) as package:
        found = json.loads(package.read("googleapiclient/discovery_cache/documents/run.v1.json"))
    # A description of a Google API is JSON Schema but for its references, bare names, and the type `any`.
    text = json.dumps(found["schemas"]).replace('"$ref": "', '"$ref": "#/$defs/')
    text = text.replace('"type": "any"', '"title": ""')
    schema = {"$ref": "#/$defs/Service", "$defs": closed(json.loads(text))}
    service = yaml.safe_load((ROOT / "deploy/cloudrun/service.yaml").read_text())
    jsonschema.validate(service, schema)
    service["spec"]["template"]["spec"]["containers"][0]["startupProbe"]["timeout"] = 5
    with pytest.raises(jsonschema.ValidationError, match="'timeout' was unexpected"):
        jsonschema.validate(service, schema)


def test_a_client_of_cloud_foundry_reads_its_file(tmp_path: Path) -> None:
    package = download(PYPI, CLOUD_FOUNDRY, tmp_path)
    code = (
        "from cloudfoundry_client.operations.push.validation.manifest import ManifestReader\n"
        "(app,) = ManifestReader.load_application_manifests('deploy/cloudfoundry/manifest.yml')\n"
        "print(app['path'])"
    )
    environ = {**os.environ, "PYTHONPATH": str(package)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == str(ROOT), done.stderr
