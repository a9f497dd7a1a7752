"""What can be checked of the deploy files without a Docker engine, a cluster or a running systemd."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from cloud.commands.nightly import Command as Nightly
from cloud.commands.serve import Command
from cloud.http.serving import DRAIN_S
from cloud.nightly import Declined
from device_runtime.cli import COMMANDS
from device_runtime.errors import InputError

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def check_serve(words: list[str]) -> None:
    """These are arguments that `coda serve` takes."""
    import argparse

    assert words[0] == "serve" and "serve" in COMMANDS
    parser = argparse.ArgumentParser()
    Command.configure(parser)
    parser.parse_args(words[1:])


def check_extras(argument: str) -> None:
    """EXTRAS=a,b names extras that there are."""
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    name, _, extras = argument.partition("=")
    assert name == "EXTRAS" and set(extras.split(",")) <= set(known)


def check_nightly(words: list[str]) -> None:
    """These are arguments that `coda nightly` takes."""
    import argparse

    assert words[0] == "nightly" and "nightly" in COMMANDS
    parser = argparse.ArgumentParser()
    Nightly.configure(parser)
    parser.parse_args(words[1:])


def dockerfile() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", (DEPLOY / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in lines]


def test_the_image_is_built_in_two_stages_and_runs_unprivileged():
    steps = dockerfile()
    assert [name for name, _ in steps].count("FROM") == 2
    last = steps[max(i for i, (name, _) in enumerate(steps) if name == "FROM") :]
    kinds = [name for name, _ in last]
    assert kinds.index("USER") < kinds.index("ENTRYPOINT") and dict(last)["USER"] not in ("root", "0")
    assert json.loads(dict(last)["ENTRYPOINT"]) == ["coda"]
    check_serve(json.loads(dict(last)["CMD"]))
    assert "/src[$EXTRAS]" in str(steps)
    check_extras(dict(steps)["ARG"])
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for line in ignored:
        if line.startswith("!"):
            assert (ROOT / line[1:]).exists(), line


def test_the_servers_extra_trains_nothing():
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names = {re.split(r"[<>=\[]", word)[0] for word in known["server"]}
    assert not names & {"torch", "executorch", "onnx", "matplotlib", "coda-loop"}


def test_compose_names_only_what_it_has():
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services = compose["services"]
    for name, service in services.items():
        assert set(service.get("depends_on", {})) <= set(services)
        assert set(service.get("secrets", [])) <= set(compose["secrets"]), name
        assert {volume.split(":")[0] for volume in service.get("volumes", [])} <= set(compose["volumes"])
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), "the proxy is on this machine"
    server = services["server"]
    assert server["build"]["dockerfile"] == "deploy/Dockerfile"
    assert int(server["stop_grace_period"].rstrip("s")) > DRAIN_S + 5
    assert server["environment"]["CODA_CATALOG"].split("@")[1].split("/")[0] in services


def test_kubernetes_manifests_fit_together():
    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "server.yaml").read_text()))
    (workload,) = [d for d in documents if d["kind"] == "StatefulSet"]
    (service,) = [d for d in documents if d["kind"] == "Service"]
    spec, pod = workload["spec"], workload["spec"]["template"]["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert (
        spec["selector"]["matchLabels"].items() <= labels.items()
        and service["spec"]["selector"].items() <= labels.items()
    )
    assert spec["serviceName"] == service["metadata"]["name"]
    (container,) = pod["containers"]
    check_serve(container["args"])
    ports = {port["name"] for port in container["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/healthz", "port": "http"}
    volumes = {volume["name"] for volume in pod["volumes"]} | {
        c["metadata"]["name"] for c in spec["volumeClaimTemplates"]
    }
    assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    assert pod["terminationGracePeriodSeconds"] > DRAIN_S + 5 and pod["securityContext"]["runAsNonRoot"]


def test_the_systemd_unit_starts_what_there_is(tmp_path):
    text = (DEPLOY / "coda-server.service").read_text()
    (started,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    check_serve(shlex.split(started)[1:])
    assert int(re.findall(r"TimeoutStopSec=(\d+)", text)[0]) > DRAIN_S + 5
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed: only the command line was checked")
    unit = tmp_path / "coda-server.service"
    unit.write_text(text.replace("/opt/coda/bin/coda", "/bin/true").replace("User=coda-server", "User=root"))
    done = subprocess.run([program, "verify", str(unit)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not [line for line in done.stderr.splitlines() if unit.name in line], done.stderr


def test_the_nightly_cron_job_fits_the_server_beside_it():
    text = (DEPLOY / "kubernetes" / "nightly.yaml").read_text()
    (claim, cron) = yaml.safe_load_all(text)
    (server,) = [
        d for d in yaml.safe_load_all((DEPLOY / "kubernetes" / "server.yaml").read_text()) if d["kind"] == "StatefulSet"
    ]
    assert (claim["kind"], cron["kind"], cron["apiVersion"]) == ("PersistentVolumeClaim", "CronJob", "batch/v1")
    assert cron["spec"]["concurrencyPolicy"] == "Forbid" and len(cron["spec"]["schedule"].split()) == 5
    job = cron["spec"]["jobTemplate"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    check_nightly(container["args"])
    variables = {variable["name"] for variable in container["env"]}
    assert set(re.findall(r"\$\((\w+)\)", str(container["args"]))) <= variables
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    claims = {v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v}
    (template,) = server["spec"]["volumeClaimTemplates"]
    assert claims == {claim["metadata"]["name"], f"{template['metadata']['name']}-{server['metadata']['name']}-0"}
    (near,) = pod["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert near["labelSelector"]["matchLabels"] == server["spec"]["template"]["metadata"]["labels"]
    assert pod["securityContext"] == server["spec"]["template"]["spec"]["securityContext"], "they share files"
    # Kubernetes takes a podFailurePolicy only where pods are not restarted in place
    (ends,) = [rule for rule in job["podFailurePolicy"]["rules"] if rule["action"] == "FailJob"]
    assert pod["restartPolicy"] == "Never" and Declined.exit_status in ends["onExitCodes"]["values"]
    assert ends["onExitCodes"]["containerName"] == container["name"]
    check_extras(re.search(r"--build-arg (\S+)", text)[1])


def test_the_nightly_units_start_what_there_is(tmp_path):
    service, timer = ((DEPLOY / f"coda-nightly.{kind}").read_text() for kind in ("service", "timer"))
    (started,) = re.findall(r"^ExecStart=(.*)$", service, re.MULTILINE)
    check_nightly(shlex.split(started)[1:])
    stops = re.findall(r"^RestartPreventExitStatus=(.*)$", service, re.MULTILINE)[0].split()
    assert str(Declined.exit_status) in stops and str(InputError.exit_status) in stops
    assert "[Install]" not in service and "WantedBy=timers.target" in timer
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed: only the command line was checked")
    unit = service.replace("/opt/coda/bin/coda", "/bin/true").replace("User=coda-server", "User=root")
    for name, text in (("coda-nightly.service", unit), ("coda-nightly.timer", timer)):
        (tmp_path / name).write_text(text)
    paths = [str(tmp_path / f"coda-nightly.{kind}") for kind in ("service", "timer")]
    done = subprocess.run([program, "verify", *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "coda-nightly" not in done.stderr, done.stderr
