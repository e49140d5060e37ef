"""The Helm chart with its values files, and what its checks find."""

import copy
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from tools.check_deploy import CHART, NOT_VALIDATED, check_chart, render, values_files

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("helm_python") is None,
        reason="no Helm: `make lint` installs it as a library, and these tests run too",
    ),
]

VALUES = values_files()
MINIMAL = VALUES["values-minimal"]


def changed(**changes: Any) -> Mapping[str, Any]:
    """The minimal values with changes."""
    return {**copy.deepcopy(dict(MINIMAL)), **changes}


def with_settings(**settings: Any) -> Mapping[str, Any]:
    """The minimal values with further settings."""
    return changed(settings={**MINIMAL["settings"], **settings})


def server_of(values: Mapping[str, Any]) -> Any:
    """The specification of the servers' pods."""
    (workload,) = (item for item in render(values) if item["kind"] == "StatefulSet")
    return workload["spec"]["template"]["spec"]


def environment_of(values: Mapping[str, Any]) -> Mapping[str, str]:
    """The variables of the server's container."""
    return {entry["name"]: entry["value"] for entry in server_of(values)["containers"][0]["env"]}


@pytest.mark.parametrize("name", VALUES)
def test_each_values_file_passes(name: str) -> None:
    assert list(check_chart(VALUES[name])) == []


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (changed(typo=1), "'typo' not allowed"),
        (changed(publicUrl=""), "/publicUrl"),
        (changed(publicUrl="http://integrations.example.com"), "/publicUrl"),
        (changed(secretName=""), "/secretName"),
        (changed(tls={}), "/tls/secretName"),
        (changed(policy=""), "/policy"),
        (changed(policy="[users"), "policy.toml: Expected ']'"),
        (changed(settings={}), "USER_JWT_JWKS"),
        (changed(replicas="2"), "/replicas"),
        (changed(externalSecrets={"enabled": True}), "/externalSecrets/storeRef"),
        (changed(networkPolicy={"grpcFrom": [{}]}), "/networkPolicy/grpcFrom"),
        (changed(resources={"limits": {"memory": "1 GB"}}), "/resources/limits/memory"),
        (with_settings(GRPC_MAX_CONECTIONS=1), "GRPC_MAX_CONECTIONS is not a setting"),
        (with_settings(USER_JWT_ISSUER=""), "USER_JWT_ISSUER: belongs together"),
        (with_settings(JWT_LEEWAY_SECONDS="soon"), "JWT_LEEWAY_SECONDS"),
        # What the chart sets itself, and secrets, which belong into the Secret.
        (with_settings(GRPC_ADDRESS="0.0.0.0:1"), "GRPC_ADDRESS"),
        (with_settings(DEV_MODE=True), "DEV_MODE"),
        (with_settings(DATABASE_URL="postgresql://u:p@h/d"), "DATABASE_URL"),
        (with_settings(SLACK_CLIENT_SECRET="s"), "SLACK_CLIENT_SECRET"),
        # What contradicts another value.
        (with_settings(DRAIN_SECONDS=60), "terminationGracePeriodSeconds: must be at least 100"),
        (with_settings(SHUTDOWN_GRACE_SECONDS="300"), "terminationGracePeriodSeconds: must be at least 325"),
        (with_settings(DRAIN_SECONDS="30.5"), "terminationGracePeriodSeconds: must be at least 71"),
        (changed(autoscaling={"enabled": True, "minReplicas": 3, "maxReplicas": 2}), "autoscaling.maxReplicas"),
        (changed(listenHost="::"), "/listenHost"),
        # What only the schemas of Kubernetes know.
        (changed(extraVolumes=[{"name": "ca", "configmap": {"name": "ca"}}]), "'configmap' was unexpected"),
        (changed(affinity={"nodeAfinity": {}}), "'nodeAfinity' was unexpected"),
        (changed(tolerations=[{"key": 1}]), "tolerations.0.key"),
        (changed(tls={**MINIMAL["tls"], "clientCaSecretName": "ca", "certManager": {"enabled": True}}), "issuerRef"),
    ],
)
def test_mistakes_are_found(values: Mapping[str, Any], found: str) -> None:
    assert found in "\n".join(check_chart(values))


@pytest.mark.parametrize(
    ("template", "before", "after", "found"),
    [
        ("statefulset.yaml", "periodSeconds: 2", "periodSecond: 2", "'periodSecond' was unexpected"),
        ("statefulset.yaml", "name: POLICY_FILE,", "name: POLICY,", "POLICY is not a setting"),
        ("statefulset.yaml", "tls/tls.key", "tls/key", "TLS_KEY_FILE"),
        ("availability.yaml", "autoscaling/v2", "autoscaling/v2beta2", "1.30: it has no autoscaling/v2beta2"),
        ("migration.yaml", "{{- end }}", "", "helm lint"),
    ],
)
def test_negative_control_a_template_with_a_mistake_fails(
    template: str, before: str, after: str, found: str, tmp_path: Path
) -> None:
    chart = tmp_path / CHART.name
    copytree(CHART, chart)
    path = chart / "templates" / template
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    assert found in "\n".join(check_chart(VALUES["values-all-options"], chart))


