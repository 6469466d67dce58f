# SPDX-License-Identifier: Apache-2.0
"""A Kubernetes API server in memory, strict, and just large enough for the real kubectl.

It has discovery, field validation by kubernetes-validate, namespaces that must be there first,
fields that can't change, strategic merge patches, dry runs and deletion. No controller acts on
what it keeps: no pod is ever made.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from k8s_manifests import schema_problems
from k8s_merge import merged

Object = dict[str, Any]

#: Group and version -> plural -> kind and whether it lives in a namespace.
RESOURCES: dict[str, dict[str, tuple[str, bool]]] = {
    "v1": {
        "namespaces": ("Namespace", False),
        "serviceaccounts": ("ServiceAccount", True),
        "configmaps": ("ConfigMap", True),
        "secrets": ("Secret", True),
        "services": ("Service", True),
        "pods": ("Pod", True),
    },
    "batch/v1": {"jobs": ("Job", True)},
    "networking.k8s.io/v1": {"networkpolicies": ("NetworkPolicy", True)},
    "policy/v1": {"poddisruptionbudgets": ("PodDisruptionBudget", True)},
}
_PATH = re.compile(
    r"/(?:api/(?P<core>v1)|apis/(?P<group>[^/]+/[^/]+))"
    r"(?:/namespaces/(?P<space>[^/]+)(?=/[^/]))?/(?P<plural>[^/]+)(?:/(?P<name>[^/]+))?"
)
_GOING = {"phase": "Terminating"}
#: Who `kubectl apply` says to be.
_APPLY = "kubectl-client-side-apply"
#: What Kubernetes refuses to change, by kind.
_FIXED = {
    "Job": ("spec.template", "spec.completionMode", "spec.podFailurePolicy", "spec.selector"),
    "Service": ("spec.clusterIP",),
}


class RefusedError(Exception):
    """An answer that is no success."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason = code, reason


