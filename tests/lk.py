"""What the tests of whole programs share: servers that are started, found and ended by their ids,
scripted peers, and the files of a batch.  Everything has a time limit, all ports are free ones."""
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading

TESTS = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(TESTS)
BUILD = os.environ.get("LK_BUILD", os.path.join(ROOT, "build"))
LLMKIT = os.path.join(BUILD, "llmkit")
CERTS = os.environ.get("LK_CERTS", os.path.join(ROOT, "build", "certs"))
NGINX = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
SECONDS = 30  # nothing here takes longer


def environment(**changes):
    """Ours, without keys and addresses of providers; None removes."""
    env = {k: v for k, v in os.environ.items()
           if not k.startswith(("OPENAI_", "SSL_CERT")) and not k.lower().endswith("_proxy")}
    env.update(LC_ALL="C")
    for name, value in changes.items():
        env.pop(name, None)
        if value is not None:
            env[name] = value
    return env


def run(command, stdin=b"", cwd=None, **env):
    """A finished process; its stdout is bytes, its stderr text."""
    done = subprocess.run([str(word) for word in command], input=stdin, cwd=cwd,
                          env=environment(**env), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          timeout=SECONDS, check=False)
    done.stderr = done.stderr.decode("utf-8", "replace")
    return done


def certs():
    """The folder of certificates, made where they are not there yet."""
    subprocess.run(["sh", os.path.join(TESTS, "make_certs"), CERTS], check=True, timeout=120)
    return CERTS


# ---- Servers -------------------------------------------------------------------------------------

class Server:
    """A process with a port; ended with its block."""

    def __init__(self, command, **env):
        self.process = subprocess.Popen([str(word) for word in command], env=environment(**env),
                                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True, errors="replace")
        self.errors = ""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        """Ends it; what it said on stderr."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            _, errors = self.process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            _, errors = self.process.communicate()
        except ValueError:  # stopped before
            errors = ""
        self.errors += errors or ""
        return self.errors


class Mock(Server):
    """llmkit mock.  url is the base URL, counts() ends it and says what it has done."""

    def __init__(self, *flags, tls=False):
        identity = ()
        if tls:
            identity = ("--tls", "--cert", f"{certs()}/ec.pem", "--key", f"{certs()}/ec.key")
        super().__init__([LLMKIT, "mock", "--listen", "127.0.0.1:0", *identity, *flags])
        line = self.process.stdout.readline()
        found = re.fullmatch(r"listening on ((https?)://127\.0\.0\.1:(\d+))\n", line)
        if not found:
            raise RuntimeError(f"the mock has not started: {line}{self.stop()}")
        self.url, self.port = found[1] + "/v1", int(found[3])

    def counts(self):
        found = re.search(r"mock: (\d+) requests on (\d+) connections: (\d+) answered, "
                          r"(\d+) failed on purpose, (\d+) over the limit, (\d+) cut or stalled, "
                          r"(\d+) refused", self.stop())
        names = ("requests", "connections", "answered", "failed", "limited", "broken", "refused")
        return dict(zip(names, map(int, found.groups())))


class Script:
    """A server that answers the nth request with the nth of some byte strings, the last one again
    and again, and closes the connection.  It collects what it was asked."""

    def __init__(self, *replies):
        self.replies, self.requests = replies, []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/v1"
        self.thread = threading.Thread(target=self.serve, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(5)

    def serve(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                threading.Thread(target=self.answer, args=(connection,), daemon=True).start()

    def answer(self, connection):
        with connection, contextlib.suppress(OSError):
            connection.settimeout(SECONDS)
            self.answer_one(connection)

    def answer_one(self, connection):
        head, body = b"", b""
        while b"\r\n\r\n" not in head:
            piece = connection.recv(65536)
            if not piece:
                return
            head += piece
        head, _, body = head.partition(b"\r\n\r\n")
        length = int(re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)[1])
        while len(body) < length:
            body += connection.recv(65536)
        self.requests.append((head.decode("latin-1"), body))
        reply = self.replies[min(len(self.requests), len(self.replies)) - 1]
        connection.sendall(reply)


def http(body, status="200 OK", kind="application/json", *fields):
    """A whole HTTP reply."""
    body = body if isinstance(body, bytes) else body.encode()
    head = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *fields]
    return ("\r\n".join(head) + "\r\n\r\n").encode() + body


def completion(content, finish="stop"):
    """A whole chat completion as JSON."""
    message = {"role": "assistant", "content": content, "refusal": None}
    return json.dumps({"id": "x", "object": "chat.completion", "created": 1, "model": "m",
                       "choices": [{"index": 0, "message": message, "logprobs": None,
                                    "finish_reason": finish}],
                       "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}})


def chunk(content=None, finish=None):
    """One event of a streamed completion."""
    delta = {} if content is None else {"content": content}
    return "data: " + json.dumps({
        "id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}) + "\n\n"


def stream(*events, length=None):
    """An event stream that ends with its connection, or is said to be longer than it is."""
    body = "".join(events).encode()
    return (b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            + (b"Content-Length: %d\r\n" % length if length else b"Connection: close\r\n")
            + b"\r\n" + body)



@contextlib.contextmanager
def refused_url():
    """The URL of a server that is not there; nobody else gets its port meanwhile."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{holder.getsockname()[1]}/v1"


