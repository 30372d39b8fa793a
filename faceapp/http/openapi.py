"""The API's description (OpenAPI 3.1), written once, and the page that shows it.

What faceapp.schema defines is derived from its dataclasses, so that the description cannot say anything else. The page
is Swagger UI as flask-swagger-ui bundles it, served from here with a start script of our own: the bundle's own page
has its script inline, which the content security policy forbids.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from functools import cache
from importlib import resources
from typing import Any

import flask
from werkzeug.exceptions import NotFound

from faceapp import __version__, schema
from faceapp.http import auth
from faceapp.security.key_text import ROLES

ASSETS = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "favicon-32x32.png": "image/png",
}
A_DAY_S = 86400

JSON_TYPES: dict[Any, str] = {str: "string", float: "number", int: "integer"}
ID = {"type": "string", "pattern": "^[0-9a-f]{32}$"}
LINKS = {"type": "object", "properties": {"self": {"type": "string", "format": "uri-reference"}}}
KEY = {
    "type": "http",
    "scheme": "bearer",
    "bearerFormat": "fa_<8 hexadecimal digits>_<43 characters>",
    "description": "An API key of `faceapp keys create`, or the one in the address that `faceapp up` prints. Its role "
    "is recognise, enrol or admin, each of which may do what those before it may.",
}

blueprint = flask.Blueprint("openapi", __name__, template_folder="templates")


@blueprint.get("/openapi.json")
def openapi() -> flask.Response:
    """The description."""
    return flask.jsonify(document())


@blueprint.get("/docs")
def docs() -> flask.Response:
    """The description, to read and to try."""
    answer = flask.Response(flask.render_template("docs.html"))
    # Swagger UI sets style attributes; nothing of it is a secret or a user's.
    answer.headers["Content-Security-Policy"] = (
        "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"
    )
    return answer


@blueprint.get("/docs/<asset>")
def asset(asset: str) -> flask.Response:
    """A file of Swagger UI."""
    if asset not in ASSETS:
        raise NotFound
    data = resources.files("flask_swagger_ui").joinpath("dist", asset).read_bytes()
    answer = flask.Response(data, mimetype=ASSETS[asset])
    answer.cache_control.max_age = A_DAY_S
    return answer


@cache
def document() -> dict[str, Any]:
    """The whole description."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "faceapp",
            "version": __version__,
            "summary": "Photos in, names out.",
            "description": "Every error is a problem document (RFC 9457) with a stable `code`. A request may bring an "
            "`X-Request-ID` of 1 to 64 letters, digits, `.`, `_` and `-`, else it gets one: it comes back with the "
            "answer and is in every log line about the request. Everything under /v1 needs an API key, as "
            "`Authorization: Bearer <key>`; `POST /` needs none from the service's own machine (FACEAPP_WEB_AUTH can "
            "change that).",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "tags": [
            {"name": "classic", "description": "One photo, one line of text."},
            {"name": "recognitions", "description": "Who is in these photos?"},
            {"name": "people", "description": "Whom the service knows."},
            {"name": "health", "description": "For load balancers and monitoring."},
        ],
        "paths": _guarded(_paths()),
        "components": {"schemas": _schemas(), "responses": _responses(), "securitySchemes": {"key": KEY}},
    }


def _guarded(paths: dict[str, Any]) -> dict[str, Any]:
    """The paths, with the role that each operation needs and how a caller is refused."""
    for path, item in paths.items():
        for method, operation in item.items():
            if role := auth.ROLES.get(f"{method.upper()} {path}"):
                # The classic line needs none on the service's own machine.
                operation["security"] = (
                    [{"key": [role]}, {}] if f"{method.upper()} {path}" == auth.CLASSIC else [{"key": [role]}]
                )
                refusals = {status: _refusal(status) for status in ("401", "403", "429", "503")}
                operation["responses"] = dict(sorted({**operation["responses"], **refusals}.items()))
    return paths


