"""One real server, and what people and programs send to servers."""

import io
import json
import re
import resource
import shlex
import shutil
import struct
import subprocess
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pcls
from pcls.cli import main
from pcls.deliver.serving import limits

TOKEN = "a-token-of-tests-0123456789"
TIMEOUT = 4
MAX_BODY = 200_000
AUTH = f"Authorization: Bearer {TOKEN}\r\n"


@pytest.fixture(scope="module")
def server(start_server, finished_run, tmp_path_factory):
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text(TOKEN + "\n")
    token.chmod(0o600)
    options = ("--token-file", token, "--timeout", TIMEOUT, "--max-body", f"{MAX_BODY}B", "--max-batch", 4)
    return start_server(finished_run, *options)


@pytest.fixture(scope="module")
def digits():
    """Eight pictures as PNG files."""
    from sklearn.datasets import load_digits

    return [encoded(Image.fromarray((pixels * 15.9).astype(np.uint8))) for pixels in load_digits().images[:8]]


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def request(path="/v1/predict", body=b"", kind="image/png", method="POST", headers=AUTH, length=None):
    """The bytes of a request."""
    head = f"{method} {path} HTTP/1.1\r\nHost: test\r\n{headers}"
    if kind:
        head += f"Content-Type: {kind}\r\n"
    if method == "POST":
        head += f"Content-Length: {len(body) if length is None else length}\r\n"
    return head.encode("latin-1") + b"\r\n" + body


def form(*files, boundary="b0undary", name='name="file"; filename="a.png"', end="--"):
    parts = [
        f"--{boundary}\r\nContent-Disposition: form-data; {name}\r\nContent-Type: image/png\r\n\r\n".encode() + file
        for file in files
    ]
    return b"\r\n".join([*parts, f"--{boundary}{end}\r\n".encode()])


