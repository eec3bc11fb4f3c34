"""The parts of the server, each by itself."""

import asyncio
import contextlib
import importlib.util
import io
import json
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

import pcls
from pcls.cli import main
from pcls.deliver.serving import limits
from pcls.deliver.serving.app import application
from pcls.deliver.serving.batching import Batcher
from pcls.deliver.serving.bearer import read_token
from pcls.deliver.serving.body import files_of
from pcls.deliver.serving.limits import Limits, Refused, Room, bytes_of
from pcls.deliver.serving.openapi import description
from pcls.deliver.serving.service import Service
from pcls.errors import UserError


def png(size=10):
    file = io.BytesIO()
    Image.new("L", (size, size), 100).save(file, "PNG")
    return file.getvalue()


def in_batches(answer, limits, use):
    """What `use` does with a batcher that runs, and the sizes of its batches."""
    sizes = []

    async def run():
        with ThreadPoolExecutor(1) as device:
            batcher = Batcher(answer, limits, device, lambda images, seconds: sizes.append(images))
            running = asyncio.create_task(batcher.run())
            try:
                return await use(batcher)
            finally:
                running.cancel()

    return asyncio.run(run()), sizes


def doubled(inputs, size):
    assert len(inputs) <= size
    return np.array([2 * one for one in inputs])


def test_images_that_arrive_while_the_model_works_share_the_next_batch():
    started, go = threading.Event(), threading.Event()
    padded = []

    def slow(inputs, size):
        padded.append(size)
        started.set()
        assert go.wait(10)
        return doubled(inputs, size)

    async def use(batcher):
        first = asyncio.create_task(batcher.ask([np.float32(0)]))
        await asyncio.to_thread(started.wait, 10)
        others = [asyncio.create_task(batcher.ask([np.float32(n)])) for n in range(1, 12)]
        await asyncio.sleep(0)
        go.set()
        return [float(row) for (row,) in await asyncio.gather(first, *others)]

    rows, sizes = in_batches(slow, Limits(batch=8), use)
    assert rows == [2 * n for n in range(12)]
    assert sizes == [1, 8, 3]
    # Only shapes that were compiled.
    assert padded == [1, 8, 4]


def test_a_batch_waits_for_others_only_as_long_as_it_is_told():
    async def use(batcher):
        start = time.monotonic()
        await batcher.ask([np.float32(1)])
        alone = time.monotonic() - start
        # A full one does not wait.
        await batcher.ask([np.float32(1)] * 4)
        return alone, time.monotonic() - start - alone

    (alone, full), sizes = in_batches(doubled, Limits(batch=4, wait=0.4), use)
    assert 0.4 <= alone < 3
    assert full < 0.4
    assert sizes == [1, 4]


def test_an_error_of_the_model_reaches_all_who_asked_and_the_next_batch_is_answered():
    def faulty(inputs, size):
        if inputs[0] < 0:
            raise ArithmeticError("the model failed")
        return doubled(inputs, size)

    async def use(batcher):
        failed = await asyncio.gather(
            batcher.ask([np.float32(-1)]), batcher.ask([np.float32(-2)]), return_exceptions=True
        )
        return failed, await batcher.ask([np.float32(3)])

    (failed, after), _ = in_batches(faulty, Limits(), use)
    assert [str(error) for error in failed] == ["the model failed"] * 2
    assert after == [6]


def test_images_that_nobody_waits_for_any_more_are_not_asked_about():
    async def use(batcher):
        asked = asyncio.create_task(batcher.ask([np.float32(1)]))
        await asyncio.sleep(0)
        asked.cancel()
        return await batcher.ask([np.float32(2)])

    rows, sizes = in_batches(doubled, Limits(), use)
    assert (rows, sizes) == ([4], [1])


