"""Our parsers against others' on thousands of random messages: llhttp, which is inside Node, for
HTTP, and eventsource-parser for event streams.  The seeds are fixed."""
import json
import os
import random
import re
import shutil
import subprocess

import pytest

TESTS = os.path.dirname(os.path.abspath(__file__))
BUILD = os.path.join(TESTS, "..", "build", "parsers_diff")


@pytest.fixture(scope="module")
def ours():
    os.makedirs(BUILD, exist_ok=True)
    program = os.path.join(BUILD, "parse_dump")
    umbrella = os.environ.get("LK_UMBRELLA", os.path.join(TESTS, "..", "amalgamate"))
    subprocess.run([os.environ.get("CC", "cc"), "-std=c11", "-O1", "-I", umbrella,
                    "-I", os.path.join(TESTS, "..", "amalgamate"), "-o", program,
                    os.path.join(TESTS, "parse_dump.c"), "-lbearssl", "-pthread"], check=True)
    return [program]


@pytest.fixture(scope="module")
def theirs(npm):
    return ["node", os.path.join(TESTS, "parse_dump.js")], npm


def results(command, cases):
    text = b"".join(b"%d\n%s" % (len(case), case) for case in cases)
    run = subprocess.run(command, input=text, stdout=subprocess.PIPE, check=True)
    lines = run.stdout.decode("ascii" if "parse_dump" in command[0] else "utf-8").splitlines()
    assert len(lines) == len(cases)
    return [json.loads(line) for line in lines]


def both(ours, theirs, kind, cases):
    node, folder = theirs
    return zip(cases, results([*ours, kind], cases), results([*node, kind, folder], cases))


# ---- HTTP ----------------------------------------------------------------------------------------

FIELDS = [b"A: b", b"X-Long-Name-1:  padded \t", b"Empty:", b"Accept: */*", b"Expect: 100-continue",
          b"U: \xc3\xa4", b"T: a\tb", b"Content-Type: application/json"]
CONNECTION = [b"Connection: close", b"Connection: keep-alive", b"connection: x, Close"]
# What real parsers have disagreed about.
ODD_FIELDS = [b"Content-Length: 3", b"Content-Length: 4", b"Content-Length: 03",
              b"Content-Length: +3", b"Content-Length: 3, 3", b"Content-Length:",
              b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked, chunked",
              b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: identity",
              b"Transfer-Encoding : chunked", b"Transfer-Encoding: xchunked", b"A : b", b" A: b",
              b"A: b\r\n c", b"A\x00: b", b"A: \x00", b"A: \x7f", b"A: \rb", b"A", b": b",
              b"A: b\nC: d", b"Host: b", b"A(: b"]


def chunked(rnd, body, odd):
    out = b""
    while body:
        n = rnd.randint(1, len(body))
        ext = rnd.choice([b"", b"", b"", b";a", b";a=b", b';a="b c"'])
        size = rnd.choice([b"%x", b"%X", b"0%x"]) % n
        if odd and rnd.random() < 0.2:
            size = rnd.choice([b"", b" %x", b"%x ", b"0x%x", b"-%x", b"%xg"]).replace(
                b"%x", b"%x" % n)
        end = rnd.choice([b"\n", b"\r", b"\r\r\n", b""]) if odd and rnd.random() < 0.1 else b"\r\n"
        out += size + ext + b"\r\n" + body[:n] + end
        body = body[n:]
    return out + b"0\r\n" + rnd.choice([b"", b"", b"T: 1\r\n"]) + b"\r\n"


def node_major():
    if not shutil.which("node"):
        return 0
    return int(subprocess.check_output(["node", "-p", "parseInt(process.versions.node)"]))


# Node 18's llhttp reads a body behind 204 and 304 with a Content-Length, against RFC 9112 6.3.
STATUSES = [200, 200, 200, 429, 500] + ([204, 304] if node_major() >= 20 else [])


