"""test_json_diff.py -- our JSON reader and Python's agree on what is valid and what it means"""
import json
import os
import random
import re
import subprocess

TESTS = os.path.dirname(os.path.abspath(__file__))
MAX_DEPTH = 128


def build(folder):
    program = str(folder / "json_dump")
    tree = os.path.join(TESTS, "..", "amalgamate")
    subprocess.run([os.environ.get("CC", "cc"), "-std=c11", "-O1",
                    "-I", os.environ.get("LK_UMBRELLA", tree), "-I", tree, "-o", program,
                    os.path.join(TESTS, "json_dump.c"), "-lbearssl", "-pthread"], check=True)
    return program


def depth_of(value):
    depth = 0
    level = [value]
    while level:
        inner = [v for v in level if isinstance(v, (list, Pairs))]
        level = [x for v in inner for x in (v if isinstance(v, list) else [p[1] for p in v.pairs])]
        depth += bool(inner)
    return depth


class Pairs:
    """An object with all its members, in order."""

    def __init__(self, pairs):
        self.pairs = pairs

    def __eq__(self, other):
        return isinstance(other, Pairs) and self.pairs == other.pairs


def no_constant(name):
    raise ValueError(name)  # Python takes NaN and Infinity; RFC 8259 does not


def read(data):
    return json.loads(data.decode("utf-8"), object_pairs_hook=Pairs, parse_constant=no_constant)


def without_lone_surrogates(value):
    if isinstance(value, str):
        return re.sub("[\ud800-\udfff]", "\ufffd", value)
    if isinstance(value, list):
        return [without_lone_surrogates(v) for v in value]
    if isinstance(value, Pairs):
        return Pairs([(without_lone_surrogates(k), without_lone_surrogates(v))
                      for k, v in value.pairs])
    return value


def random_string(rng):
    pieces = ["a", "content", " tok", '\\"', "\\\\", "\\/", "\\n", "\\u0041", "\\ud83d\\ude00",
              "\\uD83D", "\\uDE00", "\u00e9",
              "\u4f60\u597d", "\U0001f600", "\u2028", "\x7f", "12345678", ""]
    return '"' + "".join(rng.choice(pieces) for _ in range(rng.randrange(6))) + '"'


def random_text(rng, depth):
    space = rng.choice(["", "", "", " ", "\n", "\t\r "])
    kind = rng.randrange(8 if depth else 6)
    if kind == 0:
        return space + rng.choice(["true", "false", "null"])
    if kind in (1, 2):
        return space + rng.choice(["0", "-0", "1", "-12", "3.25", "1e5", "1E-7", "0.1e+3", "1e400",
                                   "123456789012345678901234567890"])
    if kind < 6:
        return space + random_string(rng) + space
    items = [random_text(rng, depth - 1) for _ in range(rng.randrange(5))]
    if kind == 6:
        return space + "[" + ",".join(items) + space + "]"
    return space + "{" + ",".join(random_string(rng) + space + ":" + i for i in items) + "}" + space


def damaged(rng, data):
    data = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(data) + 1)
        what = rng.randrange(3)
        byte = rng.choice(b'{}[]",:\\ 0123e-+.tfnu\x00\x1f\x80\xc3\xff')
        if what == 0:
            data.insert(at, byte)
        elif at < len(data):
            if what == 1:
                data[at] = byte
            else:
                del data[at]
    return bytes(data)


def test_same_answers_as_python(tmp_path):
    rng = random.Random(int(os.environ.get("LK_SEED", "1")))
    cases = [b"[" * n + b"]" * n for n in (1, MAX_DEPTH - 1, MAX_DEPTH, MAX_DEPTH + 1, 500)]
    while len(cases) < 6000:
        text = random_text(rng, 4).encode("utf-8")
        cases += [text, damaged(rng, text)]
    stream = b"".join(b"%d\n%s" % (len(c), c) for c in cases)
    result = subprocess.run([build(tmp_path)], input=stream, stdout=subprocess.PIPE, check=True)
    answers = result.stdout.split(b"\n")[:-1]
    assert len(answers) == len(cases)
    taken = 0
    for case, answer in zip(cases, answers):
        try:
            expected = read(case)
        except (ValueError, UnicodeDecodeError):
            assert answer == b"-", case
            continue
        if depth_of(expected) > MAX_DEPTH:
            assert answer == b"-", case
            continue
        assert answer != b"-", case
        assert read(answer) == without_lone_surrogates(expected), case
        taken += 1
    assert 3000 < taken < 5900