@pytest.mark.parametrize(("largest", "sizes"), [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (8, (1, 2, 4, 8))])
def test_batches_are_padded_to_powers_of_two_and_the_largest(largest, sizes):
    assert Limits(batch=largest).sizes == sizes


# The application, without a socket.


@pytest.fixture(scope="module")
def classifier(finished_run):
    return pcls.load(finished_run)


def answers(classifier, some_limits, use, token=b""):
    """What `use` does with a function that sends requests to a ready application, and with its service."""

    async def run():
        service = Service(classifier, some_limits)
        ready = asyncio.Event()
        running = asyncio.create_task(service.run(ready.set))
        await ready.wait()
        app = application(service, token)

        async def ask(path, body=b"", method="POST", headers=None):
            given = {"content-type": "image/png", "content-length": str(len(body))} | (headers or {})
            scope = {
                "type": "http",
                "method": method,
                "path": path.partition("?")[0],
                "raw_path": path.encode(),
                "query_string": path.partition("?")[2].encode(),
                "headers": [(name.encode(), value.encode()) for name, value in given.items()],
            }
            sent = []

            async def receive():
                return {"type": "http.request", "body": body, "more_body": False}

            async def send(message):
                sent.append(message)

            # Raised again after the answer, for the server's log.
            with contextlib.suppress(RuntimeError):
                await app(scope, receive, send)
            content = b"".join(message.get("body", b"") for message in sent[1:])
            return sent[0]["status"], dict(sent[0]["headers"]), content

        try:
            return await use(ask, service)
        finally:
            running.cancel()
            service.close()

    return asyncio.run(run())


def refused(answer):
    status, _, content = answer
    return status, json.loads(content)["error"]


def held(monkeypatch, classifier):
    """A function that lets the model go on, which until then answers nothing."""
    go, known = threading.Event(), classifier.probabilities

    def waiting(inputs, size):
        # Not while it is compiled.
        assert not inputs or go.wait(10)
        return known(inputs, size)

    monkeypatch.setattr(classifier, "probabilities", waiting)
    return go.set


def test_more_images_than_may_wait_are_refused_and_the_others_answered(classifier, monkeypatch):
    go = held(monkeypatch, classifier)

    async def use(ask, service):
        tasks = [asyncio.create_task(ask("/v1/predict", png())) for _ in range(3)]
        while service.room.images < 3:
            await asyncio.sleep(0.01)
        full = await ask("/v1/predict", png())
        go()
        return full, await asyncio.gather(*tasks), await ask("/v1/predict", png()), service.room

    full, others, after, room = answers(classifier, Limits(batch=1, queue=3), use)
    assert refused(full) == (429, limits.FULL.text)
    assert full[1][b"retry-after"] == b"1"
    assert [status for status, _, _ in (*others, after)] == [200] * 4
    assert (room.images, room.bytes) == (0, 0)


def test_an_answer_that_takes_too_long_is_given_up(classifier, monkeypatch):
    go = held(monkeypatch, classifier)

    async def use(ask, service):
        late = await ask("/v1/predict", png())
        go()
        return late, service.room.images

    late, images = answers(classifier, Limits(batch=1, seconds=0.3), use)
    assert refused(late) == (504, limits.SLOW_ANSWER.text)
    assert images == 0


def test_before_it_is_compiled_and_while_it_ends_the_server_says_so(classifier):
    async def use(ask, service):
        service.is_ready = False
        starting = (
            await ask("/readyz", method="GET"),
            await ask("/v1/predict", png()),
            await ask("/healthz", method="GET"),
        )
        service.is_ready = service.is_draining = True
        return starting, (await ask("/readyz", method="GET"), await ask("/v1/predict", png()))

    (ready, predict, alive), (draining, last) = answers(classifier, Limits(batch=1), use)
    assert (ready[0], json.loads(ready[2])) == (503, {"status": "compiling"})
    assert refused(predict) == (503, limits.STARTING.text)
    assert alive[0] == 200
    assert (draining[0], json.loads(draining[2])) == (503, {"status": "draining"})
    # What still comes is answered, and is the last of its connection.
    assert (last[0], last[1][b"connection"]) == (200, b"close")


