"""What `docker compose up` starts is closed where it can be, and the edge stands on its own."""

import re
from typing import Any

import pytest
import yaml

from cloud_service.settings import Settings as CloudSettings
from deploy.assemble import ROOT
from edge_node.settings import Settings as EdgeSettings

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SECURE: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.secure.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text().replace("\\\n", " ")
OURS = ("edge", "cloud")

each_service = pytest.mark.parametrize("name", SERVICES)


def test_the_services() -> None:
    assert SERVICES.keys() == {"edge", "cloud", "prometheus", "grafana"}


@each_service
def test_it_can_change_nothing(name: str) -> None:
    service = SERVICES[name]
    assert int(service["user"].partition(":")[0]) > 0
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert not {"privileged", "cap_add", "network_mode", "pid"} & service.keys()
    for volume in service.get("volumes", ()):
        assert volume.endswith(":ro") or volume.partition(":")[0] in COMPOSE["volumes"]


@each_service
def test_it_is_watched_restarted_and_its_log_is_bounded(name: str) -> None:
    service = SERVICES[name]
    assert service["healthcheck"]["test"][0] == "CMD"
    assert service["restart"] == "unless-stopped"
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    assert service["pids_limit"]


@each_service
def test_its_image_is_built_here_or_pinned_to_a_release(name: str) -> None:
    service = SERVICES[name]
    if name in OURS:
        assert service["build"] == {"context": ".", "dockerfile": "deploy/Dockerfile", "target": name}
        assert f"FROM base AS {name}\n" in DOCKERFILE
    else:
        assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+", service["image"])


def test_the_edge_waits_for_nobody() -> None:
    assert "depends_on" not in SERVICES["edge"]
    assert all("edge" not in s.get("depends_on", ()) for s in SERVICES.values())
    assert all("cloud" not in s.get("depends_on", ()) for s in SERVICES.values())


def test_the_cloud_can_be_scaled() -> None:
    assert not {"ports", "container_name", "hostname"} & SERVICES["cloud"].keys()


def test_only_this_machine_gets_in_unless_told_otherwise() -> None:
    published = {name: s.get("ports", []) for name, s in SERVICES.items()}
    bind = "${TANDEM_BIND:-127.0.0.1}"
    assert published == {
        "edge": [f"{bind}:8000:8000", f"{bind}:8001:8001", "127.0.0.1:8002:8002"],
        "cloud": [],
        "prometheus": ["127.0.0.1:9090:9090"],
        "grafana": ["127.0.0.1:3000:3000"],
    }


@pytest.mark.parametrize(("name", "settings"), [("edge", EdgeSettings), ("cloud", CloudSettings)])
def test_the_environment_is_made_of_settings(name: str, settings: Any) -> None:
    (stage,) = re.findall(rf"^FROM base AS {name}\n(.*?)(?=^FROM|\Z)", DOCKERFILE, re.M | re.S)
    (line,) = re.findall(r"^ENV (.*)$", stage, re.M)
    environment = dict(pair.split("=") for pair in line.split()) | SERVICES[name]["environment"]
    known = {f"{name}_{field}".upper() for field in settings.model_fields}
    assert environment.keys() <= known
    for port in ("HTTP", "GRPC", "METRICS"):
        default = settings.model_fields[f"{port.lower()}_port"].default
        assert environment[f"{name.upper()}_{port}_PORT"] == str(default)
        assert str(default) in re.findall(r"^EXPOSE (.*)$", stage, re.M)[0].split()


@pytest.mark.parametrize(("name", "settings"), [("edge", EdgeSettings), ("cloud", CloudSettings)])
def test_the_secure_ones_are_closed_and_get_no_key_but_theirs(name: str, settings: Any) -> None:
    service = SECURE["services"][name]
    environment, prefix = service["environment"], f"{name}_".upper()
    assert environment.pop(f"{prefix}INSECURE") == "false"
    assert SERVICES[name]["environment"][f"{prefix}INSECURE"] == "true"
    known = {f"{prefix}{field}".upper() for field in settings.model_fields}
    assert environment.keys() <= known
    mounts = [volume.split(":") for volume in service["volumes"]]
    assert sorted(inside for _, inside, _ in mounts) == sorted(environment.values())
    assert all(outside == f".{inside}" and mode == "ro" for outside, inside, mode in mounts)
    assert "/keys/ca.key" not in environment.values()
    assert service["healthcheck"]["test"][-1].startswith("https://127.0.0.1:")


def test_both_serve_every_bundle_that_ships() -> None:
    shipped = {f"models/{path.parent.name}" for path in (ROOT / "models").glob("*/manifest.json")}
    for name in OURS:
        served = SERVICES[name]["environment"][f"{name.upper()}_BUNDLES"].split(",")
        assert set(served) == shipped


def test_the_edge_finds_the_cloud_and_prometheus_finds_both() -> None:
    assert SERVICES["edge"]["environment"]["EDGE_CLOUD"] == "cloud:9001"
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    assert jobs["edge"]["static_configs"] == [{"targets": ["edge:8002"]}]
    (discovery,) = jobs["cloud"]["dns_sd_configs"]
    assert (discovery["names"], discovery["type"], discovery["port"]) == (["cloud"], "A", 9002)


def test_the_dockerfile_needs_no_buildkit_and_no_root() -> None:
    assert "--mount" not in DOCKERFILE
    assert "# syntax" not in DOCKERFILE
    assert "<<" not in DOCKERFILE
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)) == {
        "python:3.11-slim-bookworm",
        "dependencies",
        "base",
    }
    assert re.search(r"^USER 10001:10001$", DOCKERFILE, re.M)
    assert "--require-hashes" in DOCKERFILE


def test_the_images_report_to_nobody() -> None:
    assert re.search(r"^ENV ORT_DISABLE_TELEMETRY=1$", DOCKERFILE, re.M)
    assert SERVICES["grafana"]["environment"]["GF_ANALYTICS_REPORTING_ENABLED"] == "false"


def test_the_image_is_made_of_nothing_but_what_the_build_names() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    kept = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.M)
        for source in line.split()[:-1]
    }
    assert {path.partition("/")[0] for path in kept} == {path.partition("/")[0] for path in copied}
