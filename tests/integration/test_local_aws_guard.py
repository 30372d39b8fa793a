"""Who may use the embedded AWS (row S1): who names its start's access key, and is no browser and no proxy."""

from __future__ import annotations

import http.client
import io
import socket
import subprocess
import sys
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from celery_sqs.testing.aws import LISTENING, REGION
from faceapp.local.aws_guard import Guard, key_id_of
from tests.integration.test_status_server import ODD_LINES
from tests.support.aws import ACCESS, COUNTER, session
from tests.support.services import PATIENCE_S, users_environ

NAMED = f"AWS4-HMAC-SHA256 Credential={ACCESS['AWS_ACCESS_KEY_ID']}/20260101/us-east-1/s3/aws4_request, Signature=0"
QUEUES = {"Content-Type": "application/x-amz-json-1.0", "X-Amz-Target": "AmazonSQS.ListQueues"}


def ask(
    url: str, method: str = "GET", path: str = "/", body: str | None = None, **headers: str
) -> tuple[int, Any, str]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE_S)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body=body, headers=named)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode(errors="replace")
    finally:
        connection.close()


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        NAMED.replace(ACCESS["AWS_ACCESS_KEY_ID"], "test"),
        NAMED.replace(ACCESS["AWS_ACCESS_KEY_ID"], ""),
        NAMED.replace(ACCESS["AWS_ACCESS_KEY_ID"], ACCESS["AWS_ACCESS_KEY_ID"][:-1]),
        NAMED.replace(ACCESS["AWS_ACCESS_KEY_ID"], ACCESS["AWS_ACCESS_KEY_ID"].lower()),
        f"AWS {ACCESS['AWS_ACCESS_KEY_ID']}:signature",
        f"Basic {ACCESS['AWS_ACCESS_KEY_ID']}",
        f"x, Credential={ACCESS['AWS_ACCESS_KEY_ID']}/20260101/us-east-1/batch/aws4_request",
    ],
    # The key is another in each process of pytest-xdist, which must name the tests alike.
    ids=["none", "empty", "other", "no-id", "cut", "lower-case", "version-2", "basic", "other-service"],
)
@pytest.mark.parametrize("path", ["/", "/bucket/key", "/faceapp/calls", "/moto-api/reset", "/latest/meta-data/"])
def test_without_the_starts_access_key_there_is_nothing(
    aws_endpoint: str, authorization: str | None, path: str
) -> None:
    """S1: any signature was taken."""
    headers = {} if authorization is None else {"Authorization": authorization}
    for method in ("GET", "PUT", "POST", "DELETE", "HEAD", "PATCH"):
        status, _, text = ask(aws_endpoint, method, path, "x=1" if method == "POST" else None, **headers)
        assert status == 403
        assert method == "HEAD" or "'faceapp up'" in text


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "bucket.s3.amazonaws.com"},
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1"},
        {"Sec_Fetch_Site": "none"},
        {"Sec_Fetch_Site": "same-origin"},
        {"Sec_Fetch_Mode": "navigate"},
        {"Sec_Ch_Ua": "x"},
        {"X_Forwarded_For": "127.0.0.1"},
        {"Via": "1.1 x"},
    ],
)
def test_browsers_proxies_and_foreign_hosts_get_nothing_even_with_it(
    aws_endpoint: str, headers: dict[str, str]
) -> None:
    """S1."""
    assert ask(aws_endpoint, "GET", "/", Authorization=NAMED)[0] == 200
    status, _, text = ask(aws_endpoint, "GET", "/", Authorization=NAMED, **headers)
    assert status == 403
    assert "The embedded AWS answers " in text


def test_a_preflight_is_refused_and_no_answer_is_for_other_pages(aws_endpoint: str) -> None:
    """S1: moto allows every origin by itself, and so may a bucket's own rules."""
    s3 = session().client("s3", endpoint_url=aws_endpoint)
    s3.create_bucket(Bucket="crossing")
    rule = {"AllowedMethods": ["GET", "PUT"], "AllowedOrigins": ["*"], "AllowedHeaders": ["*"]}
    s3.put_bucket_cors(Bucket="crossing", CORSConfiguration={"CORSRules": [rule]})
    s3.put_object(Bucket="crossing", Key="page", Body=b"<script>1</script>", ContentType="text/html")
    wanted = {"Access_Control_Request_Method": "PUT", "Access_Control_Request_Headers": "authorization"}
    for headers in ({}, {"Authorization": NAMED}, {"Origin": "http://evil.example", **wanted}, wanted):
        status, answered, _ = ask(aws_endpoint, "OPTIONS", "/crossing/page", **headers)
        assert status == 403
        assert not [name for name in answered if name.lower().startswith("access-control-")]
    status, answered, text = ask(aws_endpoint, "GET", "/crossing/page", Authorization=NAMED)
    assert (status, text) == (200, "<script>1</script>")
    assert answered["Content-Security-Policy"].startswith("sandbox")
    assert answered["X-Content-Type-Options"] == "nosniff"
    assert not [name for name in answered if name.lower().startswith("access-control-")]


