"""The examples do what their first comment says, against a mock."""
import os
import re
import subprocess

import pytest

import lk


def example(name, mock, **more):
    return lk.run([os.path.join(lk.BUILD, name)], OPENAI_BASE_URL=mock.url, OPENAI_API_KEY="k",
                  **more)


def test_hello(mock):
    done = example("hello", mock)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"echo: Say hello.\n", "")


def test_hello_is_under_fifteen_lines():
    with open(os.path.join(lk.ROOT, "examples", "hello.c"), encoding="ascii") as file:
        assert len(file.readlines()) < 15


def test_hello_without_a_key_says_so():
    done = lk.run([os.path.join(lk.BUILD, "hello")])
    assert done.returncode == 1 and b"OPENAI_API_KEY" in done.stdout


def test_hello_over_tls(tls_mock, certs):
    done = example("hello", tls_mock, SSL_CERT_FILE=f"{certs}/bundle.pem")
    assert (done.returncode, done.stdout) == (0, b"echo: Say hello.\n")


def test_stream(mock):
    done = example("stream", mock)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(rb"echo: In one sentence: why that one\?\n\n\d+ tokens in, 7 out\n",
                        done.stdout)


def test_async_answers_all_at_once():
    with lk.Mock("--latency_ms", "50") as slow:
        done = example("async", slow)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().splitlines()
    assert lines.pop() == "100 of 100 answered"
    answers = {int(line.split()[0]): line.split("  ")[-1] for line in lines}
    assert answers == {i: f"echo: How much is {i} squared?" for i in range(100)}


def test_async_tells_what_fails():
    with lk.Mock("--error_rate", "1", "--error_status", "400") as bad:
        done = example("async", bad)
    assert done.returncode == 1 and b"0 of 100 answered" in done.stdout
    assert done.stderr.count("\n") == 100


@pytest.mark.parametrize("stdin", [b"Why C?\nWhy not?\n", b"Why C?\nWhy not?"])
def test_foreign_loop_answers_each_line(stdin, mock):
    done = example("foreign_loop", mock, stdin=stdin)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [b"echo: Why C?", b"echo: Why not?"]


def test_foreign_loop_answers_while_its_input_stays_open(mock):
    with subprocess.Popen([os.path.join(lk.BUILD, "foreign_loop")], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE,
                          env=lk.environment(OPENAI_BASE_URL=mock.url,
                                             OPENAI_API_KEY="k")) as process:
        for text in (b"one", b"two"):
            process.stdin.write(text + b"\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"echo: " + text + b"\n"
        process.stdin.close()
        assert process.wait(lk.SECONDS) == 0


def test_foreign_loop_with_nothing_to_ask(mock):
    done = example("foreign_loop", mock)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", "")
