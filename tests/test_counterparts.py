"""The client against servers that others wrote: aimock, mock-llm and mock-openai-api from npm,
nginx with Lua, and openssl s_server.  The client is llmkit chat and tests/counterpart.c."""
import contextlib
import json
import os
import socket
import subprocess

import pytest

import lk

FIXTURES = {"fixtures": [
    {"match": {"userMessage": "hello"}, "response": {"content": "Hello, caf\u00e9 \U0001f600."}},
    {"match": {"userMessage": "weather"},
     "response": {"toolCalls": [{"name": "get_weather", "arguments": '{"city":"Riga"}'},
                                {"name": "get_time", "arguments": "{}"}]}},
    {"match": {"userMessage": "refuse"},
     "response": {"error": {"message": "Rate limited", "type": "rate_limit_error"}, "status": 429}},
    {"match": {"userMessage": "boom"},
     "response": {"error": {"message": "boom", "type": "server_error"}, "status": 500}},
    {"match": {"userMessage": "cut"}, "chunkSize": 5, "truncateAfterChunks": 3,
     "response": {"content": "this will be cut in the middle of the stream"}},
    {"match": {"userMessage": "gone"}, "chunkSize": 5, "latency": 20, "disconnectAfterMs": 70,
     "response": {"content": "disconnected after some milliseconds, in a long long text"}},
]}


# ---- The programs ------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def ours():
    """tests/counterpart.c; called, it gives the lines that the program prints, by their first
    words."""
    folder = os.path.join(lk.BUILD, "counterparts")
    os.makedirs(folder, exist_ok=True)
    program = os.path.join(folder, "counterpart")
    subprocess.run([os.environ.get("CC", "cc"), "-std=c11", "-O1", "-Wall", "-Wextra",
                    "-I", os.path.join(lk.TESTS, "..", "amalgamate"), "-o", program,
                    os.path.join(lk.TESTS, "counterpart.c"), "-lbearssl", "-pthread"], check=True)

    def call(how, url, prompt, ca="", times=1, **env):
        done = lk.run([program, how, url, prompt, ca, times], **env)
        assert done.returncode == 0, done.stderr
        told = {}
        for line in done.stdout.decode().splitlines():
            word, _, rest = line.partition(" ")
            told.setdefault(word, []).append(rest)
        return told
    return call


def node_version():
    text = subprocess.check_output(["node", "-p", "process.versions.node"], text=True)
    return tuple(map(int, text.split(".")[:2]))


def script(npm, name):
    return os.path.join(npm, "node_modules", name)


def free_port():
    with socket.socket() as finder:
        finder.bind(("127.0.0.1", 0))
        return finder.getsockname()[1]


