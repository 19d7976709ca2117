"""The shipped cluster files are what Ray and KubeRay accept, agree with pyproject.toml, and have room for every config."""

from __future__ import annotations

import copy
import functools
import importlib.metadata
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement

import kray
from kray.config import load_config
from kray.config.cluster_file import load_cluster
from kray.config.placement import place
from kray.errors import ConfigError

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "cluster"
RAY_UP = ["aws.yaml", "gcp.yaml"]
KUBERAY = ["kuberay-job.yaml", "kuberay-cluster.yaml", "kuberay-cpu.yaml"]
FLEETS = sorted(path.name for path in FOLDER.glob("fleet-*.yaml"))
STUDIES = "compare-"  # files of jobs/compare.py, which are no configurations of a run
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.yaml") if not path.name.startswith(STUDIES))
CRDS = Path(os.environ.get("KRAY_KUBERAY_CRDS") or ROOT.parent / "shared" / "data" / "kuberay-crds")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RAY = importlib.metadata.version("ray")

# The keys that our files use of EC2's RunInstances and of Compute Engine's instances.insert, with Ray's list around
# `scheduling`. Ray passes node_config on unread, so that a typo would only show when a node is to be started.
DISK = {"initializeParams": {"diskSizeGb", "sourceImage"}, "boot": None, "autoDelete": None, "type": None}
NODE_KEYS: dict[str, Any] = {
    "aws": {
        "InstanceType": None,
        "ImageId": None,
        "InstanceMarketOptions": {"MarketType": None},
        "BlockDeviceMappings": {"DeviceName": None, "Ebs": {"VolumeSize", "VolumeType", "DeleteOnTermination"}},
    },
    "gcp": {
        "machineType": None,
        "disks": DISK,
        "metadata": {"items": {"key", "value"}},
        "scheduling": {"preemptible", "onHostMaintenance", "automaticRestart"},
    },
}


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / name).read_text())


def ray_cluster(name: str) -> dict[str, Any]:
    """The RayCluster in a KubeRay file: of its own, or a RayJob's."""
    document = read(name)
    spec = document["spec"]["rayClusterSpec"] if document["kind"] == "RayJob" else document["spec"]
    return {"metadata": {"name": "kray", "namespace": "default"}, "spec": spec}


def unknown_keys(value: Any, allowed: Any) -> set[str]:
    if isinstance(value, list):
        return set().union(*(unknown_keys(item, allowed) for item in value))
    if not isinstance(value, dict):
        return set()
    found = set(value) - set(allowed)
    for key in set(value) & set(allowed):
        found |= unknown_keys(value[key], allowed[key] if isinstance(allowed, dict) else {})
    return found


# -- ray up -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_accepts_cluster_files_with_the_expected_groups(name):
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = read(name)
    validate_config(prepare_config(copy.deepcopy(config)))
    cluster = load_cluster(FOLDER / name)
    assert cluster.head.cpus == 0, "the head must not take ranks or engines"
    learner, rollout = cluster.workers
    assert (learner.name, rollout.name) == ("learner", "rollout")
    assert learner.least == learner.most >= 1
    assert not learner.spot, "a learner rank that is preempted ends the run"
    assert (rollout.least, rollout.spot) == (0, True)
    assert rollout.idle_timeout_s < learner.idle_timeout_s
    assert sum(group.most for group in cluster.workers) == cluster.most_workers


@pytest.mark.parametrize("name", RAY_UP)
def test_node_configs_hold_no_key_that_the_cloud_does_not_know(name):
    config = read(name)
    allowed = NODE_KEYS[config["provider"]["type"]]
    for group in config["available_node_types"].values():
        assert unknown_keys(group["node_config"], allowed) == set()
    broken = copy.deepcopy(config["available_node_types"]["rollout"]["node_config"])
    disk = next(key for key in broken if key in ("BlockDeviceMappings", "disks"))
    broken[disk][0]["sizze"] = 3
    broken["instancetype"] = "x"
    assert unknown_keys(broken, allowed) == {"sizze", "instancetype"}


@pytest.mark.parametrize("name", RAY_UP)
def test_clusters_run_the_pinned_ray_with_tokens(name):
    config = read(name)
    assert RAY in next(r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "ray").specifier
    assert re.fullmatch(rf"rayproject/ray:{re.escape(RAY)}-py311-cu\d+", config["docker"]["image"])
    assert {"head_image", "worker_image"}.isdisjoint(config["docker"])
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    for kind in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert "ray start" in config[kind][-1]
    assert "--autoscaling-config=" in config["head_start_ray_commands"][-1]
    assert "RAY_UP_enable_autoscaler_v2" not in (FOLDER / name).read_text(), "v2 is Ray's default"


