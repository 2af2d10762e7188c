"""The manifests: valid for the API servers, and runnable by the real command line."""

import copy
import importlib
import re
import shlex
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from cluster.cli import parse
from cluster.config import PRESETS, Config, load_config
from cluster.serve import build
from tests.k8s.schema import validate

Manifest = dict[str, Any]

K8S = Path(__file__).parents[2] / "k8s"
OVERLAYS = sorted(path.name for path in (K8S / "overlays").iterdir())
CONFIG_PATH = "/etc/blemish/run.yaml"


@pytest.fixture(params=OVERLAYS)
def manifests(
    request: pytest.FixtureRequest, render: Callable[[str], list[Manifest]]
) -> list[Manifest]:
    return render(request.param)


@pytest.fixture
def jobs(manifests: list[Manifest]) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == "RayJob"]


@pytest.fixture
def service(manifests: list[Manifest]) -> Manifest:
    (service,) = [manifest for manifest in manifests if manifest["kind"] == "RayService"]
    return service


def test_every_object_is_valid_and_lies_in_one_namespace(manifests: list[Manifest]) -> None:
    for manifest in manifests:
        validate(manifest)
        if manifest["kind"] != "Namespace":
            assert manifest["metadata"]["namespace"] == "blemish"


def test_the_clusters_are_valid_ray_clusters(manifests: list[Manifest]) -> None:
    for spec in _clusters(manifests):
        validate({"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {}, "spec": spec})


@pytest.mark.parametrize(
    ("kind", "path", "wrong"),
    [
        ("RayJob", "spec", {"shutdownAfterJobFinish": True}),
        ("RayJob", "spec.rayClusterSpec.headGroupSpec", {"rayStartParam": {}}),
        ("RayJob", "spec.rayClusterSpec.authOptions", {"mode": "tokens"}),
        ("RayJob", "spec.rayClusterSpec.workerGroupSpecs.0.template.spec", {"toleration": []}),
        ("RayJob", "spec.rayClusterSpec.workerGroupSpecs.0", {"replicas": "two"}),
        ("RayService", "spec", {"serveConfig": ""}),
        ("RayService", "spec.rayClusterConfig.workerGroupSpecs.0", {"replica": 1}),
        ("Deployment", "spec.template.spec.containers.0", {"readynessProbe": {}}),
        ("Service", "spec.ports.0", {"port": "http"}),
    ],
)
def test_a_mistake_is_caught(
    render: Callable[[str], list[Manifest]], kind: str, path: str, wrong: Manifest
) -> None:
    manifest = copy.deepcopy(next(each for each in render("gpu") if each["kind"] == kind))
    validate(manifest)
    node: Any = manifest
    for name in path.split("."):
        node = node[int(name)] if name.isdigit() else node[name]
    node.update(wrong)
    with pytest.raises(jsonschema.ValidationError):
        validate(manifest)


def test_there_is_a_job_for_each_command_and_it_has_room(
    jobs: list[Manifest], manifests: list[Manifest], tmp_path: Path
) -> None:
    run_yaml = tmp_path / "run.yaml"
    run_yaml.write_text(_config_map(manifests)["data"]["run.yaml"], encoding="utf-8")
    # What each of them has many of.
    needed = {"train": "num_workers", "tune": "num_workers", "inspect": "num_actors"}
    needed |= {"audit": "num_actors", "evaluate": None, "report": None}
    commands = {}
    for job in jobs:
        words = shlex.split(job["spec"]["entrypoint"].replace(CONFIG_PATH, str(run_yaml)))
        assert words[:3] == ["python", "-m", "cluster"]
        command, config = parse(words[3:])
        commands[command] = job["metadata"]["name"]
        assert config.run.dir.startswith("s3://"), "a pod's own disk dies with the pod"
        field = needed[command]
        _assert_fits(
            config, job["spec"]["rayClusterSpec"], getattr(config.cluster, field) if field else 0
        )
    assert commands == {name: f"blemish-{name}" for name in needed}


def test_each_job_and_the_endpoint_can_be_applied_alone_with_the_settings(
    jobs: list[Manifest], service: Manifest, manifests: list[Manifest]
) -> None:
    """`kubectl apply -l` leaves all else as it is; applying suspends."""
    components = [
        each["metadata"]["labels"]["app.kubernetes.io/component"]
        for each in [*jobs, service, _config_map(manifests)]
    ]
    names = [job["metadata"]["name"].removeprefix("blemish-") for job in jobs]
    assert components == [*names, "serve", "settings"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_run_says_all_that_its_preset_says(overlay: str) -> None:
    """What is left out would be a default, which is sized for no resolution in particular."""
    run = yaml.safe_load((K8S / "overlays" / overlay / "run.yaml").read_text(encoding="utf-8"))
    preset = yaml.safe_load(PRESETS[str(run["networks"]["resolution"])].read_text(encoding="utf-8"))
    for section, fields in preset.items():
        assert not fields.keys() - run[section].keys(), section


def test_the_endpoint_finds_its_application_and_room(
    service: Manifest, manifests: list[Manifest], tmp_path: Path
) -> None:
    deployed = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    (application,) = deployed.applications
    module, _, function = application.import_path.partition(":")
    assert getattr(importlib.import_module(module), function) is build
    assert application.args == {"config": CONFIG_PATH}
    # Readable from other pods, so there must be a token; `build` refuses to do without.
    assert deployed.http_options.host == "0.0.0.0"
    spec = service["spec"]["rayClusterConfig"]
    run_yaml = tmp_path / "run.yaml"
    run_yaml.write_text(_config_map(manifests)["data"]["run.yaml"], encoding="utf-8")
    config = load_config(str(run_yaml))
    _assert_fits(config, spec, config.serve.replicas)
    for pod in _pods([service]):
        (container,) = pod["containers"]
        environment = {variable["name"]: variable for variable in container["env"]}
        assert "secretKeyRef" in environment[config.serve.token_env]["valueFrom"]
        assert environment["PYTHONPATH"]["value"] == _app_folder()
        (mount,) = container["volumeMounts"]
        (volume,) = pod["volumes"]
        assert volume["configMap"]["name"] == _config_map(manifests)["metadata"]["name"]
        assert f"{mount['mountPath']}/run.yaml" == CONFIG_PATH
    ports = spec["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"]
    assert {"name": "serve", "containerPort": deployed.http_options.port} in ports


def _app_folder() -> str:
    """Where the image holds the source."""
    (folder,) = re.findall(r"^WORKDIR (\S+)$", (K8S / "Dockerfile").read_text(), re.MULTILINE)
    return str(folder)


def test_the_head_mounts_the_config_that_its_entrypoint_reads(
    jobs: list[Manifest], manifests: list[Manifest]
) -> None:
    for job in jobs:
        pod = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        (mount,) = pod["containers"][0]["volumeMounts"]
        source = volumes[mount["name"]]["configMap"]["name"]
        assert source == _config_map(manifests)["metadata"]["name"]
        assert f"{mount['mountPath']}/run.yaml" == CONFIG_PATH


def test_nothing_runs_until_told_and_clusters_go_when_done(
    jobs: list[Manifest], service: Manifest
) -> None:
    assert service["spec"]["suspend"] is True
    for job in jobs:
        assert job["spec"]["suspend"] is True
        # KubeRay refuses a suspended job whose cluster it may not delete.
        assert job["spec"]["shutdownAfterJobFinishes"] is True


def test_one_image_everywhere_and_the_ray_version_is_the_pinned_one(
    manifests: list[Manifest],
) -> None:
    images = {container["image"] for pod in _pods(manifests) for container in pod["containers"]}
    assert len(images) == 1
    assert re.fullmatch(r".+/blemish:(?!latest).+", images.pop())
    assert {spec["rayVersion"] for spec in _clusters(manifests)} == {version("ray")}


def test_no_pod_runs_as_root_and_all_get_credentials_from_the_secret(
    manifests: list[Manifest],
) -> None:
    assert "Secret" not in {manifest["kind"] for manifest in manifests}
    for pod in _pods(manifests):
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["envFrom"] == [{"secretRef": {"name": "blemish-s3"}}]
            names = {variable["name"] for variable in container["env"]}
            assert "AWS_REQUEST_CHECKSUM_CALCULATION" in names


def test_jobs_track_on_a_host_name_that_mlflow_serves(manifests: list[Manifest]) -> None:
    config = yaml.safe_load(_config_map(manifests)["data"]["run.yaml"])
    host = config["tracking"]["uri"].removeprefix("http://")
    service = next(each for each in manifests if each["kind"] == "Service")
    assert host == f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    server = next(each for each in manifests if each["kind"] == "Deployment")
    command = server["spec"]["template"]["spec"]["containers"][0]["command"]
    (allowed,) = [word for word in command if word.startswith("--allowed-hosts=")]
    assert host in allowed.removeprefix("--allowed-hosts=").split(",")


def _config_map(manifests: list[Manifest]) -> Manifest:
    (config_map,) = [each for each in manifests if each["kind"] == "ConfigMap"]
    return config_map


def _clusters(manifests: list[Manifest]) -> Iterator[Manifest]:
    fields = {"RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
    for manifest in manifests:
        if field := fields.get(manifest["kind"]):
            yield manifest["spec"][field]


def _pods(manifests: list[Manifest]) -> Iterator[Manifest]:
    for manifest in manifests:
        if manifest["kind"] == "Deployment":
            yield manifest["spec"]["template"]["spec"]
    for cluster in _clusters(manifests):
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            yield group["template"]["spec"]


def _assert_fits(config: Config, spec: Manifest, num_needed: int) -> None:
    """Every worker, actor or replica finds its CPUs and GPUs on the workers' nodes."""
    # Or one could be left without its whole node, see `tune.study`.
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (group,) = spec["workerGroupSpecs"]
    assert group["replicas"] == (num_needed and group["maxReplicas"])
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    for name, amount in (
        ("cpu", config.cluster.cpus_per_worker),
        ("nvidia.com/gpu", config.cluster.gpus_per_worker),
    ):
        assert num_needed * amount <= group["replicas"] * float(limits.get(name, 0))