@contextlib.contextmanager
def serving(command, port, **env):
    """A server that listens on this port until the end of the block."""
    process = subprocess.Popen([str(word) for word in command], env=lk.environment(**env),
                               stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    try:
        lk.wait_for_port(port, process)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(10)


# ---- aimock --------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def aimock(npm, tmp_path_factory):
    if node_version() < (20, 15):
        pytest.skip("aimock needs Node 20.15, which this distribution has no package of")
    fixtures = tmp_path_factory.mktemp("aimock") / "fixtures.json"
    fixtures.write_text(json.dumps(FIXTURES))
    port = free_port()
    with serving(["node", script(npm, "@copilotkit/aimock/dist/cli.js"), "-p", port, "-h", "127.0.0.1",
                  "-f", fixtures, "--log-level", "warn"], port) as url:
        yield url


def test_chat_prints_the_reply_of_aimock(aimock):
    done = lk.run([lk.LLMKIT, "chat", "--base_url", aimock, "hello"], OPENAI_API_KEY="k")
    assert (done.returncode, done.stdout.decode()) == (0, "Hello, caf\u00e9 \U0001f600.")


@pytest.mark.parametrize("how", ["whole", "stream"])
def test_text_of_aimock(ours, aimock, how):
    told = ours(how, aimock, "hello")
    assert "".join(told["text"]) == "Hello, caf\u00e9 \U0001f600."
    assert told["done"] == ["stop"]
    assert told["attempts"] == ["1"]


@pytest.mark.parametrize("how", ["whole", "stream"])
def test_tool_calls_of_aimock(ours, aimock, how):
    told = ours(how, aimock, "weather")
    assert told["tool"] == ['get_weather {"city":"Riga"}', "get_time {}"]
    assert told["done"] == ["tool"]


@pytest.mark.parametrize("how", ["whole", "stream"])
def test_errors_of_aimock_are_understood(ours, aimock, how):
    told = ours(how, aimock, "refuse")
    assert told["failed"] == ["E_LIMITED 429 rate_limit_error"]
    assert told["message"] == ["Rate limited"]
    assert told["retry-after"] == ["1000"] and told["attempts"] == ["1"]  # more than allowed
    told = ours(how, aimock, "boom")
    assert told["failed"] == ["E_SERVER 500 server_error"]
    assert told["attempts"] == ["3"]
    assert told["connects"] == ["1 reused 2"]


def test_a_stream_that_aimock_cuts_is_an_error(ours, aimock):
    for prompt in ("cut", "gone"):
        told = ours("stream", aimock, prompt)
        assert told["failed"][0].startswith("E_TRUNCATED"), told


def test_connections_to_aimock_are_kept(ours, aimock):
    assert ours("stream", aimock, "hello", times=5)["connects"] == ["1 reused 4"]


# ---- sloppy servers ------------------------------------------------------------------------------

def test_mock_llm_streams_one_chunk_without_usage(ours, npm):
    port = free_port()
    with serving(["node", script(npm, "@dwmkerr/mock-llm/dist/main.js")], port, HOST="127.0.0.1",
                 PORT=str(port)) as url:
        told = ours("stream", url, "echo me")
        assert told["text"] == ["echo me"]
        assert told["done"] == ["stop"]
        assert told["usage"] == ["-1 -1"]
        assert ours("whole", url, "echo me")["text"] == ["echo me"]


def test_mock_openai_api_streams_text_tools_and_an_error_with_status_200(ours, npm):
    port = free_port()
    with serving(["node", script(npm, "mock-openai-api/dist/cli.js"), "-p", port, "-H", "127.0.0.1"],
                 port) as url:
        told = ours("stream", url, "hello")
        assert told["done"], told
        told = ours("stream", url, "hello", MODEL="nope")
        assert told["failed"] == ["E_REQUEST 200 invalid_model"]
        assert told["attempts"] == ["1"]
        assert "start" not in told


# ---- nginx ---------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def nginx(certs, tmp_path_factory):
    """nginx with Lua.  Yields the URLs of its plain and its TLS server."""
    modules = [f"/usr/lib/nginx/modules/{name}.so"
               for name in ("ndk_http_module", "ngx_http_lua_module")]
    if not lk.NGINX or not all(map(os.path.exists, modules)):
        pytest.skip("there is no nginx with Lua")
    folder = tmp_path_factory.mktemp("nginx")
    plain, tls = free_port(), free_port()
    load = "".join(f"load_module {module};\n" for module in modules)
    whole = lk.completion("hello from nginx").replace("\\", "\\\\").replace("'", "\\'")
    (folder / "conf").write_text(load + f"""daemon off; master_process off;
pid {folder}/pid; error_log {folder}/log;
events {{ worker_connections 512; }}
http {{
  access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  client_max_body_size 1m;
  server {{
    listen 127.0.0.1:{plain}; listen 127.0.0.1:{tls} ssl;
    ssl_certificate {certs}/ec.pem; ssl_certificate_key {certs}/ec.key;
    ssl_session_cache shared:S:1m; default_type application/json;
    location /whole/ {{ return 200 '{whole}'; }}
    location /small/ {{ client_max_body_size 50k; return 200 '{whole}'; }}
    location /html/ {{ default_type text/html; return 200 "<html>hello</html>"; }}
    location /away/ {{ return 308 https://elsewhere.example$request_uri; }}
    location /events/ {{ default_type text/event-stream; content_by_lua_block {{
      ngx.req.read_body()
      for i = 1, 20 do
        ngx.print('data: {{"model":"m","choices":[{{"index":0,"delta":{{"content":"' .. i .. ',"}}}}]}}\\n\\n')
        ngx.flush(true)
      end
      ngx.print('data: {{"choices":[{{"index":0,"delta":{{}},"finish_reason":"stop"}}]}}\\n\\ndata: [DONE]\\n\\n')
    }} }}
    location /cut/ {{ default_type text/event-stream; content_by_lua_block {{
      ngx.req.read_body()
      ngx.print('data: {{"choices":[{{"index":0,"delta":{{"content":"half"}}}}]}}\\n\\ndata: {{"cho')
      ngx.flush(true) ngx.exit(444)
    }} }}
    location /limit/ {{ content_by_lua_block {{
      ngx.req.read_body() ngx.status = 429 ngx.header["Retry-After"] = "7"
      ngx.print('{{"error":{{"message":"slow down","type":"requests"}}}}')
    }} }}
    location /silent/ {{ content_by_lua_block {{ ngx.req.read_body() ngx.sleep(20) }} }}
  }}
}}
""")
    with serving([lk.NGINX, "-p", folder, "-c", folder / "conf", "-e", folder / "log"], plain):
        yield f"http://127.0.0.1:{plain}", f"https://localhost:{tls}"


@pytest.fixture(params=["plain", "tls"])
def served(request, nginx, certs):
    return (nginx[0], "") if request.param == "plain" else (nginx[1], f"{certs}/bundle.pem")


def test_nginx_answers_whole_on_one_connection(ours, served):
    url, ca = served
    told = ours("whole", f"{url}/whole", "x", ca, times=20)
    assert told["text"] == ["hello from nginx"] * 20
    assert told["connects"] == ["1 reused 19"]


def test_nginx_streams_on_one_connection(ours, served):
    url, ca = served
    told = ours("stream", f"{url}/events", "x", ca, times=3)
    assert "".join(told["text"]) == "".join(f"{i}," for i in range(1, 21)) * 3
    assert told["done"] == ["stop"] * 3
    assert told["connects"] == ["1 reused 2"]


def test_nginx_cuts_a_stream(ours, served):
    url, ca = served
    told = ours("stream", f"{url}/cut", "x", ca)
    assert told["text"] == ["half"]
    assert told["failed"] == ["E_TRUNCATED 200 -"]
    assert told["attempts"] == ["1"]


def test_nginx_limits_for_longer_than_allowed(ours, served):
    url, ca = served
    told = ours("stream", f"{url}/limit", "x", ca)
    assert told["failed"] == ["E_LIMITED 429 requests"]
    assert told["retry-after"] == ["7000"]
    assert told["attempts"] == ["1"]
    assert told["message"] == ["slow down"]


def test_nginx_redirects_and_serves_pages(ours, served):
    url, ca = served
    told = ours("whole", f"{url}/away", "x", ca)
    assert told["failed"] == ["E_REQUEST 308 -"]
    assert "https://elsewhere.example/away" in told["message"][0]
    told = ours("whole", f"{url}/html", "x", ca)
    assert told["failed"] == ["E_JSON 200 -"]
    assert "base_url" in told["message"][0]


def test_nginx_refuses_a_body_before_it_has_come(ours, served):
    url, ca = served
    told = ours("whole", f"{url}/small", "x" * 120000, ca)
    assert told["failed"] == ["E_REQUEST 413 -"]
    assert told["attempts"] == ["1"]


def test_nginx_is_silent_for_longer_than_allowed(ours, served):
    url, ca = served
    told = ours("whole", f"{url}/silent", "x", ca, FIRST_BYTE_MS="200")
    assert told["failed"] == ["E_TIMEOUT 0 -"]
    assert told["deadline"] == ["3"]
    assert told["attempts"] == ["3"]
    assert "first_byte_ms" in told["message"][0]


def test_nginx_is_not_trusted_without_its_ca(ours, nginx, certs):
    told = ours("whole", f"{nginx[1]}/whole", "x", f"{certs}/ca_rsa.pem")
    assert told["failed"] == ["E_CERT 0 -"]
    assert told["attempts"] == ["1"]
    assert "trust" in told["message"][0], told["message"]


def test_nginx_without_a_route_is_a_404(ours, served):
    url, ca = served
    assert ours("whole", f"{url}/nowhere", "x", ca)["failed"] == ["E_REQUEST 404 -"]


# ---- openssl s_server ----------------------------------------------------------------------------

@pytest.mark.parametrize("certificate", ["rsa", "ec", "ec384", "ip"])
def test_openssl_serves_a_reply_that_ends_with_the_connection(ours, certs, certificate):
    reply = (b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n"
             + lk.completion("over openssl").encode())
    with lk.openssl_server(certificate, reply) as port:
        told = ours("whole", f"https://127.0.0.1:{port}/v1", "x", f"{certs}/bundle.pem")
    assert told["text"] == ["over openssl"]


@pytest.mark.parametrize("certificate, ca, words", [
    ("expired", "bundle", "expired"),
    ("future", "bundle", "not yet valid"),
    ("other", "bundle", "localhost"),
    ("self", "bundle", "not a CA"),
])
def test_bad_certificates_are_refused_in_words(ours, certs, certificate, ca, words):
    with lk.openssl_server(certificate, b"") as port:
        told = ours("whole", f"https://localhost:{port}/v1", "x", f"{certs}/{ca}.pem")
    assert told["failed"][0].startswith("E_CERT"), told
    assert told["attempts"] == ["1"]
    assert words in told["message"][0], told["message"]


def test_a_server_with_tls_13_alone_is_refused_in_words(ours, certs):
    port = free_port()
    with serving(["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-tls1_3", "-quiet",
                  "-cert", f"{certs}/ec.pem", "-key", f"{certs}/ec.key"], port):
        told = ours("whole", f"https://localhost:{port}/v1", "x", f"{certs}/bundle.pem")
    assert told["failed"][0].startswith("E_TLS"), told
    assert "1.2" in told["message"][0], told["message"]


def test_chat_says_why_it_does_not_trust(certs):
    with lk.openssl_server("self", b"") as port:
        done = lk.run([lk.LLMKIT, "chat", "--base_url", f"https://localhost:{port}/v1",
                       "--ca", f"{certs}/bundle.pem", "x"], OPENAI_API_KEY="k")
    assert (done.returncode, done.stdout) == (1, b"")
    assert "certificate of localhost" in done.stderr