@pytest.mark.parametrize("name", RAY_UP)
def test_node_files_exist_and_nodes_share_one_folder(name):
    config = read(name)
    for remote, local in config["file_mounts"].items():
        assert local.startswith("~") or (ROOT / local).exists(), f"{remote}: {local}"
    assert "--volume /mnt/kray:/mnt/kray" in config["docker"]["run_options"]
    assert any("exports" in command for command in config["initialization_commands"])
    for group in ("learner", "rollout"):
        commands = config["available_node_types"][group]["initialization_commands"]
        assert any("$RAY_HEAD_IP:/mnt/kray /mnt/kray" in command for command in commands)
        assert config["available_node_types"][group]["docker"]["worker_run_options"] == ["--gpus all"]


def test_the_two_clouds_differ_in_nothing_but_the_cloud():
    aws, gcp = (read(name) for name in RAY_UP)
    for key in ("docker", "file_mounts", "rsync_exclude", "setup_commands", "max_workers", "head_node_type"):
        assert aws[key] == gcp[key], key
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert aws[key] == gcp[key], key
    for name, group in aws["available_node_types"].items():
        other = gcp["available_node_types"][name]
        cloudy = ("node_config", "initialization_commands")
        assert {k: v for k, v in group.items() if k not in cloudy} == {
            k: v for k, v in other.items() if k not in cloudy
        }


# -- KubeRay ----------------------------------------------------------------------------------------------------------


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """A CRD's schema as JSON schema that also refuses unknown keys, as `kubectl apply --validate=strict` does."""
    schema = dict(schema)
    if schema.pop("x-kubernetes-int-or-string", False):
        schema.pop("type", None)
        return schema | {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    if "properties" in schema:
        schema["properties"] = {key: strict(value) for key, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            schema[key] = strict(schema[key])
    return schema


@functools.cache
def validator(kind: str, api: str) -> jsonschema.Draft202012Validator:
    path = CRDS / f"ray.io_{kind.lower()}s.yaml"
    if not path.is_file():
        pytest.skip(
            f"KubeRay's CRDs are not at {CRDS} (set KRAY_KUBERAY_CRDS to a folder with ray.io_rayclusters.yaml)"
        )
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the files are large
    versions = yaml.load(path.read_text(), loader)["spec"]["versions"]
    schema = next(v["schema"]["openAPIV3Schema"] for v in versions if f"ray.io/{v['name']}" == api)
    return jsonschema.Draft202012Validator(strict(schema))


def crd_errors(document: dict[str, Any]) -> list[str]:
    return [error.message for error in validator(document["kind"], document["apiVersion"]).iter_errors(document)]


@pytest.mark.parametrize("name", KUBERAY)
def test_kuberay_files_follow_the_crds_and_typos_are_found(name):
    document = read(name)
    assert crd_errors(document) == []
    spec = document["spec"].get("rayClusterSpec", document["spec"])
    spec["workerGroupSpecs"][1]["maxReplica"] = 3
    spec["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMount"] = []
    spec["autoscalerOptions"]["version"] = "v3"
    assert len(crd_errors(document)) == 3


@pytest.mark.parametrize("name", KUBERAY)
def test_kuberay_groups_are_the_expected_ones(name):
    spec = ray_cluster(name)["spec"]
    assert spec["rayVersion"] == RAY
    assert spec["enableInTreeAutoscaling"]
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["authOptions"] == {"mode": "token"}
    learner, rollout = spec["workerGroupSpecs"]
    assert (learner["groupName"], rollout["groupName"]) == ("learner", "rollout")
    assert learner["replicas"] == learner["minReplicas"] == learner["maxReplicas"] >= 1
    assert rollout["replicas"] == rollout["minReplicas"] == 0 < rollout["maxReplicas"]
    assert rollout["idleTimeoutSeconds"] < learner["idleTimeoutSeconds"]
    images = set()
    for group in (spec["headGroupSpec"], learner, rollout):
        pod = group["template"]["spec"]
        assert "restartPolicy" not in pod, "autoscaler v2 sets it"
        container = pod["containers"][0]
        images.add(container["image"])
        assert {"name": "results", "mountPath": "/mnt/kray"} in container["volumeMounts"]
        claims = [v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v]
        assert claims == [read("kuberay-storage.yaml")["metadata"]["name"]]
    build = "cpu" if name == "kuberay-cpu.yaml" else "gpu"
    assert images == {f"REGISTRY/kray:{kray.__version__}-{build}"}


@pytest.mark.parametrize("name", KUBERAY)
def test_kuberay_files_are_read_as_rays_autoscaler_does(name):
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler._private.util import validate_config

    derived = _derive_autoscaling_config_from_ray_cr(ray_cluster(name))
    validate_config(derived)
    cluster = load_cluster(FOLDER / name)
    for group in cluster.workers:
        theirs = derived["available_node_types"][group.name]
        assert (group.cpus, group.gpus) == (theirs["resources"]["CPU"], theirs["resources"].get("GPU", 0))
        assert (group.least, group.most) == (theirs["min_workers"], theirs["max_workers"])
        assert group.idle_timeout_s == theirs["idle_timeout_s"]
    head = derived["available_node_types"][derived["head_node_type"]]
    assert cluster.head.cpus == head["resources"]["CPU"] == 0


def test_kuberay_job_runs_once_with_a_command_of_the_image():
    spec = read("kuberay-job.yaml")["spec"]
    assert spec["backoffLimit"] == 0
    assert spec["shutdownAfterJobFinishes"]
    environment = yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]
    assert float(environment["RAY_JOB_STOP_WAIT_TIME_S"]) >= 60, "else a stopped job has 3 s for its checkpoint"
    words = spec["entrypoint"].split()
    assert not re.search(r"[^\w\s./=:@,-]", spec["entrypoint"]), "KubeRay pastes it into a shell script, unquoted"
    image = re.search(r"^WORKDIR (\S+)$", (FOLDER / "Dockerfile.gpu").read_text(), re.M).group(1)
    assert words[:3] == ["python", f"{image}/jobs/train.py", "--config"], "jobs start in a folder of Ray's"
    config = words[3].removeprefix(f"{image}/")
    overrides = [word for word in words if "=" in word]
    assert load_config(ROOT / config, overrides).run.dir.startswith("/mnt/kray/")


@pytest.mark.parametrize("name", FLEETS)
def test_a_fleet_is_whole_machines_for_its_configuration(name):
    document = read(name)
    assert crd_errors(document) == []
    spec, cluster = document["spec"], ray_cluster(name)["spec"]
    assert (spec["backoffLimit"], spec["shutdownAfterJobFinishes"]) == (0, True)
    assert (cluster["rayVersion"], cluster["authOptions"]) == (RAY, {"mode": "token"})
    words = spec["entrypoint"].split()
    assert not re.search(r"[^\w\s./=:@,-]", spec["entrypoint"]), "KubeRay pastes it into a shell script, unquoted"
    assert words[3] == f"/home/ray/kray/configs/{name}"
    config = load_config(ROOT / "configs" / name, [word for word in words if "=" in word])
    assert config.run.dir.startswith("/mnt/kray/")
    stop_s = yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]
    assert float(stop_s) >= 600, "for a checkpoint"
    (node,) = cluster["workerGroupSpecs"]
    assert node["replicas"] == node["minReplicas"] == node["maxReplicas"]
    pods = [group["template"]["spec"] for group in (cluster["headGroupSpec"], node)]
    assert {pod["containers"][0]["image"] for pod in pods} == {f"REGISTRY/kray:{kray.__version__}-gpu"}
    assert all(pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "kray-results" for pod in pods)
    assert (pods[1]["hostNetwork"], pods[1]["dnsPolicy"]) == (True, "ClusterFirstWithHostNet")
    assert pods[1]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "8"