def message(rnd, request, odd):
    body = bytes(rnd.choice(b"abc\r\n0: ") for _ in range(rnd.randint(0, 20)))
    fields = rnd.sample(FIELDS, rnd.randint(0, 4))
    fields += rnd.sample(CONNECTION, rnd.choice([0, 0, 1]))
    minor = rnd.choice([0, 1, 1, 1])
    if request:
        method = rnd.choice([b"GET", b"POST", b"PUT", b"DELETE", b"HEAD"])
        line = method + b" " + rnd.choice([b"/", b"/v1/x?y=z", b"*", b"http://a/b"]) + \
            b" HTTP/1.%d" % minor
        fields.append(b"Host: a")
    else:
        line = rnd.choice([b""] * 9 + [b"HTTP/1.1 103 Early Hints\r\nA: b\r\n\r\n"]) + \
            b"HTTP/1.%d %d" % (minor, rnd.choice(STATUSES)) + \
            rnd.choice([b" OK", b" ", b" Not a word"])
    how = rnd.choice(["none", "length", "chunked"] if minor else ["none", "length"])
    if how == "length":
        fields.append(b"Content-Length: %d" % len(body))
    if how == "chunked":
        fields.append(b"Transfer-Encoding: chunked")
        body = chunked(rnd, body, odd)
    if how == "none" and request:
        body = b""
    if odd:
        fields += rnd.sample(ODD_FIELDS, rnd.choice([0, 1, 1, 2]))
    rnd.shuffle(fields)
    ends = [b"\r\n"] * 20 + ([b"\n", b"\r\r\n"] if odd else [])
    return line + b"".join(rnd.choice(ends) + f for f in fields) + b"\r\n\r\n" + body


def stream(rnd, request, odd):
    """Some messages; a body without a length takes the rest."""
    text = b"".join(message(rnd, request, odd) for _ in range(rnd.randint(1, 3)))
    if odd and rnd.random() < 0.3:
        at = rnd.randrange(len(text))
        text = text[:at] + bytes([rnd.choice(b"\r\n\x00 \t:;0a\xff")]) + text[at + 1:]
    return text


def complete(result):
    """The messages up to the first that asks to close, if all of them are whole: after it nothing
    is read."""
    messages = []
    for m in result["messages"]:
        if not m[5]:
            return None
        messages.append(m)
        if not m[2]:
            return messages
    return messages if not result["error"] else None


@pytest.mark.parametrize("kind", ["request", "response"])
def test_well_formed_messages_are_read_as_llhttp_reads_them(ours, theirs, kind):
    rnd = random.Random(1)
    cases = [stream(rnd, kind == "request", False) for _ in range(4000)]
    agreed = 0
    for case, mine, other in both(ours, theirs, kind, cases):
        assert complete(mine) == complete(other), (case, mine, other)
        agreed += complete(mine) is not None
    assert agreed > 2000


@pytest.mark.parametrize("kind", ["request", "response"])
def test_odd_messages_that_both_accept_are_read_the_same(ours, theirs, kind):
    rnd = random.Random(2)
    cases = [stream(rnd, kind == "request", True) for _ in range(20000)]
    agreed = 0
    for case, mine, other in both(ours, theirs, kind, cases):
        error = other["error"]
        mine, other = complete(mine), complete(other)
        if mine is not None and other is not None:
            assert mine == other, case
            agreed += 1
        if mine is not None and other is None and kind == "request":
            # In all else llhttp accepts what we accept.
            assert re.search(STRICTER[error], case), (case, error)
    assert agreed > 1000


# Where llhttp refuses what the RFCs allow: its error, and what the request then holds.
STRICTER = {
    "HPE_INVALID_METHOD": b"",  # it has a list of methods
    "HPE_INVALID_URL": b"",  # it looks inside
    "HPE_INVALID_CHUNK_SIZE": rb"[ \t];",  # RFC 9112 7.1.1: blanks before an extension
    "HPE_INVALID_CONTENT_LENGTH": rb"\d *\t *\r\n",  # RFC 9112 5.1: a tab after a value
}


# ---- Event streams -------------------------------------------------------------------------------

WORDS = [b"data: a", b"data:b", b"data", b"data: ", b"data:  c ", b"event: x", b"event:y", b"event",
         b"id: 1", b"retry: 10", b": comment", b":", b"other: z", b"nothing",
         "data: \u00e4\u2028\U0001f600".encode(), b'data: {"a": [1, 2]}', b"datax: q"]


def test_event_streams_are_read_as_eventsource_parser_reads_them(ours, theirs):
    rnd = random.Random(3)
    cases = []
    for _ in range(20000):
        ends = rnd.choice([[b"\n"], [b"\r\n"], [b"\r"], [b"\n", b"\r\n"], [b"\n", b"\r\n", b"\r"]])
        text = rnd.choice([b"", b"", b"\xef\xbb\xbf"])
        for _ in range(rnd.randint(0, 12)):
            text += rnd.choice(WORDS) * rnd.choice([0, 1, 1]) + rnd.choice(ends)
        # Their parser holds a CR at the very end back; ours does not.
        cases.append(text + b": end\n")
    events = 0
    for case, mine, other in both(ours, theirs, "sse", cases):
        assert mine["events"] == other["events"], case
        events += len(mine["events"])
    assert events > 10000
