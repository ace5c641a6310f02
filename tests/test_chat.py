"""llmkit chat: what is on standard output, what on standard error, and the exit status."""
import os
import pty
import signal
import socket
import subprocess

import pytest

import lk
from lk import chunk, http, stream

DONE = "data: [DONE]\n\n"


def chat(*words, **more):
    return lk.run([lk.LLMKIT, "chat", *words], **more)


def check_failed(done, *words, stdout=b""):
    """One sentence on stderr with these words in it, the status 1, and nothing else on stdout."""
    assert done.returncode == 1, done.stderr
    assert done.stdout == stdout
    assert done.stderr.startswith("llmkit: chat: ") and done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr


# ---- Replies that come whole ---------------------------------------------------------------------

def test_the_reply_and_only_the_reply_is_on_stdout(mock):
    done = chat("--base-url", mock.url, "Why C?")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"echo: Why C?", "")


def test_the_prompt_may_come_from_stdin(mock):
    for words in ([], ["-"]):
        done = chat("--base_url", mock.url, *words, stdin="Zwölf\nLines".encode())
        assert (done.returncode, done.stdout) == (0, "echo: Zwölf\nLines".encode())


def test_a_prompt_of_a_megabyte_comes_back_unchanged(mock):
    prompt = (b"\\\"\xc3\xa4\t" * 2000 + b" ") * 100
    done = chat("--base-url", mock.url, "-", stdin=prompt)
    assert (done.returncode, done.stdout) == (0, b"echo: " + prompt)


def test_model_system_and_key_are_sent():
    with lk.Script(stream(chunk("hi"), chunk(None, "stop"), DONE)) as server:
        done = chat("-m", "gpt-9", "--base-url", server.url, "--system", "Be brief.", "Why?",
                    OPENAI_API_KEY="sk-test")
    assert (done.returncode, done.stdout) == (0, b"hi")
    head, body = server.requests[0]
    assert head.startswith("POST /v1/chat/completions HTTP/1.1\r\n")
    assert "authorization: bearer sk-test\r\n" in head.lower() + "\r\n"
    request = lk.json.loads(body)
    assert request["model"] == "gpt-9" and request["stream"] is True
    assert request["messages"] == [{"role": "system", "content": "Be brief."},
                                   {"role": "user", "content": "Why?"}]


def test_the_base_url_may_come_from_the_environment(mock):
    done = chat("Why?", OPENAI_BASE_URL=mock.url, OPENAI_API_KEY="k")
    assert (done.returncode, done.stdout) == (0, b"echo: Why?")


def test_the_flag_goes_before_the_environment(mock):
    done = chat("Why?", "--base-url", mock.url, OPENAI_BASE_URL="http://127.0.0.1:1/v1")
    assert done.returncode == 0


def test_tls_with_a_given_ca(tls_mock, certs):
    done = chat("--base-url", tls_mock.url, "--ca", f"{certs}/bundle.pem", "Why?")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"echo: Why?", "")


def test_a_stream_from_openssl_s_server(certs):
    reply = stream(chunk("a"), chunk("b"), chunk(None, "stop"), DONE)
    with lk.openssl_server("rsa", reply) as port:
        done = chat("--base-url", f"https://localhost:{port}/v1", "--ca", f"{certs}/ca_rsa.pem",
                    "Q")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"ab", "")


def test_a_stream_through_nginx(mock, certs, tmp_path):
    with lk.nginx(str(tmp_path), "ec", mock.port) as port:
        done = chat("--base-url", f"https://127.0.0.1:{port}/v1", "--ca", f"{certs}/ca_ec.pem", "Q")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"echo: Q", "")


def test_a_terminal_gets_a_newline_at_the_end(mock):
    ours, theirs = pty.openpty()
    with subprocess.Popen([lk.LLMKIT, "chat", "--base-url", mock.url, "Q"], stdout=theirs,
                          stderr=subprocess.PIPE, env=lk.environment()) as process:
        assert process.wait(lk.SECONDS) == 0
    os.close(theirs)
    seen = os.read(ours, 1000)
    os.close(ours)
    assert seen == b"echo: Q\r\n"


