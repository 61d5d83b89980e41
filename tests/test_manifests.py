"""What lies in deployments/ for containers, Kubernetes and Terraform, by the tools of each.

Not shown here: that images build, that a cluster takes what Kustomize renders, that Prefect's provider
takes the resources. These want a container engine, a cluster and Terraform's registry.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hcl2
import kubernetes_validate
import pytest
import yaml
from prefect_kubernetes.worker import KubernetesWorker

from headrace.settings import Settings
from tests.conftest import ROOT
from tests.e2e.rig import Rig

DEPLOYMENTS = ROOT / "deployments"
KUBERNETES = "1.31"
RIG = Rig(Path("/nowhere"), dict.fromkeys(("postgres", "redis", "s3", "mlflow", "dask", "prefect"), 1))


def checked(*command: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tool(name: str) -> str:
    """Return a command that the extra `dev` brings."""
    return str(Path(sys.executable).parent / name)


def variables(file: str) -> set[str]:
    return {
        line.split("=")[0] for line in (DEPLOYMENTS / file).read_text().splitlines() if line[:1].isupper()
    }


def documents() -> Iterator[Any]:
    for file in sorted((DEPLOYMENTS / "kubernetes").glob("*.yaml")):
        if file.name != "kustomization.yaml":
            yield from yaml.safe_load_all(file.read_text())


def test_images_are_built_as_images_should_be() -> None:
    checked(tool("hadolint"), "deployments/images/Dockerfile")


def test_compose_takes_its_file_and_is_told_all_that_it_asks_for() -> None:
    checked(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", "deployments/compose.yaml")
    text = (DEPLOYMENTS / "compose.yaml").read_text()
    assert {*re.findall(r"[^$]\$\{(\w+)", text)} == variables("compose.env.example")
    services = yaml.safe_load(text)["services"]
    for service in services.values():
        assert {*service.get("depends_on", ())} <= {*services}


@pytest.mark.parametrize(
    "told",
    [
        (DEPLOYMENTS / "compose.yaml").read_text(),
        "\n".join(
            (DEPLOYMENTS / "kubernetes" / each).read_text() for each in ("settings.env", "secret.env.example")
        ),
    ],
    ids=["compose", "kubernetes"],
)
def test_machines_are_told_what_the_tested_ones_are(told: str) -> None:
    """``tests/e2e/test_rig.py`` lives on an installation that is told the same."""
    here = {
        "HEADRACE_HOME",
        "HEADRACE_API_KEYS",
        "PREFECT_HOME",
        "AWS_ENDPOINT_URL",
        "AWS_ALLOW_HTTP",
        "AWS_DEFAULT_REGION",
    }
    assert all(name in told for name in {*RIG.told_to_machines, *RIG.told_to_prefect} - here)
    known = {f"HEADRACE_{name.upper()}" for name in Settings.model_fields} | {"HEADRACE_PASSWORD"}
    assert {*re.findall(r"\bHEADRACE_[A-Z_]+", told)} <= known


def test_kubernetes_takes_each_manifest() -> None:
    kinds = []
    for document in documents():
        kinds.append(document["kind"])
        if document["kind"] != "DaskCluster":  # the operator's own, whose schema is in the cluster
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
    assert {"Deployment", "StatefulSet", "HorizontalPodAutoscaler", "DaskCluster"} <= {*kinds}


def test_what_manifests_name_is_there() -> None:
    kustomization = yaml.safe_load((DEPLOYMENTS / "kubernetes/kustomization.yaml").read_text())
    files = {file.name for file in (DEPLOYMENTS / "kubernetes").glob("*.yaml")} - {"kustomization.yaml"}
    assert {*kustomization["resources"]} == files
    text = json.dumps([*documents()])
    assert {*re.findall(r'"configMapRef": \{"name": "(\w+)"', text)} == {"settings"}
    assert {*re.findall(r'"image": "([\w-]+)"', text)} == {each["name"] for each in kustomization["images"]}
    if kubectl := shutil.which("kubectl"):
        rendered = [*yaml.safe_load_all(checked(kubectl, "kustomize", "deployments/kubernetes"))]
        assert {each["metadata"]["namespace"] for each in rendered} == {"headrace"}
        assert "registry.example.org/headrace-serve:1" in json.dumps(rendered)


def test_a_run_is_a_job_that_kubernetes_takes() -> None:
    """By Prefect's own worker, of the pool's template and what the deployments say."""
    template = json.loads((DEPLOYMENTS / "kubernetes/pool.json").read_text())
    deployed = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"][0]
    values = deployed["work_pool"]["job_variables"] | {"name": "run", "labels": {"by": "a-run"}}
    made = KubernetesWorker.job_configuration.model_validate(
        _resolved(template, values | {"env": {"HEADRACE_DASK_WORKERS": "2"}})
    )
    job = made.job_manifest
    pod = job["spec"]["template"]["spec"]
    for ours in ("completions", "parallelism"):  # Prefect wants a job's own here, which a cluster ignores
        assert pod.pop(ours) == 1
    (container,) = pod["containers"]
    assert container["image"] == "registry.example.org/headrace-worker:1"
    assert container["args"] == "python -m headrace.forkserver"
    container["args"] = container["args"].split()
    container["env"] = [{"name": name, "value": value} for name, value in container["env"].items()]
    kubernetes_validate.validate(job, KUBERNETES, strict=True)


def _resolved(template: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    from prefect.utilities.templating import apply_values

    given = template["variables"]["properties"]
    defaults = {name: one["default"] for name, one in given.items() if "default" in one}
    assert {*values} <= {*given}
    return apply_values(template["job_configuration"], defaults | values)  # type: ignore[no-any-return]


def test_terraform_reads_what_prefect_yaml_declares() -> None:
    folder = DEPLOYMENTS / "terraform"
    read = {file.name: hcl2.loads(file.read_text()) for file in folder.glob("*.tf")}
    declared = {name.strip('"') for each in read["variables.tf"]["variable"] for name in each}
    text = "".join(file.read_text() for file in folder.glob("*.tf"))
    assert {*re.findall(r"\bvar\.(\w+)", text)} == declared
    terraform = shutil.which("terraform")
    if not terraform:
        return
    checked(terraform, "fmt", "-check", str(folder))
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    names = {f"{each['entrypoint'].split(':')[1]}/{each['name']}" for each in deployments}
    triggers = [trigger for each in deployments for trigger in each.get("triggers", ())]
    assert {*_evaluated(terraform, "keys(local.deployments)")} == names
    assert len(_evaluated(terraform, "keys(local.triggers)")) == len(triggers)
    related = next(trigger["match_related"] for trigger in triggers if "match_related" in trigger)
    assert related in _evaluated(terraform, "values(local.triggers)[*].match_related")


def _evaluated(terraform: str, expression: str) -> Any:
    """Let Terraform itself read the declarations: they are in a file of their own, that needs no provider."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "deployments/terraform")
        place.mkdir(parents=True)
        shutil.copy(DEPLOYMENTS / "terraform/declared.tf", place)
        shutil.copy(DEPLOYMENTS / "automations.yaml", place.parent)
        shutil.copy(ROOT / "prefect.yaml", folder)
        command = [terraform, "console"]
        asked = f"jsonencode({expression})\n"
        done = subprocess.run(command, cwd=place, input=asked, capture_output=True, text=True, check=True)
    return json.loads(json.loads(done.stdout))
