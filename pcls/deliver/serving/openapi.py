"""The server's description, as OpenAPI 3.1 has it."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from pcls.deliver.serving.body import BYTES, FORM, IMAGES
from pcls.deliver.serving.limits import (
    BAD_FORM,
    BAD_LABEL,
    BAD_QUERY,
    BAD_TOP,
    BUG,
    BUSY,
    DAMAGED,
    EMPTY,
    FULL,
    LARGE_BODY,
    LARGE_HEAD,
    LARGE_PICTURE,
    MANY_FILES,
    MOST_TOP,
    NO_PICTURE,
    NO_TOKEN,
    NO_TYPE,
    SLOW_ANSWER,
    SLOW_BODY,
    STARTING,
    TOP,
    Limits,
    Refusal,
)

OF_IMAGES = (
    *(EMPTY, DAMAGED, BAD_FORM, BAD_QUERY, SLOW_BODY, LARGE_BODY, LARGE_PICTURE, MANY_FILES, NO_TYPE, NO_PICTURE, FULL),
    *(LARGE_HEAD, BUG, STARTING, BUSY, SLOW_ANSWER),
)
LABEL = "The class, by its name; without it the most probable one."
NUMBER, TEXT = {"type": "number"}, {"type": "string"}
FILE = {"type": "integer", "minimum": 1, "description": "Of a form of several files: which one is at fault."}


def description(limits: Limits, has_token: bool) -> dict[str, Any]:
    """The document at /openapi.json.

    Args:
      limits: of the server.
      has_token: whether it asks for one.
    """
    token: dict[str, Any] = {"security": [{"token": []}]} if has_token else {}
    refused = {str(NO_TOKEN.status): _refusals(NO_TOKEN)} if has_token else {}
    top = {
        "name": "top",
        "in": "query",
        "required": False,
        "description": "How many classes to name, the most probable first.",
        "schema": {"type": "integer", "minimum": 1, "maximum": MOST_TOP, "default": TOP},
    }
    predict: dict[str, Any] = {
        "summary": "Classify images",
        "description": "One image as the body, or several as the files of a form. The order is kept.",
        "parameters": [top],
        "requestBody": {"required": True, "content": _bodies(limits)},
        "responses": {
            "200": _answer("The classes of each image.", "Predictions"),
            **_by_status((*OF_IMAGES, BAD_TOP)),
            **refused,
        },
        **token,
    }
    label = {"name": "label", "in": "query", "required": False, "description": LABEL, "schema": TEXT}
    explain = {
        "summary": "Draw what speaks for a class",
        "description": "One image. Blue speaks for the class, orange against it; /v1/model names the method, and "
        "Grad-CAM tells nothing against a class.",
        "parameters": [label],
        "requestBody": predict["requestBody"],
        "responses": {
            "200": {"description": "A picture of the size that the model sees.", "content": {"image/png": {}}},
            **_by_status((*OF_IMAGES, BAD_LABEL)),
            **refused,
        },
        **token,
    }
    schemas = {
        "Class": _object(label=TEXT, probability=NUMBER),
        "Prediction": _object(
            label=TEXT,
            probability=NUMBER,
            labels={"type": "array", "items": TEXT},
            classes={"type": "array", "items": _schema("Class")},
        ),
        "Predictions": _object(
            predictions={"type": "array", "items": _schema("Prediction")},
            milliseconds=_object(read=NUMBER, model=NUMBER, total=NUMBER),
        ),
        "Error": {"type": "object", "properties": {"error": TEXT, "file": FILE}, "required": ["error"]},
        "Status": _object(status=TEXT),
        "Model": {"type": "object"},
    }
    components: dict[str, Any] = {"schemas": schemas}
    if has_token:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "pcls serve", "version": version("pcls")},
        "paths": {
            "/v1/predict": {"post": predict},
            "/v1/explain": {"post": explain},
            "/v1/model": {
                "get": {
                    "summary": "What the model is",
                    "responses": {"200": _answer("Facts.", "Model"), **refused},
                    **token,
                }
            },
            "/healthz": {
                "get": {"summary": "Whether the process lives", "responses": {"200": _answer("It does.", "Status")}}
            },
            "/readyz": {
                "get": {
                    "summary": "Whether it takes images on",
                    "responses": {
                        "200": _answer("It does.", "Status"),
                        "503": _answer("The model is being compiled, or the end was asked for.", "Status"),
                    },
                }
            },
            "/metrics": {
                "get": {
                    "summary": "Counts for Prometheus",
                    "responses": {"200": {"description": "Text.", "content": {"text/plain": {}}}, **refused},
                    **token,
                }
            },
        },
        "components": components,
    }


def _bodies(limits: Limits) -> dict[str, Any]:
    binary: dict[str, Any] = {"schema": {"type": "string", "format": "binary", "maxLength": limits.body}}
    files = {"type": "array", "items": {"type": "string", "format": "binary"}, "maxItems": limits.batch}
    form = {"schema": {"type": "object", "properties": {"file": files}, "required": ["file"]}}
    return {**dict.fromkeys((*IMAGES, BYTES), binary), FORM: form}


def _by_status(refusals: tuple[Refusal, ...]) -> dict[str, Any]:
    statuses = sorted({refusal.status for refusal in refusals})
    return {str(s): _refusals(*(refusal for refusal in refusals if refusal.status == s)) for s in statuses}


def _refusals(*refusals: Refusal) -> dict[str, Any]:
    return _answer(" Or: ".join(f"{refusal.text}." for refusal in refusals), "Error")


def _answer(text: str, schema: str) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": _schema(schema)}}}


def _schema(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}