@pytest.mark.parametrize("version", [None, "s3v4"])
def test_a_presigned_address_opens_its_object(aws_endpoint: str, version: str | None) -> None:
    """boto3's default is an older form, which names the key elsewhere."""
    s3 = session().client("s3", endpoint_url=aws_endpoint, config=Config(signature_version=version))
    s3.create_bucket(Bucket="presigned")
    s3.put_object(Bucket="presigned", Key="a b/ü", Body=b"kept")
    url = s3.generate_presigned_url("get_object", Params={"Bucket": "presigned", "Key": "a b/ü"})
    with urlopen(url) as answer:
        assert answer.read() == b"kept"
    assert ask(aws_endpoint, path=url.partition(aws_endpoint)[2].replace(ACCESS["AWS_ACCESS_KEY_ID"], "A"))[0] == 403


@pytest.mark.slow
def test_a_head_that_does_not_end_is_cut(aws_endpoint: str) -> None:
    """It stayed open for ever. A connection that had its answer may be idle for longer.

    All are sent at once, since the server waits a while before it cuts each.
    """
    unfinished = ("", "GET / HT", "GET / HTTP/1.1\r\nHost: 127")
    address = urlsplit(aws_endpoint)
    kept = http.client.HTTPConnection(address.netloc, timeout=240)
    try:
        kept.request("GET", "/", headers={"Authorization": NAMED})
        assert kept.getresponse().read()
        with ExitStack() as stack:
            clients = {
                sent: stack.enter_context(socket.create_connection((address.hostname, address.port), timeout=240))
                for sent in unfinished
            }
            for sent, client in clients.items():
                client.sendall(sent.encode())
            for sent, client in clients.items():
                assert client.recv(100).partition(b"\r\n")[0] in (b"", b"HTTP/1.1 400 Bad Request"), sent
        opened = kept.sock
        kept.request("GET", "/", headers={"Authorization": NAMED})
        assert (kept.getresponse().status, kept.sock) == (200, opened)
    finally:
        kept.close()


@pytest.mark.parametrize("odd", ODD_LINES)
def test_no_header_hides_behind_an_odd_line(aws_endpoint: str, odd: str) -> None:
    """S1, S8."""
    address = urlsplit(aws_endpoint)
    with socket.create_connection((address.hostname, address.port), timeout=240) as client:
        head = f"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {NAMED}\r\n{odd}\r\n\r\n"
        client.sendall(head.encode())
        assert client.recv(1000).split()[1] in (b"400", b"403")


SERVICES = {
    "batch": lambda client: client.describe_job_queues(),
    "lambda": lambda client: client.list_functions(),
    "dynamodb": lambda client: client.list_tables(),
    "ecs": lambda client: client.list_clusters(),
    "secretsmanager": lambda client: client.list_secrets(),
}


@pytest.mark.parametrize("service", SERVICES)
def test_there_is_no_service_that_the_stack_has_no_use_for(aws_endpoint: str, service: str) -> None:
    """S1: Batch asked Docker for a container."""
    client = session().client(service, endpoint_url=aws_endpoint)
    with pytest.raises(ClientError, match=r"The embedded AWS has no \w+: it has what faceapp's stack uses"):
        SERVICES[service](client)


@pytest.mark.parametrize(
    "path",
    ["/moto-api/", "/moto-api/data.json", "/favicon.ico", "/latest/meta-data/", "/latest/api/token", "/v20180820/x"],
)
def test_nor_what_moto_has_besides(aws_endpoint: str, path: str) -> None:
    """S1."""
    for method in ("GET", "POST", "PUT"):
        status, _, text = ask(aws_endpoint, method, path, Authorization=NAMED)
        assert status == 403
        assert "The embedded AWS has no " in text


@pytest.mark.parametrize("kind", ["AWS::Lambda::Function", "AWS::Batch::ComputeEnvironment", "Custom::Anything"])
def test_a_template_makes_nothing_else_either(aws_endpoint: str, kind: str) -> None:
    """S1: CloudFormation makes resources of every service inside the process."""
    cloudformation = session().client("cloudformation", endpoint_url=aws_endpoint)
    template = '{"Resources": {"It": {"Type": "%s", "Properties": {"ServiceToken": "x"}}}}' % kind  # noqa: UP031
    with pytest.raises(ClientError, match=f"The embedded AWS makes no {kind}"):
        cloudformation.create_stack(StackName=kind.replace("::", ""), TemplateBody=template)