def test_a_refusal_is_a_reply():
    event = chunk("x").replace('"content": "x"', '"refusal": "I will not."')
    with lk.Script(stream(event, chunk(None, "stop"), DONE)) as server:
        done = chat("--base-url", server.url, "Q")
    assert (done.returncode, done.stdout) == (0, b"I will not.")


def test_an_attempt_that_fails_before_the_first_byte_is_repeated():
    good = stream(chunk("yes"), chunk(None, "stop"), DONE)
    busy = http('{"error": {"message": "later"}}', "503 Busy", "application/json",
                "retry-after-ms: 1", "Connection: close")
    with lk.Script(busy, good) as server:
        done = chat("--base-url", server.url, "Q")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"yes", "")
    assert len(server.requests) == 2


def test_a_stream_without_done_is_whole_if_it_said_why_it_ended():
    with lk.Script(stream(chunk("whole"), chunk(None, "stop"))) as server:
        done = chat("--base-url", server.url, "Q")
    assert (done.returncode, done.stdout) == (0, b"whole")


# ---- Replies that do not -------------------------------------------------------------------------

def test_a_wrong_key():
    with lk.Mock("--api_key", "right") as server:
        done = chat("--base-url", server.url, "Q", OPENAI_API_KEY="sk-wrong")
    check_failed(done, "Incorrect API key provided")
    assert "sk-wrong" not in done.stderr


def test_a_refused_connection():
    with lk.refused_url() as url:
        check_failed(chat("--base-url", url, "Q"), "Connection refused", "127.0.0.1")


def test_an_unknown_host():
    check_failed(chat("--base-url", "http://no-such-host.invalid/v1", "Q"), "no-such-host.invalid")


@pytest.mark.parametrize("url", ["", "nonsense", "ftp://host/v1", "http://", "http://host:99999/v1",
                                 "http://a b/v1", "http:///v1"])
def test_a_bad_base_url(url):
    check_failed(chat("--base-url", url, "Q"))


def test_no_key_for_openai():
    check_failed(chat("Q"), "OPENAI_API_KEY")


def test_an_unknown_model():
    with lk.Mock("--model", "only-this") as server:
        check_failed(chat("--base-url", server.url, "-m", "that", "Q"), "model does not exist",
                     "request id req_mock_")


def test_a_stream_cut_in_the_middle():
    with lk.Script(stream(chunk("half "), length=5000)) as server:
        check_failed(chat("--base-url", server.url, "Q"), stdout=b"half ")


def test_a_stream_that_ends_too_early():
    with lk.Script(stream(chunk("half "))) as server:
        check_failed(chat("--base-url", server.url, "Q"), stdout=b"half ")


def test_a_mock_that_cuts_its_stream():
    with lk.Mock("--cut_rate", "1") as server:
        done = chat("--base-url", server.url, "one two three four")
    check_failed(done, stdout=done.stdout)
    assert b"echo: one two three four".startswith(done.stdout) and len(done.stdout) < 24


def test_an_error_inside_a_stream():
    error = 'data: {"error": {"message": "The model fell over.", "type": "server_error"}}\n\n'
    with lk.Script(stream(chunk("half "), error, DONE)) as server:
        check_failed(chat("--base-url", server.url, "Q"), "The model fell over.", stdout=b"half ")


@pytest.mark.parametrize("reply", [
    b"this is no HTTP\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/event-stream\r\n\r\n"
    b"xyz\r\n",
    stream("data: {broken\n\n", DONE),
    stream('data: "a string"\n\n', DONE),
    stream(DONE),
    http("<html>hello</html>", kind="text/html"),
    http("", "204 No Content"),
    http("<html>moved</html>", "301 Moved", "text/html", "Location: https://elsewhere/v1"),
])
def test_a_malformed_reply(reply):
    with lk.Script(reply) as server:
        check_failed(chat("--base-url", server.url, "Q"))


def test_a_reply_cut_off_at_the_models_limit():
    with lk.Script(stream(chunk("so long"), chunk(None, "length"), DONE)) as server:
        check_failed(chat("--base-url", server.url, "Q"), "limit of tokens", stdout=b"so long")