class Cluster:
    """The objects, and what may be done to them."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.lock = threading.Lock()
        self._numbers = itertools.count(1)

    def create(self, plural: str, space: str, new: Object, dry: bool) -> Object:
        key = (plural, space, new.get("metadata", {}).get("name", ""))
        self._check(new)
        if new["metadata"].get("namespace", "") != space:
            raise RefusedError(400, "BadRequest", "the namespace of the object is another one")
        if space and ("namespaces", "", space) not in self.objects:
            raise RefusedError(404, "NotFound", f'namespaces "{space}" not found')
        if space and self.objects["namespaces", "", space].get("status") == _GOING:
            raise RefusedError(403, "Forbidden", f"namespace {space} is being terminated")
        if key in self.objects:
            raise RefusedError(409, "AlreadyExists", f'{plural} "{key[2]}" already exists')
        return self._keep(key, {**new, "metadata": {**new["metadata"], "uid": f"uid-{key}"}}, dry)

    def change(
        self, key: tuple[str, str, str], patch: Object, strategic: bool, dry: bool
    ) -> Object:
        old = self.get(key)
        new = merged(old, patch, strategic)
        self._check(new)
        for path in _FIXED.get(new["kind"], ()):
            if _at(old, path) != _at(new, path):
                told = f'{new["kind"]} "{key[2]}" is invalid: {path}: field is immutable'
                raise RefusedError(422, "Invalid", told)
        spec = new.get("spec", {})
        # An indexed Job may grow and shrink, with both numbers the same.
        if _at(old, "spec.completions") != spec.get("completions") != spec.get("parallelism"):
            raise RefusedError(422, "Invalid", "spec.completions: field is immutable")
        return old if new == old else self._keep(key, new, dry)

    def get(self, key: tuple[str, str, str]) -> Object:
        if key not in self.objects:
            raise RefusedError(404, "NotFound", f'{key[0]} "{key[2]}" not found')
        return self.objects[key]

    def delete(self, key: tuple[str, str, str], dry: bool) -> Object:
        old = self.get(key)
        if not dry and key[0] == "namespaces":
            # It goes when a controller has emptied it, which `tidy` is.
            self.objects[key] = {**old, "status": _GOING}
        elif not dry:
            del self.objects[key]
        return old

    def tidy(self) -> None:
        """Removes namespaces that were deleted, with all that is in them."""
        going = {key[2] for key, one in self.objects.items() if one.get("status") == _GOING}
        gone = [k for k in self.objects if (k[1] or k[2]) in going]
        for key in gone:
            del self.objects[key]

    def listed(self, plural: str, space: str, name: str | None) -> list[Object]:
        return [
            one
            for (kind, where, called), one in self.objects.items()
            if kind == plural and space in ("", where) and name in (None, called)
        ]

    def _check(self, new: Object) -> None:
        plain = copy.deepcopy(new)
        for added in ("uid", "resourceVersion", "creationTimestamp"):
            plain.get("metadata", {}).pop(added, None)
        for problem in schema_problems(plain, (self.version,)):
            raise RefusedError(400, "BadRequest", f"strict decoding error: {problem}")

    def _keep(self, key: tuple[str, str, str], new: Object, dry: bool) -> Object:
        stamps = {"resourceVersion": str(next(self._numbers))}
        stamps["creationTimestamp"] = "2026-01-01T00:00:00Z"
        new = {**new, "metadata": {**new["metadata"], **stamps}}
        if not dry:
            self.objects[key] = new
        return new


def _at(node: Any, path: str) -> Any:
    for word in path.split("."):
        node = node.get(word) if isinstance(node, dict) else None
    return node


def _discovery(path: str) -> Object | None:
    groups = [version for version in RESOURCES if "/" in version]
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        found = []
        for version in groups:
            one = {"groupVersion": version, "version": version.partition("/")[2]}
            name = version.partition("/")[0]
            found.append({"name": name, "versions": [one], "preferredVersion": one})
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": found}
    if path == "/openapi/v3":
        roots = [("api/" if version == "v1" else "apis/") + version for version in RESOURCES]
        return {"paths": {root: {"serverRelativeURL": f"/openapi/v3/{root}"} for root in roots}}
    version = re.sub(r"^/(openapi/v3/)?apis?/", "", path)
    if version not in RESOURCES:
        return None
    return _openapi(version) if path.startswith("/openapi") else _resources(version)


def _resources(version: str) -> Object:
    verbs = ["create", "delete", "get", "list", "patch"]
    resources = [
        {"name": plural, "singularName": kind.lower(), "namespaced": spaced, "kind": kind,
         "verbs": verbs}
        for plural, (kind, spaced) in RESOURCES[version].items()
    ]  # fmt: skip
    return {"kind": "APIResourceList", "groupVersion": version, "resources": resources}


def _openapi(version: str) -> Object:
    """Says to kubectl that fields are validated here; its own schemas do for the rest."""
    group, _, number = version.rpartition("/")
    paths = {}
    for plural, (kind, _) in RESOURCES[version].items():
        gvk = {"group": group, "version": number, "kind": kind}
        parameters = [{"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}]
        patch = {"parameters": parameters, "responses": {}, "x-kubernetes-group-version-kind": gvk}
        paths[f"/{plural}/{{name}}"] = {"patch": patch}
    info = {"title": "test", "version": "1"}
    return {"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": {}}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: object) -> None:
        """Quiet; what matters is in `Server.requests`."""

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        query = {key: value[-1] for key, value in parse_qs(url.query).items()}
        try:
            with self.server.cluster.lock:
                code, answer = self._answer(url.path, query, body)
        except RefusedError as error:
            code = error.code
            answer = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
                      "reason": error.reason, "message": str(error)}  # fmt: skip
        told = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)

    do_GET = do_POST = do_PATCH = do_DELETE = _serve

    def _answer(self, path: str, query: dict[str, str], body: bytes) -> tuple[int, Object]:
        found = _discovery(path)
        match = None if found else _PATH.fullmatch(path)
        version = match and (match["core"] or match["group"])
        if found or match is None or match["plural"] not in RESOURCES.get(version or "", {}):
            if found is None:
                raise RefusedError(404, "NotFound", f"no such path: {path}")
            return 200, found
        self.server.requests.append((self.command, path, body.decode()))
        kind, _ = RESOURCES[version or ""][match["plural"]]
        key = (match["plural"], match["space"] or "", match["name"] or "")
        cluster, dry = self.server.cluster, query.get("dryRun") == "All"
        lax = query.get("fieldValidation") != "Strict" and not dry
        if lax and query.get("fieldManager") == _APPLY:
            raise RefusedError(400, "BadRequest", "kubectl did not ask for strict validation")
        if self.command == "POST":
            return 201, cluster.create(key[0], key[1], json.loads(body), dry)
        if self.command == "PATCH":
            strategic = "strategic" in self.headers["Content-Type"]
            return 200, cluster.change(key, json.loads(body), strategic, dry)
        if self.command == "DELETE":
            gone = cluster.delete(key, dry)
            details = {"name": key[2], "uid": gone["metadata"]["uid"]}
            return 200, {"kind": "Status", "status": "Success", "details": details}
        cluster.tidy()
        if key[2]:
            return 200, cluster.get(key)
        selector = re.fullmatch("metadata.name=(.+)", query.get("fieldSelector", ""))
        items = cluster.listed(key[0], key[1], selector and selector[1])
        listing = {"kind": f"{kind}List", "apiVersion": version, "items": items}
        return 200, {**listing, "metadata": {"resourceVersion": "1"}}


class Server(ThreadingHTTPServer):
    """Serves one cluster on a free port of loopback.

    Args:
        version: Kubernetes version whose schemas count.
    """

    daemon_threads = True

    def __init__(self, version: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.cluster = Cluster(version)
        self.requests: list[tuple[str, str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"