FORM = "multipart/form-data; boundary=b0undary"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width, height, data, *more):
    """A grey PNG whose header says so, whatever its data hold."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = (chunk(b"IHDR", header), *more, chunk(b"IDAT", zlib.compress(data, 9)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8))
PNG, JPEG, WEBP = (encoded(PICTURE, kind) for kind in ("PNG", "JPEG", "WEBP"))
HTML = b"<!DOCTYPE html><html><script>alert(1)</script></html>"
BROKEN_CRC = PNG[:60] + bytes([PNG[60] ^ 255]) + PNG[61:]
TEXT_BOMB = png_of(8, 8, bytes(72), chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(70_000_000), 9)))
HUGE_HEADER = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
SIZE = JPEG.index(b"\xff\xc0\x00\x11\x08") + 5
HUGE_JPEG = JPEG[:SIZE] + b"\xff" * 4 + JPEG[SIZE + 4 :]


def posted(body, kind="image/png", **options):
    return request(body=body, kind=kind, **options)


def got(path, method="GET", headers=AUTH):
    return request(path, kind="", method=method, headers=headers)


BAD = {
    # Bodies.
    "no body": (posted(b""), limits.EMPTY),
    "no body and no type": (posted(b"", kind=""), limits.EMPTY),
    "HTML": (posted(HTML, "text/html"), limits.NO_TYPE),
    "HTML as PNG": (posted(HTML), limits.NO_PICTURE),
    "JSON": (posted(b"{}", "application/json"), limits.NO_TYPE),
    "no type": (posted(PNG, kind=""), limits.NO_TYPE),
    "a type that is none": (posted(PNG, "image/png/../../x"), limits.NO_TYPE),
    "a GIF": (posted(encoded(PICTURE, "GIF"), "image/png"), limits.NO_PICTURE),
    "a TIFF": (posted(encoded(PICTURE, "TIFF"), "application/octet-stream"), limits.NO_PICTURE),
    "SVG": (posted(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"), limits.NO_TYPE),
    "zeros": (posted(bytes(1000)), limits.NO_PICTURE),
    "a truncated PNG": (posted(PNG[:200]), limits.DAMAGED),
    "a truncated JPEG": (posted(JPEG[:-200], "image/jpeg"), limits.DAMAGED),
    "a truncated WebP": (posted(WEBP[:60], "image/webp"), limits.DAMAGED),
    "the first bytes of a PNG": (posted(PNG[:8]), limits.DAMAGED),
    "noise after the first bytes": (posted(PNG[:8] + HTML), limits.DAMAGED),
    "a PNG with a flipped bit": (posted(BROKEN_CRC), limits.DAMAGED),
    "a PNG without pixels": (posted(png_of(64, 64, b"")), limits.DAMAGED),
    "a PNG of no width": (posted(png_of(0, 64, b"")), limits.DAMAGED),
    "a bomb in a PNG's text": (posted(TEXT_BOMB), limits.DAMAGED),
    "a bomb of 3.6 billion pixels": (posted(png_of(60_000, 60_000, b"")), limits.LARGE_PICTURE),
    "a bomb that has its pixels": (posted(png_of(8_000, 8_000, bytes(8_001 * 8_000))), limits.LARGE_PICTURE),
    "a bomb in a second header": (posted(png_of(8, 8, bytes(72), chunk(b"IHDR", HUGE_HEADER))), limits.LARGE_PICTURE),
    "a JPEG of 65,535 x 65,535": (posted(HUGE_JPEG, "image/jpeg"), limits.LARGE_PICTURE),
    "a length of 100 MB": (posted(b"", length=100_000_000), limits.LARGE_BODY),
    "a body of 100 MB": (posted(bytes(100_000_000)), limits.LARGE_BODY),
    "a body of one byte too many": (posted(bytes(MAX_BODY + 1)), limits.LARGE_BODY),
    "a length of 100 MB that waits for leave": (
        posted(b"", length=100_000_000, headers=AUTH + "Expect: 100-continue\r\n"),
        limits.LARGE_BODY,
    ),
    "100 MB in chunks": (
        f"POST /v1/predict HTTP/1.1\r\nHost: test\r\n{AUTH}Content-Type: image/png\r\n"
        "Transfer-Encoding: chunked\r\n\r\n".encode()
        + (b"10000\r\n" + bytes(65536) + b"\r\n") * 1_500,
        limits.LARGE_BODY,
    ),
    # Forms.
    "a form without a boundary": (posted(form(PNG), "multipart/form-data"), limits.BAD_FORM),
    "a form with another boundary": (posted(form(PNG), "multipart/form-data; boundary=other"), limits.BAD_FORM),
    "a form without an end": (posted(form(PNG)[:-8], FORM), limits.BAD_FORM),
    "a form of nothing": (posted(form(), FORM), limits.BAD_FORM),
    "a form with a field": (posted(form(b"cat", name='name="label"'), FORM), limits.BAD_FORM),
    "a form of too many files": (posted(form(*[PNG] * 5), FORM), limits.MANY_FILES),
    "a form of very many files": (posted(form(*[b""] * 1_000), FORM), limits.MANY_FILES),
    "a form with HTML": (posted(form(PNG, HTML), FORM), limits.NO_PICTURE),
    "a form with an empty file": (posted(form(PNG, b""), FORM), limits.EMPTY),
    # Queries.
    "top=0": (request("/v1/predict?top=0", PNG), limits.BAD_TOP),
    "top=-1": (request("/v1/predict?top=-1", PNG), limits.BAD_TOP),
    "top=all": (request("/v1/predict?top=all", PNG), limits.BAD_TOP),
    "top=": (request("/v1/predict?top=", PNG), limits.BAD_TOP),
    "top in other digits": (request("/v1/predict?top=%EF%BC%95", PNG), limits.BAD_TOP),
    "top=1e99": (request("/v1/predict?top=" + "9" * 400, PNG), limits.BAD_TOP),
    "another parameter": (request("/v1/predict?tpo=3", PNG), limits.BAD_QUERY),
    # Methods and paths.
    "GET of predict": (got("/v1/predict"), limits.NO_METHOD),
    "DELETE": (got("/v1/predict", "DELETE"), limits.NO_METHOD),
    "OPTIONS, as a browser asks for another site": (got("/v1/predict", "OPTIONS"), limits.NO_METHOD),
    "TRACE": (got("/", "TRACE"), limits.NO_METHOD),
    "POST of the page": (request("/", PNG), limits.NO_METHOD),
    "an unknown path": (got("/admin"), limits.NO_PAGE),
    "a slash too many": (request("/v1/predict/", PNG), limits.NO_PAGE),
    "a path that goes up": (got("/../../../../etc/passwd"), limits.NO_PAGE),
    "a path that goes up, in disguise": (got("/page.css/%2e%2e/%2e%2e/limits.py"), limits.NO_PAGE),
    "a path with backslashes": (got("/..\\..\\windows\\win.ini"), limits.NO_PAGE),
    "two slashes": (got("//page.css"), limits.NO_PAGE),
    "a path with a zero byte": (got("/page.css%00.png"), limits.NO_PAGE),
    "a path of this package": (got("/pcls/deliver/serving/limits.py"), limits.NO_PAGE),
    "a hidden file": (got("/.env"), limits.NO_PAGE),
    "another server's path": (got("http://example.com/etc/passwd"), limits.NO_PAGE),
    # Tokens.
    "no token": (posted(PNG, headers=""), limits.NO_TOKEN),
    "another token": (posted(PNG, headers="Authorization: Bearer wrong\r\n"), limits.NO_TOKEN),
    "the first half of the token": (posted(PNG, headers=AUTH[:-10] + "\r\n"), limits.NO_TOKEN),
    "a password": (posted(PNG, headers="Authorization: Basic dXNlcjpwYXNz\r\n"), limits.NO_TOKEN),
    "no token for an unknown path": (got("/v1/secret", headers=""), limits.NO_TOKEN),
    "no token for the metrics": (got("/metrics", headers=""), limits.NO_TOKEN),
    "no token and 100 MB": (posted(bytes(100_000_000), headers=""), limits.NO_TOKEN),
    # What is no HTTP, or tries to be two requests in one.
    "words": (b"hello\r\n\r\n", limits.BAD_HTTP),
    "another protocol": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), limits.BAD_HTTP),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", limits.BAD_HTTP),
    "an unknown version": (b"GET / HTTP/9.9\r\n\r\n", limits.BAD_HTTP),
    "a negative length": (posted(b"", length=-5), limits.BAD_HTTP),
    "a length that is no number": (posted(b"", length="1e3"), limits.BAD_HTTP),
    "a length beyond all numbers": (posted(b"", length="9" * 40), limits.BAD_HTTP),
    "two lengths": (posted(PNG, headers=AUTH + "Content-Length: 3\r\n"), limits.BAD_HTTP),
    "a length and chunks": (posted(PNG, headers=AUTH + "Transfer-Encoding: chunked\r\n"), limits.BAD_HTTP),
    "a zero byte in a header": (got("/", headers="X: a\0b\r\n"), limits.BAD_HTTP),
    "a space before the colon": (got("/", headers="X : a\r\n"), limits.BAD_HTTP),
    # Floods.
    "a thousand headers": (got("/", headers="X: y\r\n" * 1_000), limits.LARGE_HEAD),
    "a header of 100 KB": (got("/", headers=f"X: {'y' * 100_000}\r\n"), limits.LARGE_HEAD),
    "a path of 100 KB": (got("/" + "y" * 100_000), limits.LARGE_HEAD),
    "a header without an end": (b"GET / HTTP/1.1\r\nX: " + b"y" * 10_000_000, limits.LARGE_HEAD),
    "a chunk's extension without an end": (
        f"POST /v1/predict HTTP/1.1\r\nHost: test\r\n{AUTH}Transfer-Encoding: chunked\r\n\r\n1;".encode()
        + b"y" * 10_000_000,
        limits.LARGE_HEAD,
    ),
}


@pytest.fixture
def alive(server, digits):
    """After the test the server answers as ever, and has told of no failure of its own."""
    yield
    status, _, answer = server.ask(posted(digits[0]))
    assert (status, answer["predictions"][0]["label"]) == (200, "0")
    assert "Traceback" not in server.said()


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_has_its_status_and_a_constant_text(name, server, alive):
    sent, why = BAD[name]
    status, headers, body = server.ask(sent)
    # The whole body is one of the constant texts: neither a path nor a trace nor what was sent is in it.
    assert (status, body) == (why.status, {"error": why.text} | ({"file": 2} if name in SECOND else {}))
    assert headers.keys() <= KNOWN_HEADERS


# The first file of these forms is good.
SECOND = ("a form with HTML", "a form with an empty file")
KNOWN_HEADERS = {
    *("date", "content-length", "content-type", "connection", "allow", "www-authenticate", "retry-after"),
    *("content-security-policy", "x-content-type-options", "referrer-policy", "cross-origin-resource-policy"),
    "cache-control",
}


def test_the_table_is_long_and_its_texts_say_nothing_of_the_machine():
    assert len(BAD) >= 30
    assert len(BAD) == len({sent for sent, _ in BAD.values()})
    for _, why in BAD.values():
        assert re.fullmatch(r"[a-zA-Z0-9 ;:,./-]+", why.text)


def test_slow_clients_are_let_go_and_nobody_waits_for_them(server, digits, alive):
    body = posted(PNG)
    cases = {
        "idle": (b"", b""),
        "a header a second": (b"GET / HTTP/1.1\r\n", b"X: y\r\n"),
        "half a request line": (b"POST /v1/pre", b""),
        "a byte of the body a second": (body[: body.index(b"\r\n\r\n") + 20], b"\0"),
    }
    found = {}

    def drip(name, first, then):
        with server.connect(timeout=1) as connection:
            connection.sendall(first)
            start = time.monotonic()
            data = b""
            while time.monotonic() < start + 4 * TIMEOUT and not server.whole(data):
                try:
                    received = connection.recv(65536)
                    if not received:
                        break
                    data += received
                except TimeoutError:
                    connection.sendall(then)
            found[name] = data, time.monotonic() - start

    threads = [threading.Thread(target=drip, args=(name, *parts)) for name, parts in cases.items()]
    for thread in threads:
        thread.start()
    # Beside them others are served.
    assert server.ask(posted(digits[3]))[0] == 200
    for thread in threads:
        thread.join()
    assert found.pop("idle")[0] == b""
    for name, (data, seconds) in found.items():
        status, _, answer = server.parsed(data)
        assert (status, answer) == (408, {"error": limits.SLOW_BODY.text}), name
        assert seconds < 3 * TIMEOUT, name


def test_a_client_that_leaves_in_the_middle_disturbs_nobody(server, alive):
    for length in (5, 60, 200, len(posted(PNG)) - 1, len(posted(PNG))):
        with server.connect() as connection:
            connection.sendall(posted(PNG)[:length])


def test_a_thousand_open_connections_leave_room_for_one_more(server, digits, alive):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2_000:
        pytest.skip(f"only {hard} open files are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2_000), hard))
    connections = []
    try:
        for _ in range(1_000):
            connections.append(server.connect())
        start = time.monotonic()
        assert server.ask(posted(digits[5]))[0] == 200
        assert time.monotonic() - start < TIMEOUT
    finally:
        for connection in connections:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_answers_are_those_of_the_classifier(server, digits, finished_run):
    classifier = pcls.load(finished_run)
    expected = classifier.predict(digits)
    for digit, prediction in zip(digits, expected, strict=True):
        status, headers, answer = server.ask(request("/v1/predict?top=10", digit))
        assert status == 200
        (found,) = answer["predictions"]
        assert (found["label"], found["labels"]) == (prediction.label, [prediction.label])
        by_class = {one["label"]: one["probability"] for one in found["classes"]}
        in_order = [by_class[name] for name in classifier.class_names]
        # Another batch size rounds otherwise.
        np.testing.assert_allclose(in_order, prediction.probabilities, rtol=1e-4, atol=1e-7)
        assert [one["probability"] for one in found["classes"]] == sorted(in_order, reverse=True)
        assert answer["milliseconds"]["total"] >= answer["milliseconds"]["model"] > 0
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert "access-control-allow-origin" not in headers


def test_the_files_of_a_form_are_answered_in_their_order(server, digits):
    alone = [server.ask(posted(digit))[2]["predictions"][0] for digit in digits[:4]]
    status, _, answer = server.ask(posted(form(*digits[:4]), FORM))
    assert status == 200
    assert [one["label"] for one in answer["predictions"]] == [one["label"] for one in alone]
    quoted = posted(form(*digits[:4]), 'multipart/form-data; charset=utf-8; boundary="b0undary"')
    assert server.ask(quoted)[2]["predictions"] == answer["predictions"]


def test_a_jpeg_a_webp_and_bytes_without_a_type_are_pictures_too(server):
    for body, kind in ((JPEG, "image/jpeg"), (WEBP, "image/webp"), (PNG, "application/octet-stream; x=y")):
        assert server.ask(posted(body, kind))[0] == 200


def test_a_connection_serves_many_requests_in_their_order(server, digits):
    with server.connect() as connection:
        for digit in digits:
            connection.sendall(posted(digit))
            assert server.parsed(server.read(connection))[0] == 200
        # And some that are sent at one time.
        connection.sendall(got("/healthz") + got("/nowhere") + got("/readyz"))
        data = b""
        while data.count(b"HTTP/1.1") < 3 or not data.endswith(b"}"):
            data += connection.recv(65536)
        assert re.findall(rb"HTTP/1.1 (\d+)", data) == [b"200", b"404", b"200"]


def test_the_metrics_count(server, digits):
    def counts():
        status, headers, text = server.ask(got("/metrics"))
        assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
        return dict(line.rsplit(" ", 1) for line in text.decode().splitlines() if not line.startswith("#"))

    before = counts()
    for digit in digits[:3]:
        server.ask(posted(digit))
    server.ask(posted(HTML))
    server.ask(got("/" + "x" * 100))
    after = counts()

    def more(name):
        return float(after[name]) - float(before.get(name, 0))

    assert more('pcls_requests_total{path="/v1/predict",status="200"}') == 3
    assert more('pcls_requests_total{path="/v1/predict",status="415"}') == 1
    # Whatever a client makes up is one path.
    assert more('pcls_requests_total{path="other",status="404"}') == 1
    assert more("pcls_images_total") == more("pcls_batch_images_sum") == 3
    assert more('pcls_request_seconds_count{path="/v1/predict"}') == 4
    assert (after["pcls_waiting_images"], after["pcls_ready"]) == ("0.0", "1.0")


def test_the_model_tells_its_facts(server):
    status, _, facts = server.ask(got("/v1/model"))
    assert status == 200
    assert facts["model"] == "cnn28"
    assert facts["classes"] == [str(digit) for digit in range(10)]
    assert "/" not in json.dumps(facts)


PAGE = Path(__file__).parents[2] / "docs" / "serve.md"


def commands(program):
    """The commands of the page that call a program, as argument lists."""
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    found = [shlex.split(line) for block in blocks for line in block.splitlines()]
    return [argv for argv in found if argv[0] == program]


def test_the_curl_commands_of_the_page_run_as_they_stand(server, digits, tmp_path):
    if shutil.which("curl") is None:
        pytest.skip("no curl on PATH")
    for name in ("photo.png", "other.png"):
        (tmp_path / name).write_bytes(digits[7])
    (tmp_path / "header").write_text(AUTH.strip())
    found = commands("curl")
    assert len(found) >= 5
    for curl, *argv in found:
        here = [word.replace("http://127.0.0.1:8000", f"http://127.0.0.1:{server.port}") for word in argv]
        # This server asks for a token, and the page's first one does not.
        call = [curl, "--silent", "--fail", "-H", "@header", *here]
        done = subprocess.run(call, cwd=tmp_path, capture_output=True, timeout=30, check=False)
        assert done.returncode == 0, (argv, done.stdout)
        if "-o" not in argv:
            assert json.loads(done.stdout).keys() & {"predictions", "classes"}
    with Image.open(tmp_path / "why.png") as picture:
        assert picture.format == "PNG"


def test_the_servers_of_the_page_start_as_they_stand(monkeypatch):
    started = []
    monkeypatch.setattr("pcls.deliver.serve.serve", lambda load, **options: started.append(options))
    for _, *argv in commands("pcls"):
        assert main(argv) == 0
    assert [options["token_file"] for options in started] == ["", "token"]


def test_the_limits_of_the_page_are_those_of_the_server():
    text = PAGE.read_text(encoding="utf-8")
    usual = limits.Limits()
    for words in (
        f"--max-body {usual.body // 10**6}MB",
        f"--max-batch {usual.batch}",
        f"--queue {usual.queue}",
        f"--timeout {usual.seconds:g}",
        f"{limits.MAX_PIXELS // 10**6} million",
        f"{limits.HELD_BODIES} times",
        f"{limits.MAX_HEADERS}, and {limits.MAX_HEAD_BYTES // 1024} KiB",
        f"{limits.MAX_CONNECTIONS:,}",
    ):
        assert words in text


# The last one: it ends the server.
def test_sigterm_answers_what_was_accepted_and_ends_with_0(server, digits):
    answers, refused, stop = [], [], threading.Event()

    def ask():
        while not stop.is_set():
            try:
                connection = server.connect()
            # Nothing listens any more, or the kernel's queue was closed while this one stood in it.
            except (ConnectionRefusedError, ConnectionResetError):
                return
            with connection:
                answer = b"-"
                while not stop.is_set() and b"connection: close" not in answer:
                    try:
                        connection.sendall(posted(digits[1]))
                        after, answer = answer, server.read(connection)
                    except (BrokenPipeError, ConnectionResetError):
                        after, answer = answer, b""
                    # The kernel takes connections on for the server: one that it had not accepted by then is closed.
                    if not answer and after == b"-":
                        refused.append(connection)
                        return
                    answers.append(server.parsed(answer)[0] if answer else None)

    def upload():
        """A request that arrives while the server ends."""
        sent = posted(digits[1])
        with server.connect() as connection:
            connection.sendall(sent[:-10])
            uploading.set()
            stopping.wait()
            time.sleep(1)
            connection.sendall(sent[-10:])
            answers.append(server.parsed(server.read(connection))[0])

    uploading, stopping = threading.Event(), threading.Event()
    threads = [threading.Thread(target=ask) for _ in range(8)] + [threading.Thread(target=upload)]
    for thread in threads:
        thread.start()
    uploading.wait()
    time.sleep(0.3)
    stopping.set()
    code = server.stop()
    stop.set()
    for thread in threads:
        thread.join()
    assert code == 0, server.said()
    assert len(answers) > 20
    assert set(answers) == {200}
    assert len(refused) <= 8
    said = server.said().splitlines()
    assert said[-2].endswith("answering what was accepted, then ending")
    assert re.fullmatch(r"pcls: ended; [\d,]+ requests were answered", said[-1])
    assert TOKEN not in server.said()