def _paths() -> dict[str, Any]:
    name = _path_parameter("name", {"type": "string", "minLength": 1, "maxLength": 64}, "The person's name.")
    photo_id = _path_parameter("photo_id", {"type": "string", "pattern": "^[0-9a-f]{24}$"}, "The photo's id.")
    request_id = _path_parameter("request_id", ID, "As the answer to the upload gave it.")
    prefer = {
        "name": "Prefer",
        "in": "header",
        "schema": {"type": "string", "examples": ["wait=10"]},
        "description": "`wait=N` (RFC 7240): answer with the results if all come within N seconds.",
    }
    classic_form = {"inputFile": _BINARY, "myfile": _BINARY, "file": _BINARY}
    return {
        "/": {
            "post": _operation(
                "classic",
                "Recognise one photo",
                "Send one photo in `inputFile`, `myfile` or `file`. The answer is `<file name without extension>:"
                "<name>`; the name is the largest face's, `unknown`, or `no_face`.",
                body=_form(classic_form),
                answers={"200": _text("The line, without a line break at its end.")},
                problems=["BadRequest", "TooSlow", "TooLarge", "NotAPhoto", "Unreadable", "Unavailable", "Timeout"],
            )
        },
        "/v1/recognitions": {
            "post": _operation(
                "recognitions",
                "Recognise one or many photos",
                "Each file of the form is one photo, whatever its field is called. One bad photo does not sink the "
                "others: it is an item with status `failed`. Only if no photo is accepted the answer is a problem, "
                "with the reason for each under `errors`.",
                parameters=[prefer],
                body=_form({"file": {"type": "array", "items": _BINARY, "minItems": 1}}, ["file"]),
                answers={
                    "200": _json("Recognitions", "All results are there.", "Location", "Preference-Applied"),
                    "202": _json("Recognitions", "Some are pending.", "Location", "Preference-Applied", "Retry-After"),
                },
                problems=["BadRequest", "TooSlow", "TooLarge", "NotAPhoto", "Unreadable", "Unavailable"],
            )
        },
        "/v1/recognitions/{request_id}": {
            "parameters": [request_id],
            "get": _operation(
                "recognitions",
                "Fetch a result",
                "Only keys of the roles enrol and admin get the distance of an `unknown` face, and candidates besides "
                "whom it was recognised as.",
                answers={"200": _json("Item", "The result, or `pending` while there is none.", "Retry-After")},
                problems=["NotFound", "Unavailable"],
            ),
            "delete": _operation(
                "recognitions",
                "Delete a photo and its result",
                "Also while it is pending: then it is not recognised, or what comes of it is deleted, too.",
                answers={"204": {"description": "Deleted."}},
                problems=["NotFound", "Unavailable"],
            ),
        },
        "/v1/people": {
            "get": _operation(
                "people",
                "List everybody",
                answers={"200": _json("People", "Everybody enrolled, by name.")},
                problems=["Unavailable"],
            )
        },
        "/v1/people/{name}": {
            "parameters": [name],
            "get": _operation(
                "people",
                "Show one person",
                answers={"200": _json("Person", "The person and their photos.")},
                problems=["BadRequest", "NotFound", "Unavailable"],
            ),
            "put": _operation(
                "people",
                "Enrol photos of a person",
                "Each photo must show exactly one face. All are enrolled or none; `errors` says per refused photo why. "
                "The name is kept in one spelling, which the answer has: NFC, single spaces, one kind of apostrophe "
                "and of hyphen. `notices` says who else has a name like it (`similar_name`), has the same photo "
                "(`same_photo`), or looks like it (`looks_like`), and which photo is unlike the person's others "
                "(`unlike`).",
                body=_form({"photo": {"type": "array", "items": _BINARY, "minItems": 1}}, ["photo"]),
                answers={
                    "200": _json("Enrolled", "Enrolled, beside photos that were there.", "Location"),
                    "201": _json("Enrolled", "Enrolled; the person is new.", "Location"),
                },
                problems=[
                    "BadRequest",
                    "Conflict",
                    "TooSlow",
                    "TooLarge",
                    "NotAPhoto",
                    "Unreadable",
                    "Unavailable",
                    "Timeout",
                    "Full",
                ],
            ),
            "delete": _operation(
                "people",
                "Forget a person",
                "Removes every photo and every vector at once. Results that name them, with the photos that were sent, "
                "are deleted within minutes, and they are no candidate in any other result then. That is so, too, for "
                "a name that is answered 404, because nobody is enrolled under it (any more).",
                answers={"204": {"description": "Forgotten."}},
                problems=["BadRequest", "NotFound", "Unavailable"],
            ),
        },
        "/v1/people/{name}/photos/{photo_id}": {
            "parameters": [name, photo_id],
            "get": _operation(
                "people",
                "Fetch an enrolled photo",
                answers={"200": {"description": "The photo as it came.", "content": {"image/*": {}}}},
                problems=["BadRequest", "NotFound", "Unavailable"],
            ),
            "delete": _operation(
                "people",
                "Forget one photo",
                answers={"204": {"description": "Forgotten."}},
                problems=["BadRequest", "NotFound", "Unavailable"],
            ),
        },
        "/v1/scaler": {
            "get": _operation(
                "health",
                "What does the scaler see and want?",
                "Queue depth, instances by phase, the decision and its reason, and the last 15 minutes of them.",
                answers={"200": _json("Scaler", "As of about a second ago; only `running` when it does not answer.")},
            ),
        },
        "/healthz": {
            "get": _operation("health", "Is the process alive?", answers={"200": _json("Health", "It is.")}),
        },
        "/readyz": {
            "get": _operation(
                "health",
                "Can it do its work?",
                "Asks S3 and SQS.",
                answers={"200": _json("Health", "Both answered.")},
                problems=["Unavailable"],
            ),
        },
        "/metrics": {
            "get": _operation(
                "health",
                "What was done so far, for Prometheus.",
                "For this machine alone, unless FACEAPP_WEB_METRICS says something else.",
                answers={"200": _text("Prometheus's text format.", "faceapp_web_waiting_requests 0.0\n")},
                problems=["Forbidden"],
            ),
        },
    }


