"""Fixtures for the tests of whole programs."""
import os
import shutil
import subprocess

import pytest

import lk


@pytest.fixture(scope="session")
def certs():
    return lk.certs()


@pytest.fixture(scope="module")
def mock():
    """A plain mock without faults, for all tests of a file."""
    with lk.Mock() as server:
        yield server


@pytest.fixture(scope="module")
def tls_mock(certs):  # pylint: disable=unused-argument
    with lk.Mock(tls=True) as server:
        yield server


@pytest.fixture(scope="session")
def npm():
    """A folder with the packages that tests/package-lock.json pins, installed once for all."""
    folder = os.path.join(lk.ROOT, "build", "npm")
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(lk.TESTS, "package-lock.json"), "rb") as file:
        lock = file.read()
    stamp = os.path.join(folder, "installed")
    if not os.path.exists(stamp) or open(stamp, "rb").read() != lock:
        for name in ("package.json", "package-lock.json", ".npmrc"):
            shutil.copy(os.path.join(lk.TESTS, name), folder)
        subprocess.run(["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--silent",
                        "--prefer-offline"], cwd=folder, check=True)
        with open(stamp, "wb") as file:
            file.write(lock)
    return folder
