"""`llmkit mock`, and so the HTTP server under it, before clients that others wrote: curl, Node's
fetch, the openai package, wrk; and before one that means harm."""
import concurrent.futures
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import time

import pytest

TESTS = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.join(TESTS, "..")
QUESTION = {"model": "m", "messages": [{"role": "system", "content": "Be brief."},
                                       {"role": "user", "content": "Hi \u00e9 \"there\"\n"}]}
ANSWER = "echo: Hi \u00e9 \"there\"\n"


@pytest.fixture(scope="session")
def llmkit():
    program = os.environ.get("LK_LLMKIT", os.path.join(ROOT, "build", "llmkit"))
    if not os.path.exists(program):
        subprocess.run(["make", "-C", ROOT, "build/llmkit"], check=True, stdout=subprocess.DEVNULL)
    return program


@pytest.fixture(scope="session")
def certs():
    folder = os.environ.get("LK_CERTS", os.path.join(ROOT, "build", "certs"))
    subprocess.run([os.path.join(TESTS, "make_certs"), folder], check=True)
    return folder


class Mock:
    def __init__(self, process, url):
        self.process, self.url = process, url
        port = url.rsplit(":", 1)[1]
        self.port = int(port) if port.isdigit() else None

    def ask(self, body=QUESTION, path="/v1/chat/completions", method="POST", **headers):
        """Status, headers and text of the reply."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        text = body if isinstance(body, str) else json.dumps(body)
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, text if method == "POST" else None, fields)
        reply = connection.getresponse()
        try:
            return reply.status, reply.headers, reply.read().decode()
        finally:
            connection.close()

    def stop(self, number=signal.SIGINT):
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=20)
        return self.process.returncode, said


@pytest.fixture
def mock(llmkit):
    with contextlib.ExitStack() as stack:
        def start(*flags, listen="127.0.0.1:0"):
            process = stack.enter_context(subprocess.Popen(
                [llmkit, "mock", "--listen", listen, *flags], text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE))
            stack.callback(process.kill)
            line = process.stdout.readline().strip()
            assert line.startswith("listening on "), process.stderr.read()
            return Mock(process, line[len("listening on "):])
        yield start


def events(text):
    """The data of each event."""
    assert text.endswith("\n\n")
    return [event[len("data: "):] for event in text[:-2].split("\n\n")]


def error_of(text):
    error = json.loads(text)["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    return error


# ---- replies -------------------------------------------------------------------------------------


def test_whole_reply_has_openai_shape(mock):
    status, headers, text = mock().ask()
    reply = json.loads(text)
    assert status == 200
    assert headers["content-type"] == "application/json"
    assert headers["x-request-id"]
    assert reply["object"] == "chat.completion" and reply["model"] == "m"
    choice, = reply["choices"]
    assert choice["message"] == {"role": "assistant", "content": ANSWER, "refusal": None,
                                 "annotations": []}
    assert choice["finish_reason"] == "stop" and choice["logprobs"] is None
    usage = reply["usage"]
    assert usage["completion_tokens"] == 4
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_streamed_reply_has_openai_shape(mock):
    body = {**QUESTION, "stream": True, "stream_options": {"include_usage": True}}
    status, headers, text = mock().ask(body)
    *chunks, done = events(text)
    chunks = [json.loads(chunk) for chunk in chunks]
    assert status == 200 and done == "[DONE]"
    assert headers["content-type"].startswith("text/event-stream")
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    *parts, finish, usage = chunks
    deltas = [part["choices"][0]["delta"] for part in parts]
    assert deltas[0]["role"] == "assistant"
    assert "".join(delta["content"] for delta in deltas) == ANSWER
    assert len(deltas) == 5
    assert finish["choices"][0]["finish_reason"] == "stop"
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == 4
    assert all(part["usage"] is None for part in parts)


def test_stream_reports_no_usage_unless_asked(mock):
    _, _, text = mock().ask({**QUESTION, "stream": True})
    assert "usage" not in text and text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "look"}},
                                    "auto"])
def test_tool_is_called_where_the_request_wants_it(mock, choice):
    prompt = "use the tool \"now\""
    body = {"model": "m", "tool_choice": choice, "messages": [{"role": "user", "content": prompt}],
            "tools": [{"type": "function", "function": {"name": "look", "parameters": {}}}]}
    server = mock()
    message = json.loads(server.ask(body)[2])["choices"][0]["message"]
    call, = message["tool_calls"]
    assert message["content"] is None and call["function"]["name"] == "look"
    assert json.loads(call["function"]["arguments"]) == {"input": prompt}
    *chunks, _ = events(server.ask({**body, "stream": True})[2])
    deltas = [json.loads(chunk)["choices"][0] for chunk in chunks]
    pieces = [delta["delta"]["tool_calls"][0] for delta in deltas[:-1]]
    assert pieces[0]["function"]["name"] == "look" and pieces[0]["id"]
    arguments = "".join(piece["function"]["arguments"] for piece in pieces)
    assert json.loads(arguments) == {"input": prompt}
    assert deltas[-1]["finish_reason"] == "tool_calls"


def test_length_of_replies_can_be_set(mock):
    server = mock("--tokens", "20")
    usage = json.loads(server.ask()[2])["usage"]
    assert usage["completion_tokens"] == 20
    reply = json.loads(server.ask({**QUESTION, "max_completion_tokens": 2})[2])
    assert reply["choices"][0]["message"]["content"] == "echo: Hi"
    assert reply["choices"][0]["finish_reason"] == "length"


def test_parts_and_long_conversations_are_understood(mock):
    turns = [{"role": role, "content": "x" * 100} for role in ("user", "assistant")] * 200
    last = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}},
                                        {"type": "text", "text": "the {last} [one]"}]}
    _, _, text = mock().ask({"messages": [*turns, last, turns[1]], "model": "m"})
    assert json.loads(text)["choices"][0]["message"]["content"] == "echo: the {last} [one]"


@pytest.mark.parametrize("body, status, param", [
    ("{\"model\":", 400, None), ("[]", 400, None), ("\"{\\\"model\\\"\"", 400, None),
    ("", 400, None), ({"messages": []}, 400, None), ({"model": 3, "messages": []}, 400, None),
    ({"model": "m"}, 400, "messages"), ({"model": "m", "messages": []}, 400, "messages"),
    ({"model": "m", "messages": {"a": 1}}, 400, "messages")])
def test_bad_requests_get_openai_errors(mock, body, status, param):
    code, _, text = mock().ask(body)
    assert code == status
    assert error_of(text)["type"] == "invalid_request_error"
    assert error_of(text)["param"] == param


def test_paths_models_and_keys_are_checked(mock):
    server = mock("--api-key", "k", "--model", "a", "--model", "b")
    assert server.ask(path="/healthz", method="GET")[0] == 200
    status, _, text = server.ask()
    assert status == 401 and error_of(text)["code"] == "invalid_api_key"
    assert server.ask(authorization="Bearer kk")[0] == 401
    assert server.ask(path="/v2", authorization="Bearer k")[0] == 404
    assert server.ask(authorization="Bearer k")[0] == 404
    assert server.ask({**QUESTION, "model": "b"}, authorization="Bearer k")[0] == 200
    _, _, text = server.ask(path="/v1/models", method="GET", authorization="Bearer k")
    assert [model["id"] for model in json.loads(text)["data"]] == ["a", "b"]


# ---- faults --------------------------------------------------------------------------------------


def test_faults_follow_the_seed(mock):
    def statuses(seed):
        server = mock("--error-rate", "0.3", "--error-status", "503", "--seed", seed)
        return [server.ask()[0] for _ in range(60)]
    first = statuses("7")
    assert set(first) == {200, 503} and 5 < first.count(503) < 35
    assert statuses("7") == first and statuses("8") != first


def test_first_requests_can_fail(mock):
    server = mock("--fail-first", "2", "--error-status", "429")
    assert [server.ask()[0] for _ in range(3)] == [429, 429, 200]


def test_rate_limit_says_when_to_come_back(mock):
    server = mock("--rate-limit", "2", "--rate-burst", "3")
    replies = [server.ask() for _ in range(4)]
    assert [status for status, _, _ in replies] == [200, 200, 200, 429]
    assert replies[0][1]["x-ratelimit-limit-requests"] == "3"
    assert replies[0][1]["x-ratelimit-remaining-requests"] == "2"
    _, headers, text = replies[3]
    assert headers["retry-after"] == "1" and 0 < int(headers["retry-after-ms"]) <= 500
    assert re.fullmatch(r"\d+ms", headers["x-ratelimit-reset-requests"])
    assert error_of(text)["code"] == "rate_limit_exceeded"


def test_request_can_ask_for_a_fault(mock):
    server = mock()
    status, headers, text = server.ask(x_mock_status="503", x_mock_retry_after="7")
    assert status == 503 and headers["retry-after"] == "7" and error_of(text)
    with pytest.raises(http.client.IncompleteRead) as broken:
        server.ask(x_mock_cut="50")
    assert len(broken.value.partial) == 50
    with pytest.raises(http.client.RemoteDisconnected):
        server.ask(x_mock_cut="0")
    with pytest.raises(http.client.IncompleteRead) as broken:
        server.ask({**QUESTION, "stream": True}, x_mock_cut="2")
    assert broken.value.partial.count(b"data: ") == 2
    text = server.ask({**QUESTION, "stream": True}, x_mock_error_in_stream="1")[2]
    assert error_of(events(text)[-1])["type"] == "server_error" and len(events(text)) == 2
    before = time.monotonic()
    assert server.ask(x_mock_delay_ms="120")[0] == 200
    assert time.monotonic() - before > 0.12


def test_latency_and_pace_are_kept(mock):
    server = mock("--latency-ms", "50", "--token-ms", "20")
    before = time.monotonic()
    assert server.ask({**QUESTION, "stream": True})[0] == 200
    assert 0.12 < time.monotonic() - before < 1
    spread = mock("--latency-ms", "20", "--latency-jitter", "10", "--latency-dist", "lognormal")
    assert [spread.ask()[0] for _ in range(5)] == [200] * 5


# ---- the process ---------------------------------------------------------------------------------


def test_interrupt_finishes_what_is_being_answered(mock):
    server = mock()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        slow = pool.submit(server.ask, x_mock_delay_ms="400")
        time.sleep(0.15)
        status, said = server.stop()
        assert slow.result()[0] == 200
    assert status == 0
    assert "1 requests on 1 connections: 1 answered, 0 failed on purpose" in said


def test_quiet_says_nothing_and_stalled_replies_end_with_it(mock):
    server = mock("--quiet")
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        body = json.dumps({**QUESTION, "stream": True}).encode()
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nx-mock-stall: 1\r\n"
                       b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        assert b"200 OK" in client.recv(100)
        assert server.stop(signal.SIGTERM) == (0, "")


def test_port_that_is_taken_is_named(mock, llmkit):
    server = mock()
    run = subprocess.run([llmkit, "mock", "--listen", f"127.0.0.1:{server.port}"],
                         capture_output=True, text=True, timeout=20)
    assert run.returncode == 1 and f"127.0.0.1:{server.port}" in run.stderr


@pytest.mark.parametrize("flags, complaint", [
    (["--latencyms", "3"], "--latencyms is not a flag of this command"),
    (["--latency-ms", "x"], "--latency-ms must be a number, not 'x'"),
    (["--error_rate=1.5"], "--error_rate must be from 0 to 1, not '1.5'"),
    (["--tokens", "-1"], "--tokens must be a whole number, not '-1'"),
    (["--tokens", "4294967296"], "--tokens must be at most 4294967295, not '4294967296'"),
    (["--latency_dist", "normal"], "--latency_dist must be one of fixed|uniform|lognormal"),
    (["--seed"], "--seed needs a value"), (["--tls=maybe"], "--tls takes true, false or no value"),
    (["-x"], "-x is not a flag"), (["now"], "now is one argument too many"),
    (["--tls"], "--tls needs --cert and --key")])
def test_wrong_flags_are_named(llmkit, flags, complaint):
    run = subprocess.run([llmkit, "mock", *flags], capture_output=True, text=True, timeout=20)
    assert run.returncode == 1 and complaint in run.stderr and run.stdout == ""


def test_help_and_version_go_to_standard_output(llmkit):
    for words, said in ((["mock", "--help"], "usage: llmkit mock [flags]"),
                        (["--help"], "usage: llmkit COMMAND"), (["--version"], "llmkit 0.")):
        run = subprocess.run([llmkit, *words], capture_output=True, text=True, timeout=20)
        assert run.returncode == 0 and run.stdout.startswith(said) and run.stderr == ""
        assert all(len(line) <= 100 for line in run.stdout.splitlines())


# ---- other clients -------------------------------------------------------------------------------


def test_curl_over_tls_and_unix_sockets(mock, certs, tmp_path):
    body = json.dumps({**QUESTION, "stream": True})
    server = mock("--tls", "--cert", f"{certs}/ec.pem", "--key", f"{certs}/ec.key")
    text = subprocess.run(["curl", "-sSN", "--cacert", f"{certs}/bundle.pem", "-d", body,
                           f"https://localhost:{server.port}/v1/chat/completions"],
                          capture_output=True, text=True, check=True, timeout=20).stdout
    assert events(text)[-1] == "[DONE]"
    path = str(tmp_path / "mock.sock")
    mock(listen=f"unix:{path}")
    text = subprocess.run(["curl", "-sS", "--unix-socket", path, "-d", json.dumps(QUESTION),
                           "-H", "Expect: 100-continue", "http://h/v1/chat/completions"],
                          capture_output=True, text=True, check=True, timeout=20).stdout
    assert json.loads(text)["choices"][0]["message"]["content"] == ANSWER


def test_tls_of_python_is_served_over_one_connection(mock, certs):
    server = mock("--tls", "--cert", f"{certs}/rsa.pem", "--key", f"{certs}/rsa.key")
    trust = ssl.create_default_context(cafile=f"{certs}/bundle.pem")
    connection = http.client.HTTPSConnection("localhost", server.port, context=trust, timeout=20)
    for _ in range(20):
        connection.request("POST", "/v1/chat/completions", json.dumps(QUESTION))
        assert json.loads(connection.getresponse().read())["choices"]
    connection.close()
    assert "20 requests on 1 connections" in server.stop()[1]


CLIENTS = """
import OpenAI from 'openai';
import assert from 'node:assert/strict';
const [url, question, answer] = [process.argv[1], JSON.parse(process.argv[2]), process.argv[3]];
const client = new OpenAI({ baseURL: url + '/v1', apiKey: 'k' });