@pytest.mark.parametrize(
    "service", ["s3", "sqs", "sns", "ec2", "iam", "ssm", "sts", "cloudwatch", "logs", "cloudformation"]
)
def test_boto3_finds_the_sentence_in_each_protocol(aws_endpoint: str, service: str) -> None:
    stranger: Any = session({"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"})
    calls = {
        "s3": lambda client: client.list_buckets(),
        "sqs": lambda client: client.list_queues(),
        "sns": lambda client: client.list_topics(),
        "ec2": lambda client: client.describe_instances(),
        "iam": lambda client: client.list_roles(),
        "ssm": lambda client: client.describe_parameters(),
        "sts": lambda client: client.get_caller_identity(),
        "cloudwatch": lambda client: client.describe_alarms(),
        "logs": lambda client: client.describe_log_groups(),
        "cloudformation": lambda client: client.list_stacks(),
    }
    calls[service](session().client(service, endpoint_url=aws_endpoint))
    with pytest.raises(ClientError, match="answers only who has the access key of its start"):
        calls[service](stranger.client(service, endpoint_url=aws_endpoint))


def test_who_took_a_role_may_go_on_with_its_key(aws_endpoint: str) -> None:
    """S1: services on an instance take roles, and what STS hands out there is as random as the start's own."""
    role = "arn:aws:iam::123456789012:role/a-role"
    taken = session().client("sts", endpoint_url=aws_endpoint).assume_role(RoleArn=role, RoleSessionName="web")
    keys = {"AWS_ACCESS_KEY_ID": taken["Credentials"]["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": "any"}
    assert session(keys).client("s3", endpoint_url=aws_endpoint).list_buckets()["ResponseMetadata"]
    with pytest.raises(ClientError, match="only who has the access key"):
        session({**keys, "AWS_ACCESS_KEY_ID": f"{keys['AWS_ACCESS_KEY_ID']}A"}).client(
            "s3", endpoint_url=aws_endpoint
        ).list_buckets()


def environ(**more: str) -> dict[str, Any]:
    return {
        "REMOTE_ADDR": "127.0.0.1",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REQUEST_METHOD": "GET",
        "HTTP_HOST": "127.0.0.1:4566",
        "wsgi.input": io.BytesIO(),
        **more,
    }


@given(st.text(max_size=100), st.text(max_size=100))
def test_no_text_is_the_access_key(authorization: str, query: str) -> None:
    guard = Guard(lambda *_: [], [ACCESS["AWS_ACCESS_KEY_ID"]])
    for text in (authorization, f"Bearer {authorization}", NAMED.replace(ACCESS["AWS_ACCESS_KEY_ID"], authorization)):
        assert guard.refusal(environ(HTTP_AUTHORIZATION=text))
    for text in (query, f"X-Amz-Credential={query}", f"AWSAccessKeyId={query}"):
        assert guard.refusal(environ(QUERY_STRING=text))


def test_where_the_access_key_is_named() -> None:
    key = ACCESS["AWS_ACCESS_KEY_ID"]
    assert key_id_of(environ(HTTP_AUTHORIZATION=NAMED)) == key
    assert key_id_of(environ(HTTP_AUTHORIZATION=COUNTER["Authorization"])) == key
    assert key_id_of(environ(QUERY_STRING=f"a=b&X-Amz-Credential={key}%2F20260101%2Fx%2Fs3%2Faws4_request")) == key
    # What moto would take for another service than the guard.
    twice = f"X-Amz-Credential={key}%2Fx&X-Amz-Credential=other"
    assert key_id_of(environ(QUERY_STRING=twice)) == ""
    assert key_id_of(environ(QUERY_STRING=f"X-Amz-Credential={key}/x", HTTP_AUTHORIZATION="x")) == ""


def test_started_by_hand_it_makes_a_key_and_prints_it() -> None:
    command = [sys.executable, "-m", "faceapp.local.aws", "--port", "0"]
    with subprocess.Popen(command, env=users_environ(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        lines = [process.stdout.readline().strip() for _ in range(4)]
        endpoint = lines[0].removeprefix(LISTENING)
        printed = dict(line.removeprefix("export ").split("=", 1) for line in lines[1:])
        assert set(printed) == {"FACEAPP_LOCAL_KEY", *ACCESS}
        assert session(printed).client("sqs", endpoint_url=endpoint).list_queues()
        with pytest.raises(ClientError, match="access key of its start"):
            session().client("sqs", endpoint_url=endpoint, region_name=REGION).list_queues()
        process.terminate()