def test_a_failure_of_the_model_is_told_without_its_words(classifier, monkeypatch):
    def failing(inputs, size):
        if inputs:
            raise RuntimeError("/home/somebody/secret.py")
        return np.zeros((0, 10))

    monkeypatch.setattr(classifier, "probabilities", failing)

    async def use(ask, service):
        return await ask("/v1/predict", png()), service.metrics.text().decode()

    answer, told = answers(classifier, Limits(batch=1), use)
    assert refused(answer) == (500, limits.BUG.text)
    assert 'pcls_requests_total{path="/v1/predict",status="500"} 1.0' in told


def test_without_a_token_everything_is_open_and_with_one_what_it_guards(classifier):
    async def use(ask, service):
        paths = ("/", "/page.js", "/page.css", "/healthz", "/readyz", "/openapi.json", "/metrics", "/v1/model")
        return {path: (await ask(path, method="GET"))[0] for path in paths}

    assert set(answers(classifier, Limits(batch=1), use).values()) == {200}
    closed = answers(classifier, Limits(batch=1), use, token=b"0123456789abcdef")
    assert {path for path, status in closed.items() if status == 401} == {"/metrics", "/v1/model"}

    async def ask_with(ask, service):
        # RFC 6750: the scheme in any case.
        return [
            (await ask("/v1/model", method="GET", headers={"authorization": text}))[0]
            for text in ("Bearer 0123456789abcdef", "bearer 0123456789abcdef", "0123456789abcdef", "Bearer ")
        ]

    assert answers(classifier, Limits(batch=1), ask_with, token=b"0123456789abcdef") == [200, 200, 401, 401]


def test_an_explanation_is_a_picture_of_the_model_s_size_for_the_class_that_is_asked_for(classifier):
    async def use(ask, service):
        best = await ask("/v1/explain", png())
        label = json.loads((await ask("/v1/predict?top=1", png()))[2])["predictions"][0]["label"]
        return best, await ask(f"/v1/explain?label={label}", png()), await ask("/v1/explain?label=cat", png())

    best, named, unknown = answers(classifier, Limits(batch=1), use)
    assert best[1][b"content-type"] == b"image/png"
    assert Image.open(io.BytesIO(best[2])).size == (10, 10)
    assert best[2] == named[2]
    assert refused(unknown) == (400, limits.BAD_LABEL.text)


def test_a_form_is_refused_with_the_number_of_the_file_at_fault(classifier):
    kind = "multipart/form-data; boundary=x"
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'

    async def use(ask, service):
        forms = [(png(), png(), png()[:40]), (png()[:40],)]
        bodies = [b"\r\n".join([*(part + file for file in files), b"--x--\r\n"]) for files in forms]
        return [await ask("/v1/predict", body, headers={"content-type": kind}) for body in bodies]

    several, one = answers(classifier, Limits(batch=4), use)
    assert json.loads(several[2]) == {"error": limits.DAMAGED.text, "file": 3}
    assert json.loads(one[2]) == {"error": limits.DAMAGED.text}


def test_every_answer_forbids_what_the_page_does_not_need(classifier):
    async def use(ask, service):
        return await ask("/", method="GET"), await ask("/nowhere", method="GET")

    for _, headers, _ in answers(classifier, Limits(batch=1), use):
        policy = headers[b"content-security-policy"].decode()
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "unsafe" not in policy
        assert headers[b"x-content-type-options"] == b"nosniff"


# The description.


def references(value):
    if isinstance(value, dict):
        for key, own in value.items():
            if key == "$ref":
                yield own
            else:
                yield from references(own)
    elif isinstance(value, list):
        for own in value:
            yield from references(own)