def test_a_reply_that_a_filter_withheld():
    with lk.Script(stream(chunk("so"), chunk(None, "content_filter"), DONE)) as server:
        check_failed(chat("--base-url", server.url, "Q"), "withheld", stdout=b"so")


@pytest.mark.parametrize("certificate, ca", [
    ("expired", "ca_ec"), ("future", "ca_ec"), ("other", "ca_ec"), ("self", "ca_ec"),
    ("ec", "ca_rsa"), ("ipdns", "ca_ec"),
])
def test_a_certificate_that_must_be_refused(certificate, ca, certs):
    with lk.openssl_server(certificate, b"") as port:
        done = chat("--base-url", f"https://127.0.0.1:{port}/v1", "--ca", f"{certs}/{ca}.pem", "Q",
                    OPENAI_API_KEY="sk-secret")
    check_failed(done)
    assert "sk-secret" not in done.stderr


def test_the_systems_trust_refuses_a_test_certificate(tls_mock):
    check_failed(chat("--base-url", tls_mock.url, "Q"))


def test_a_ca_file_that_is_not_there(tls_mock):
    check_failed(chat("--base-url", tls_mock.url, "--ca", "/no/such/file", "Q"), "/no/such/file")


def test_plain_http_where_tls_is_spoken(tls_mock, mock):
    check_failed(chat("--base-url", tls_mock.url.replace("https", "http"), "Q"))
    check_failed(chat("--base-url", mock.url.replace("http", "https"), "Q"))


# ---- Prompts, flags and pipes --------------------------------------------------------------------

def test_an_empty_prompt(mock):
    for words, text in ((["  "], b""), (["-"], b""), ([], b"\n \t\n")):
        check_failed(chat("--base-url", mock.url, *words, stdin=text), "the prompt is empty")


def test_a_prompt_with_a_nul(mock):
    check_failed(chat("--base-url", mock.url, "-", stdin=b"a\0b"), "NUL")


@pytest.mark.parametrize("words", [["--no-such-flag"], ["-x"], ["one", "two"], ["--system"]])
def test_bad_flags(words):
    done = chat(*words)
    assert done.returncode == 1 and done.stdout == b"" and "llmkit chat" in done.stderr


def test_help_is_on_stdout():
    done = chat("--help")
    assert done.returncode == 0 and done.stderr == ""
    for flag in (b"--base_url", b"--system", b"-m, --model", b"--ca"):
        assert flag in done.stdout


def test_a_closed_stdout_ends_it_quietly(mock):
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs, subprocess.Popen([lk.LLMKIT, "chat", "--base-url", mock.url, "Q"], stdout=theirs,
                                  stderr=subprocess.PIPE, env=lk.environment()) as process:
        _, errors = process.communicate(timeout=lk.SECONDS)
    assert (process.returncode, errors) == (1, b"")


def test_a_full_disk_is_said(mock):
    with open("/dev/full", "wb") as full:
        done = subprocess.run([lk.LLMKIT, "chat", "--base-url", mock.url, "Q"], stdout=full,
                              stderr=subprocess.PIPE, env=lk.environment(), timeout=lk.SECONDS,
                              check=False)
    assert done.returncode == 1 and b"No space left" in done.stderr


def test_an_interrupt_ends_a_stream():
    with lk.Mock("--stall_rate", "1") as server:
        with subprocess.Popen([lk.LLMKIT, "chat", "--base-url", server.url, "one two three"],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              env=lk.environment()) as process:
            assert process.stdout.read(5) == b"echo:"
            process.send_signal(signal.SIGINT)
            assert process.wait(lk.SECONDS) == -signal.SIGINT


# ---- Keys ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("padding", ["", "x" * 235])
def test_a_key_that_the_server_echoes_is_struck_out(padding):
    key = "sk-a-key-that-must-not-be-seen-0123456789"
    body = '{"error":{"message":"%s no such key: %s","type":"%s"}}' % (padding, key, key)
    with lk.Script(http(body, "401 Unauthorized")) as server:
        done = chat("--base-url", server.url, "x", OPENAI_API_KEY=key)
    assert server.requests[0][0].count("Authorization: Bearer " + key) == 1
    check_failed(done, "no such key: *****" if not padding else "xxx")
    assert "sk-a-key" not in done.stderr