@pytest.mark.parametrize("name", VALUES)
def test_only_objects_of_operators_are_left_out(name: str) -> None:
    kinds = {item["kind"] for item in render(VALUES[name]) if item["apiVersion"] in NOT_VALIDATED}
    assert kinds == ({"Certificate", "ExternalSecret", "ServiceMonitor"} if name == "values-all-options" else set())


@pytest.mark.parametrize("name", VALUES)
def test_every_pod_is_confined(name: str) -> None:
    pods = [item["spec"]["template"]["spec"] for item in render(VALUES[name]) if item["kind"] in {"StatefulSet", "Job"}]
    assert len(pods) == 2
    for pod in pods:
        assert pod["automountServiceAccountToken"] is False
        assert (pod["securityContext"]["runAsNonRoot"], pod["securityContext"]["runAsUser"]) == (True, 10001)
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_the_migration_gets_the_database_and_no_key() -> None:
    (job,) = (item for item in render(MINIMAL) if item["kind"] == "Job")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert [entry["name"] for entry in container["env"]] == ["DATABASE_URL"]
    assert "envFrom" not in container


def test_the_database_may_have_a_secret_of_its_own() -> None:
    """As operators of databases make it. Both containers read it there, and the server before its other Secret."""
    values = changed(databaseUrl={"secretName": "database-app", "key": "uri"})
    assert list(check_chart(values)) == []
    pods = [item["spec"]["template"]["spec"] for item in render(values) if item["kind"] in {"StatefulSet", "Job"}]
    assert len(pods) == 2
    for pod in pods:
        (entry,) = (one for one in pod["containers"][0]["env"] if one["name"] == "DATABASE_URL")
        assert entry["valueFrom"] == {"secretKeyRef": {"name": "database-app", "key": "uri"}}


def test_names_of_digits_stay_texts() -> None:
    assert list(check_chart(changed(databaseUrl={"secretName": "123", "key": "456"}))) == []


def test_servers_and_the_migration_mount_further_volumes() -> None:
    volume = {"name": "ca", "configMap": {"name": "database-ca"}}
    mount = {"name": "ca", "mountPath": "/etc/database-ca", "readOnly": True}
    settings = {**MINIMAL["settings"], "OPENBAO_CA_FILE": "/etc/database-ca/ca.pem"}
    values = changed(extraVolumes=[volume], extraVolumeMounts=[mount], settings=settings)
    assert list(check_chart(values)) == []
    pods = [item["spec"]["template"]["spec"] for item in render(values) if item["kind"] in {"StatefulSet", "Job"}]
    assert len(pods) == 2
    for pod in pods:
        assert volume in pod["volumes"]
        assert mount in pod["containers"][0]["volumeMounts"]
    not_mounted = changed(settings=settings)
    assert "OPENBAO_CA_FILE" in "\n".join(check_chart(not_mounted))


def test_a_stop_has_the_time_that_its_settings_need() -> None:
    for drain, seconds in ((60, 100), (0, 40), ("", 45)):
        values = {**with_settings(DRAIN_SECONDS=drain), "terminationGracePeriodSeconds": seconds}
        assert list(check_chart(values)) == []


def test_a_port_without_peers_is_closed() -> None:
    """In a NetworkPolicy an empty list of peers means everybody."""

    def open_ports(**peers: Any) -> Mapping[str, Any]:
        (policy,) = (item for item in render(changed(networkPolicy=peers)) if item["kind"] == "NetworkPolicy")
        return {rule["ports"][0]["port"]: rule["from"] for rule in policy["spec"]["ingress"] or ()}

    peer = {"podSelector": {"matchLabels": {"app": "envoy"}}}
    assert open_ports(grpcFrom=[peer], httpFrom=[], metricsFrom=[]) == {"grpc": [peer]}
    assert open_ports(grpcFrom=[], httpFrom=[], metricsFrom=[]) == {}


@pytest.mark.parametrize(
    ("value", "text"), [(1_000_000, "1000000"), (0.5, "0.5"), (True, "true"), (0, "0"), ("007", "007"), (-1, "-1")]
)
def test_settings_reach_the_server_as_they_are_written(value: Any, text: str) -> None:
    assert environment_of(with_settings(CREDENTIALS_CACHE_SIZE=value))["CREDENTIALS_CACHE_SIZE"] == text


def test_without_a_persistent_journal_it_is_in_the_pod() -> None:
    pods = [server_of(changed(journal={"persistent": is_persistent})) for is_persistent in (True, False)]
    assert ["journal" in {volume["name"] for volume in pod["volumes"]} for pod in pods] == [False, True]