@pytest.mark.parametrize("has_token", [False, True])
def test_the_description_names_what_the_application_has_and_all_that_it_refers_to(classifier, has_token):
    document = description(Limits(), has_token)
    assert document["openapi"].startswith("3.1")
    names = [reference.removeprefix("#/components/schemas/") for reference in references(document)]
    assert set(names) == set(document["components"]["schemas"])
    operations = [(path, method, one) for path, own in document["paths"].items() for method, one in own.items()]
    assert len(operations) == 6
    for path, method, one in operations:
        assert one["responses"]["200"]["description"]
        assert all(status.isdigit() for status in one["responses"])
        guarded = has_token and (path.startswith("/v1/") or path == "/metrics")
        assert ("401" in one["responses"]) == guarded == ("security" in one), (path, method)

    async def use(ask, service):
        found = {(path, method): (await ask(path, method=method.upper()))[0] for path, method, _ in operations}
        return found, await ask("/v1/predict?top=2", png()), await ask("/openapi.json", method="GET")

    found, answer, served = answers(classifier, Limits(), use)
    assert not {status for status in found.values()} & {404, 405}
    assert json.loads(served[2]) == description(Limits(), False)
    fits(json.loads(answer[2]), {"$ref": "#/components/schemas/Predictions"}, document)


def fits(value, schema, document):
    """Asserts that a value is as a schema of the document says, and has nothing more."""
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    kinds = {"object": dict, "array": list, "string": str, "number": float}
    assert isinstance(value, kinds[schema["type"]]), (value, schema)
    if schema["type"] == "object":
        assert value.keys() == schema["properties"].keys() == set(schema["required"])
        for name, own in value.items():
            fits(own, schema["properties"][name], document)
    if schema["type"] == "array":
        for own in value:
            fits(own, schema["items"], document)


# Bodies and limits.


def test_a_form_keeps_each_byte_of_its_files():
    files = [b"\r\n--other\r\n", b"", bytes(range(256)), b"x--b\r\n"]
    head = b'\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    body = b"preamble" + b"".join(b"\r\n--b" + head + file for file in files) + b"\r\n--b--\r\nepilogue"
    assert files_of(body, 'multipart/form-data; boundary="b"', 4) == files
    with pytest.raises(Refused) as refusal:
        files_of(body, 'multipart/form-data; boundary="b"', 3)
    assert refusal.value.why == limits.MANY_FILES


def test_bodies_of_all_requests_share_one_room():
    room = Room(Limits(body=1_000))
    with room.for_body() as first:
        room.add(first, bytes(limits.HELD_BODIES * 1_000 - 10))
        with pytest.raises(Refused) as refusal, room.for_body() as second:
            room.add(second, bytes(10))
            room.add(second, bytes(1))
        assert refusal.value.why == limits.BUSY
        assert room.bytes == len(first)
    assert room.bytes == 0


@pytest.mark.parametrize(
    ("text", "count"),
    [("10MB", 10_000_000), ("1.5 kB", 1_500), ("2MiB", 2_097_152), ("5000", 5_000), (" 7B ", 7), ("1KiB", 1_024)],
)
def test_sizes_have_units(text, count):
    assert bytes_of(text) == count


@pytest.mark.parametrize("text", ["", "MB", "ten", "-1MB", "1GB", "1e6", "1,000", "٣MB", "1MB\n2MB", "nan"])
def test_what_is_no_size_is_told(text):
    with pytest.raises(UserError, match=r"--max-body is .*; a size such as 10MB"):
        bytes_of(text)


# Tokens.


def test_a_token_comes_from_a_file_or_from_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "token"
    file.write_text("  abcdefghijklmnop==\n")
    file.chmod(0o600)
    assert read_token(str(file), pytest.fail) == b"abcdefghijklmnop=="
    monkeypatch.delenv("PCLS_SERVE_TOKEN", raising=False)
    assert read_token("", pytest.fail) == b""
    monkeypatch.setenv("PCLS_SERVE_TOKEN", "ponmlkjihgfedcba")
    assert read_token("", pytest.fail) == b"ponmlkjihgfedcba"
    # The file that was named wins.
    assert read_token(str(file), pytest.fail) == b"abcdefghijklmnop=="