_BINARY = {"type": "string", "contentMediaType": "application/octet-stream"}


def _operation(
    tag: str,
    summary: str,
    description: str = "",
    *,
    parameters: list[dict[str, Any]] | None = None,
    body: dict[str, Any] | None = None,
    answers: dict[str, Any],
    problems: list[str] | None = None,
) -> dict[str, Any]:
    status_of = {name: status for status, (name, _) in PROBLEMS.items()}
    errors = {status_of[name]: _refusal(status_of[name]) for name in problems or ()}
    operation = {"tags": [tag], "summary": summary, "description": description, "parameters": parameters}
    return {
        **{key: value for key, value in operation.items() if value},
        **({"requestBody": body} if body else {}),
        "responses": {**answers, **errors},
    }


def _refusal(status: str) -> dict[str, Any]:
    return {"$ref": f"#/components/responses/{PROBLEMS[status][0]}"}


def _path_parameter(name: str, of: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": of, "description": description}


def _form(fields: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    form = {"type": "object", "properties": fields, **({"required": required} if required else {})}
    return {"required": True, "content": {"multipart/form-data": {"schema": form}}}


def _text(description: str, example: str = "obama3:obama") -> dict[str, Any]:
    content = {"text/plain": {"schema": {"type": "string"}, "example": example}}
    return {"description": description, "content": content}


def _json(name: str, description: str, *headers: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
    found = {"headers": {each: {"schema": {"type": "string"}} for each in headers}} if headers else {}
    return {"description": description, "content": content, **found}


PROBLEMS = {
    "400": ("BadRequest", "The request cannot be understood, or a name cannot be a person's."),
    "401": ("Unauthorized", "This needs an API key, or the one that came is not good (any more)."),
    "403": ("Forbidden", "This is not for this key's role, for another site's page, or for the address that asks."),
    "404": ("NotFound", "There is nothing here (any more)."),
    "408": ("TooSlow", "The upload took too long."),
    "409": ("Conflict", "Another model described the gallery's photos, or the person was forgotten meanwhile."),
    "413": ("TooLarge", "Too many bytes or too many files."),
    "415": ("NotAPhoto", "The file is no photo in a format this service reads, or the body is encoded."),
    "422": ("Unreadable", "The photo is broken or too large, or cannot be enrolled: no face, several faces."),
    "429": ("TooManyRequests", "This key is used more often than it may be; `Retry-After` says when it may again."),
    "503": ("Unavailable", "Too many wait already (`overloaded`), or S3 or SQS does not answer."),
    "504": ("Timeout", "No answer came in time; the photo is kept, `links.self` has its result later."),
    "507": ("Full", "The gallery holds as many photos as it may."),
}


def _responses() -> dict[str, Any]:
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {name: {"description": description, "content": content} for name, description in PROBLEMS.values()}


def _schemas() -> dict[str, Any]:
    text, number = {"type": "string"}, {"type": "integer", "minimum": 0}
    item = _dataclass(schema.Recognition)
    item["properties"] |= {
        "id": {"anyOf": [ID, {"type": "null"}], "description": "null for a photo that was not accepted"},
        "status": {"enum": ["pending", "done", "failed"]},
        "answer": {"type": ["string", "null"], "description": "the largest face's name, `unknown`, or `no_face`"},
        "links": LINKS,
    }
    item["required"] = ["id", "status", "file_name", "links"]
    photo_failure = _dataclass(schema.PhotoFailure)
    photo = _object(id={"type": "string"}, links=LINKS)
    person = _object(name=text, photos={"type": "array", "items": photo})
    notice = _dataclass(schema.Notice)
    notice["properties"]["detail"] = {**text, "description": "a sentence: meant for people"}
    return {
        "Item": item,
        "Recognitions": _object(recognitions={"type": "array", "items": {"$ref": "#/components/schemas/Item"}}),
        "People": _object(people={"type": "array", "items": _object(name=text, photos=number, links=LINKS)}),
        "Person": person,
        "Enrolled": _object(**person["properties"], notices={"type": "array", "items": notice}),
        "Scaler": {
            "type": "object",
            "required": ["running"],
            "properties": {
                "running": {"type": "boolean"},
                "policy": text,
                "wanted": number,
                "reason": text,
                "counts": {"type": ["object", "null"], "additionalProperties": {"type": "number"}},
                "instances": {"type": "object", "additionalProperties": number},
                "history": {"type": "array", "items": {"type": "array", "items": {"type": ["number", "null"]}}},
            },
        },
        "Health": {**_object(status=text), "properties": {"status": text, "version": text}},
        "Problem": {
            "type": "object",
            "required": ["type", "title", "status", "code", "detail", "instance", "request_id"],
            "properties": {
                "type": {"type": "string", "format": "uri-reference"},
                "title": text,
                "status": {"type": "integer"},
                "code": {**text, "description": "stable: meant for programs"},
                "detail": {**text, "description": "a sentence: meant for people"},
                "instance": {"type": "string", "format": "uri-reference"},
                "request_id": {**text, "description": "the same as in X-Request-ID and in the log"},
                "errors": {"type": "array", "items": photo_failure},
                "id": {**ID, "description": "of the recognition, which may still be to come"},
                "links": LINKS,
                "role": {"enum": list(ROLES), "description": "that a key would need"},
            },
        },
    }


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


def _dataclass(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    assert dataclasses.is_dataclass(cls)
    return _object(**{each.name: _json_schema(hints[each.name]) for each in dataclasses.fields(cls)})


def _json_schema(hint: Any) -> dict[str, Any]:
    """The JSON Schema of what dataclasses.asdict and json make of a value of this type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _dataclass(typing.cast(type, hint))
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin is types.UnionType:
        return {"anyOf": [_json_schema(each) for each in arguments]}
    if hint is types.NoneType:
        return {"type": "null"}
    if origin is tuple and arguments[-1] is Ellipsis:
        return {"type": "array", "items": _json_schema(arguments[0])}
    if origin is tuple:
        (of,) = set(arguments)
        return {"type": "array", "items": _json_schema(of), "minItems": len(arguments), "maxItems": len(arguments)}
    return {"type": JSON_TYPES[hint]}
