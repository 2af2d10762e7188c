"""Kubernetes objects against their schemas, with unknown fields as errors."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate

KUBERNETES_VERSION = "1.37"
SCHEMAS = Path(__file__).with_name("schemas")


def validate(manifest: dict[str, Any]) -> None:
    """Raise `jsonschema.ValidationError` where the API server would reject or drop a field."""
    if manifest["apiVersion"].startswith("ray.io/"):
        text = (SCHEMAS / f"{manifest['kind'].lower()}.json").read_text(encoding="utf-8")
        jsonschema.Draft202012Validator(_closed(json.loads(text))).validate(manifest)
    else:
        kubernetes_validate.validate(manifest, KUBERNETES_VERSION, strict=True)


def _closed(schema: Any) -> Any:
    """An OpenAPI v3 schema of a CRD as a JSON Schema that allows only the fields it names."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    if closed.pop("x-kubernetes-int-or-string", False):
        closed.pop("type", None)
        closed["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if closed.pop("nullable", False):
        closed = {"anyOf": [closed, {"type": "null"}]}
    if closed.get("type") == "object" and "properties" in closed:
        closed.setdefault("additionalProperties", False)
    return closed