# -- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", ["gpu", "cpu"])
def test_dockerfiles_use_the_pinned_ray_and_existing_files(build):
    lines = (FOLDER / f"Dockerfile.{build}").read_text().splitlines()
    base = next(line.removeprefix("FROM ") for line in lines if line.startswith("FROM "))
    platform = "cpu" if build == "cpu" else r"cu\d+"
    assert re.fullmatch(rf"rayproject/ray:{re.escape(RAY)}-py311-{platform}", base)
    if build == "gpu":
        assert base == read("aws.yaml")["docker"]["image"]
    assert f"RUN bash cluster/install.sh {build}" in lines
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[2:-1]]
    assert {"pyproject.toml", "kray", "jobs", "configs"} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)


@pytest.mark.parametrize("build", ["gpu", "cpu"])
def test_install_script_pins_torch_and_removes_torchvision(build, tmp_path):
    log = tmp_path / "log"
    fake = tmp_path / "python"  # notes what it is asked to do; torchvision does not import
    fake.write_text(f'#!/bin/sh\necho "$@" >> {log}\ncase "$*" in *"import torchvision"*) exit 1;; esac\n')
    fake.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", str(FOLDER / "install.sh"), build]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60)
    pip, torch, rest, vision, removed, _ = log.read_text().splitlines()
    assert pip.endswith("--upgrade pip")
    pin = next(d for d in PROJECT["dependencies"] if d.startswith("torch=="))
    assert torch.endswith(pin + ("+cpu" if build == "cpu" else ""))
    assert rest.endswith(f"[{build}]")
    assert ("download.pytorch.org/whl/cpu" in torch) == (build == "cpu")
    assert "import torchvision" in vision
    assert "uninstall" in removed
    assert all(name in removed for name in ("torchvision", "torchaudio", "torchcodec"))


# -- every configuration has a place ----------------------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS)
def test_every_config_fits_a_shipped_cluster(config):
    fitting = []
    for name in RAY_UP + KUBERAY + FLEETS:
        try:
            fit = place(load_config(ROOT / "configs" / config), load_cluster(FOLDER / name))
        except ConfigError:
            continue
        if not fit.notes:  # no rank on spot, no GPU left idle by actors that ask for none
            fitting.append(name)
    assert fitting, f"{config} fits none of {RAY_UP + KUBERAY + FLEETS}"
