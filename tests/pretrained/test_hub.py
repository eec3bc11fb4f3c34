"""Weights by name, from a hub of this machine: a real server that answers as the Hugging Face hub does."""

import hashlib
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from pcls.data.preprocessing import Preprocessing, TrainingSize
from pcls.errors import UserError
from pcls.models.registry import define_model
from pcls.pretrained.bundle import Bundle, load_bundle
from pcls.pretrained.exporting import export_timm
from pcls.pretrained.importing import import_bundle

constants = pytest.importorskip("huggingface_hub.constants", reason="huggingface_hub is not installed")

NAME, REPOSITORY = "resnet18.a1_in1k", "timm/resnet18.a1_in1k"
COMMIT, OLDER = "a" * 40, "b" * 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the repository holds: resnet18 for three classes."""
    definition = define_model("resnet18", height=40, width=40, channels=3, classes=3)
    rng = np.random.default_rng(0)
    params, stats = (
        {path: rng.uniform(0.01, 0.1, leaf.shape).astype(np.float32) for path, leaf in part.items()}
        for part in (definition.params, definition.stats)
    )
    seen = Preprocessing(40, 40, 3, (0.5,) * 3, (0.25,) * 3, train=TrainingSize(32, 32, 0.9))
    bundle = Bundle("resnet18", ("a", "b", "c"), seen, "float32", params, stats, {}, origin={"name": NAME})
    path = tmp_path_factory.mktemp("hub") / "resnet18"
    export_timm(bundle, path)
    return path


class Hub(BaseHTTPRequestHandler):
    """GET and HEAD of /OWNER/NAME/resolve/REVISION/FILE, with the headers and error codes of the hub."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        # The library also asks for a list of programs that use it.
        if "/resolve/" in self.path:
            self.server.asked.append(self.path)
        repository, _, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        commit = {"main": COMMIT, COMMIT: COMMIT, OLDER: OLDER, "v1": OLDER}.get(revision)
        if repository != REPOSITORY:
            return self.fault(
                "GatedRepo" if "gated" in repository else "RepoNotFound", 403 if "gated" in repository else 404
            )
        if commit is None:
            return self.fault("RevisionNotFound", 404)
        file = self.server.folder / name
        if not file.is_file() or name in self.server.missing:
            return self.fault("EntryNotFound", 404)
        data = file.read_bytes()
        self.send_response(200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[: self.server.sent] if self.server.sent else data)
            if self.server.sent:
                self.close_connection = True

    def fault(self, code, status):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments):
        pass


@contextmanager
def serving(folder):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.folder, server.asked, server.missing, server.sent = folder, [], (), 0
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    """The server, and this process's hub library turned to it, with empty caches."""
    with serving(folder) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        turn(monkeypatch, address, tmp_path / "hub")
        yield server


def turn(monkeypatch, address, cache):
    """What the variables HF_ENDPOINT and HF_HOME do to the library when it is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setenv("PCLS_CACHE", str(cache.with_name("pcls")))


def refusal(source=NAME, **options):
    with pytest.raises(UserError) as caught:
        import_bundle(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_weights_come_by_name_and_say_of_which_commit_they_are(hub, folder):
    found = import_bundle(NAME)
    local = import_bundle(str(folder))
    assert found.origin == {
        "name": NAME,
        "source": f"https://huggingface.co/{REPOSITORY}",
        "revision": COMMIT,
        "licence": "apache-2.0",
    }
    assert (found.class_names, found.preprocessing) == (local.class_names, local.preprocessing)
    for path, array in local.params.items():
        np.testing.assert_array_equal(found.params[path], array)
    # The weights are asked for by the commit that the configuration is of.
    assert {path.rpartition("/resolve/")[2] for path in hub.asked} == {
        "main/config.json",
        f"{COMMIT}/model.safetensors",
    }


def test_a_revision_is_resolved_to_its_commit(hub):
    assert import_bundle(NAME, revision="v1").origin["revision"] == OLDER
    assert import_bundle(NAME, revision=COMMIT).origin["revision"] == COMMIT
    assert refusal(revision="v2") == f"{REPOSITORY}: the hub has no revision 'v2' of it"


def test_any_repository_of_timms_form_can_be_named(hub):
    assert import_bundle(f"hf-hub:{REPOSITORY}").origin["name"] == NAME
    assert "is of resnet18 by config.json, not of resnet34" in refusal(f"hf-hub:{REPOSITORY}", model="resnet34")
    assert refusal("hf-hub:mine/nothing") == "mine/nothing: the hub has no such repository, or it is private"
    assert "its owner lets only some have it" in refusal("hf-hub:mine/gated")
    assert "is no name of a repository on the hub: write owner/name" in refusal("hf-hub:a/b/c")


def test_the_cache_serves_without_a_network(hub):
    import_bundle(NAME)
    asked = len(hub.asked)
    assert import_bundle(NAME, offline=True).origin["revision"] == COMMIT
    assert len(hub.asked) == asked


def test_an_empty_cache_without_a_network_says_what_to_do(hub, tmp_path):
    text = refusal(offline=True)
    assert text == (
        f"the cache {tmp_path / 'hub'} has no {REPOSITORY}; leave out --offline (or HF_HUB_OFFLINE), or copy the cache "
        "of a machine that has it (HF_HOME)"
    )
    assert hub.asked == []


@pytest.mark.faults
def test_a_hub_that_is_out_of_reach_says_what_to_do(folder, tmp_path, monkeypatch):
    with serving(folder) as server:
        address = f"http://127.0.0.1:{server.server_port}"
    turn(monkeypatch, address, tmp_path / "hub")
    text = refusal()
    assert text.startswith(f"{address} cannot be reached, and the cache {tmp_path / 'hub'} has no {REPOSITORY}; ")
    assert "--offline or HF_HUB_OFFLINE=1" in text


def test_a_repository_of_another_form_is_told(hub):
    hub.missing = ("model.safetensors",)
    assert refusal() == f"{REPOSITORY}: has no config.json with model.safetensors, which pcls reads"


@pytest.mark.faults
def test_a_connection_that_breaks_off_leaves_no_weights(hub, tmp_path):
    hub.sent = 100
    assert f"{REPOSITORY}: could not be fetched (" in refusal()
    hub.sent = 0
    assert import_bundle(NAME).model == "resnet18"


def test_a_repository_that_holds_another_model_is_refused(hub):
    assert refusal("resnet18.a2_in1k") == "timm/resnet18.a2_in1k: the hub has no such repository, or it is private"


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert refusal() == "weights by name need the hub's library: pip install 'pcls[hub]'"


def test_the_verb_imports_from_wherever_the_variables_of_the_hub_point(folder, tmp_path):
    with serving(folder) as server:
        done = subprocess.run(
            [sys.executable, "-m", "pcls", "models", "import", NAME],
            cwd=tmp_path,
            env=os.environ
            | {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "home")}
            | {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "0"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert f"revision        {COMMIT}" in done.stdout.splitlines()
    assert load_bundle(tmp_path / NAME).origin["revision"] == COMMIT


def test_a_name_is_opened_from_the_cache_of_bundles_after_the_first_time(hub, tmp_path, capsys):
    from pcls.run.bundles import open_bundle

    assert open_bundle(NAME).origin["revision"] == COMMIT
    assert f"importing {NAME} into {tmp_path / 'pcls' / 'weights'}" in capsys.readouterr().err
    asked = len(hub.asked)
    assert open_bundle(Path(NAME)).class_names == ("a", "b", "c")
    assert (len(hub.asked), capsys.readouterr().err) == (asked, "")
