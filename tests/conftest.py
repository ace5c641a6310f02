"""Fixtures for the tests of whole programs."""
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
