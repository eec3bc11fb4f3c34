import platform
from importlib.metadata import version

from pcls.observe.environment import PACKAGES, environment


def test_the_environment_names_versions_devices_and_command(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/usr/bin/pcls", "train", "digits_cnn"])
    found = environment()
    assert found["python"] == platform.python_version()
    assert set(found["packages"]) == set(PACKAGES)
    assert found["packages"]["jax"] == version("jax")
    assert (found["backend"], found["devices"], found["processes"]) == ("cpu", "8 x cpu", 1)
    assert found["command"] == ["pcls", "train", "digits_cnn"]


def test_a_package_that_is_missing_is_said_to_be(monkeypatch):
    monkeypatch.setattr("pcls.observe.environment.PACKAGES", ("jax", "no-such-package"))
    assert environment()["packages"]["no-such-package"] == "not installed"


def test_an_installed_package_has_no_commit(monkeypatch, tmp_path):
    monkeypatch.setattr("pcls.observe.environment.__file__", str(tmp_path / "a" / "b" / "environment.py"))
    assert environment()["commit"] == ""