def test_a_token_that_everybody_can_read_is_warned_of(tmp_path):
    file = tmp_path / "token"
    file.write_text("abcdefghijklmnop")
    file.chmod(0o644)
    warnings = []
    assert read_token(str(file), warnings.append)
    assert warnings == [f"--token-file {file}: every user of this machine can read it; chmod 600 {file}"]


@pytest.mark.parametrize("content", [b"", b"\n", b"short", b"two words that are long", b"\xff" * 20, b"a" * 3000])
def test_what_is_no_token_is_refused_without_being_repeated(tmp_path, content):
    file = tmp_path / "token"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(UserError) as error:
        read_token(str(file), pytest.fail)
    assert str(error.value) == f"--token-file {file}: holds no token; {ALLOWED}"


ALLOWED = "16 to 1,024 letters, digits or any of . _ ~ + / - are needed"


# The command line.


@pytest.fixture
def said(capsys, monkeypatch):
    """A function from options of `pcls serve` to its exit code and its lines on standard error."""
    monkeypatch.delenv("PCLS_SERVE_TOKEN", raising=False)

    def run(*options):
        code = main(["serve", *map(str, options)])
        return code, capsys.readouterr().err.splitlines()

    return run


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--max-batch", 0], "--max-batch is 0; 1 to 1024 is allowed"),
        (["--max-wait", -1], "--max-wait is -1; 0 to 10,000 milliseconds is allowed"),
        (["--max-wait", "nan"], "--max-wait is nan; 0 to 10,000 milliseconds is allowed"),
        (["--queue", 8], "--queue is 8; --max-batch to 100,000 is allowed"),
        (["--max-body", "0MB"], "--max-body is 0; 1KB to 1000MB is allowed"),
        (["--timeout", 0], "--timeout is 0; 0.1 to 3,600 seconds is allowed"),
        (["--token-file", "/nowhere/token"], "--token-file /nowhere/token: is no file; write the token into one that "),
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid: is no address of this machine"),
    ],
)
def test_a_bad_option_is_one_line_before_anything_is_loaded(said, options, line):
    code, lines = said("/nowhere/run", *options)
    assert code == 2
    # Beside the warning of an address that others reach.
    assert len([one for one in lines if "whoever reaches this address" not in one]) == 1
    assert lines[-1].startswith(f"pcls: {line}")


def test_a_port_in_use_is_told(said):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, lines = said("/nowhere/run", "--port", port)
    expected = f"pcls: --host 127.0.0.1 --port {port}: {os.strerror(98)}; choose another port, or 0 for any"
    assert (code, lines) == (2, [expected])


def test_what_is_no_bundle_is_told(said, tmp_path):
    code, lines = said(tmp_path, "--port", 0)
    assert code == 2
    (line,) = lines
    assert str(tmp_path) in line


def test_missing_packages_are_named_with_what_installs_them(said, monkeypatch):
    known = importlib.util.find_spec

    def without(name, *more):
        return None if name in ("uvicorn", "starlette") else known(name, *more)

    monkeypatch.setattr("pcls.deliver.serve.find_spec", without)
    code, lines = said("/nowhere/run")
    assert (code, lines) == (2, ["pcls: pcls serve needs starlette, uvicorn: pip install 'pcls[serve]'"])


def test_an_open_address_without_a_token_is_warned_of(said):
    code, lines = said("/nowhere/run", "--host", "0.0.0.0", "--port", 0)
    assert code == 2
    assert lines[0] == "pcls: --host 0.0.0.0: whoever reaches this address may ask; --token-file FILE asks for a token"