@contextlib.contextmanager
def openssl_server(certificate, reply):
    """openssl s_server that answers one request with reply.  Yields its port."""
    with socket.socket() as finder:
        finder.bind(("127.0.0.1", 0))
        port = finder.getsockname()[1]
    folder = certs()
    process = subprocess.Popen(
        ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-quiet", "-naccept", "1",
         "-cert", f"{folder}/{certificate}.pem", "-cert_chain", f"{folder}/{certificate}.pem",
         "-key", f"{folder}/{certificate}.key"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def answer():
        seen = b""
        while b"\r\n\r\n" not in seen:
            byte = process.stdout.read(1)
            if not byte:
                return
            seen += byte
        with contextlib.suppress(OSError):
            process.stdin.write(reply)
            process.stdin.close()

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    try:
        wait_for_port(port, process)
        yield port
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def nginx(folder, certificate, upstream):
    """nginx with TLS before a mock: what many gateways are.  Yields its port."""
    with socket.socket() as finder:
        finder.bind(("127.0.0.1", 0))
        port = finder.getsockname()[1]
    conf = os.path.join(folder, "nginx.conf")
    with open(conf, "w", encoding="ascii") as out:
        out.write(f"""daemon off; master_process off;
pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{ worker_connections 512; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {certs()}/{certificate}.pem; ssl_certificate_key {certs()}/{certificate}.key;
    ssl_session_cache shared:SSL:1m;
    location / {{ proxy_pass http://127.0.0.1:{upstream}; proxy_http_version 1.1;
                 proxy_set_header Connection ""; proxy_buffering off; }}
  }}
}}
""")
    process = subprocess.Popen([NGINX, "-p", folder, "-c", conf, "-e", f"{folder}/nginx.log"],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port, process)
        yield port
    finally:
        process.terminate()
        process.wait(10)


def wait_for_port(port, process):
    """Until the server's socket listens, as the kernel's table says: connecting would use up an
    openssl s_server that accepts once."""
    wanted = f"0100007F:{port:04X} 00000000:0000 0A"
    for _ in range(500):
        with open("/proc/net/tcp", encoding="ascii") as table:
            if wanted in table.read():
                return
        if process.poll() is not None:
            break
        threading.Event().wait(0.01)
    raise RuntimeError(f"nothing listens on port {port}")


# ---- A batch and its files -----------------------------------------------------------------------

def lines_of(path, killed=False):
    """The JSON objects of a file of lines.  Every line must be whole, but for what comes after the
    last newline where the writer was killed."""
    with open(path, "rb") as file:
        *lines, rest = file.read().split(b"\n")
    assert killed or rest == b"", f"the last line of {path} is torn"
    return [json.loads(line) for line in lines]


class Batch:
    """A folder with requests.jsonl, and llmkit batch over it."""

    def __init__(self, folder, content):
        self.folder = str(folder)
        self.requests = os.path.join(self.folder, "requests.jsonl")
        self.save = os.path.join(self.folder, "requests_results.jsonl")
        self.errors = os.path.join(self.folder, "errors.jsonl")
        self.content = content if isinstance(content, bytes) else inputs(content)
        with open(self.requests, "wb") as out:
            out.write(self.content)

    def command(self, *flags):
        return [LLMKIT, "batch", "--requests_filepath", self.requests, *flags]

    def run(self, *flags, **env):
        return run(self.command(*flags), **env)

    def start(self, *flags):
        """The process, with its stderr as a pipe."""
        return subprocess.Popen([str(w) for w in self.command(*flags)], env=environment(),
                                stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def saved(self, killed=False):
        return lines_of(self.save, killed)

    def failed(self, killed=False):
        return lines_of(self.errors, killed)

    def check(self, numbers):
        """Each of these lines of the input is in exactly one file, exactly once."""
        saved, failed = self.saved(), self.failed()
        assert sorted(line["line"] for line in saved + failed) == sorted(numbers)
        return saved, failed

    def check_answers(self):
        """Each reply is the mock's echo of its own line of the input."""
        asked = [json.loads(line)["input"] for line in self.content.splitlines()]
        for line in self.saved(killed=True):
            assert line["input"] == asked[line["line"] - 1]
            assert line["response"] == "echo: " + line["input"]


def inputs(number):
    """That many different requests."""
    return "".join(json.dumps({"input": f"question {i}"}) + "\n"
                   for i in range(1, number + 1)).encode()