const whole = await client.chat.completions.create(question);
assert.equal(whole.choices[0].message.content, answer);
assert.ok(whole._request_id);

let text = '', usage;
const ask = { ...question, stream: true, stream_options: { include_usage: true } };
for await (const chunk of await client.chat.completions.create(ask)) {
    text += chunk.choices[0]?.delta.content ?? '';
    usage = chunk.usage ?? usage;
}
assert.equal(text, answer);
assert.equal(usage.completion_tokens, 4);

const fails = (headers, options) => client.chat.completions.create(ask, { headers, ...options });
await assert.rejects(fails({ 'x-mock-status': '429' }, { maxRetries: 0 }), OpenAI.RateLimitError);
await assert.rejects(async () => {
    for await (const _ of await fails({ 'x-mock-error-in-stream': '2' })) continue;
}, OpenAI.APIError);
assert.deepEqual((await client.models.list()).data.map(m => m.id), ['mock']);

const post = { method: 'POST', body: JSON.stringify(question) };
const replies = await Promise.all(Array.from({ length: 50 }, async (_, i) => {
    const body = JSON.stringify({ model: 'm', messages: [{ role: 'user', content: 'n' + i }] });
    return (await fetch(url + '/v1/chat/completions', { ...post, body })).json();
}));
replies.forEach((r, i) => assert.equal(r.choices[0].message.content, 'echo: n' + i));
"""


def test_node_fetch_and_the_openai_package_are_satisfied(mock, npm):
    server = mock()
    run = subprocess.run(["node", "--input-type=module", "-e", CLIENTS, server.url,
                          json.dumps(QUESTION), ANSWER], cwd=npm,
                         capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr


def test_burst_loses_nothing(mock, tmp_path):
    server = mock()
    script = tmp_path / "post.lua"
    script.write_text("wrk.method = 'POST'\nwrk.body = [[%s]]\n" % json.dumps(QUESTION))
    run = subprocess.run(["wrk", "-t1", "-c200", "-d1s", "-s", str(script),
                          f"{server.url}/v1/chat/completions"],
                         capture_output=True, text=True, check=True, timeout=30)
    assert "Non-2xx" not in run.stdout and "Socket errors" not in run.stdout, run.stdout
    said = server.stop()[1]
    requests, answered = map(int, re.search(r"(\d+) requests .* (\d+) answered", said).groups())
    assert requests == answered > 1000


def test_slow_senders_do_not_hold_up_others(mock):
    server = mock()
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
                for _ in range(400)]
        for step in b"POST /v1/ch":
            for client in slow:
                client.sendall(bytes([step]))
        before = time.monotonic()
        assert [server.ask()[0] for _ in range(20)] == [200] * 20
        assert time.monotonic() - before < 2
