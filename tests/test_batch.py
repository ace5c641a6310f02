"""llmkit batch: every line that was started is in exactly one of two files, whatever happens."""
import json
import os
import re
import signal
import time

import pytest

import lk
from lk import completion, http

FAST = ("--backoff_ms", 1, "--max_backoff_ms", 5)


def seconds_of(text):
    """"1.020 s" or "950.2 ms" of the summary."""
    number, unit = text.split()
    return float(number) / (1000 if unit == "ms" else 1)


def summary(done, label):
    return re.search(rf"^  {label} +(.*)$", done.stderr, re.M)[1]


# ---- The job it is for ---------------------------------------------------------------------------

def test_every_reply_is_saved_with_its_question(mock, tmp_path):
    batch = lk.Batch(tmp_path, 500)
    done = batch.run("--endpoint", mock.url)
    assert (done.returncode, done.stdout) == (0, b""), done.stderr
    saved, failed = batch.check(range(1, 501))
    assert failed == []
    batch.check_answers()
    line = saved[0]
    assert list(line) == ["line", "input", "response", "endpoint", "model", "finish", "attempts",
                          "latency_ms", "usage"]
    assert line["endpoint"] == f"127.0.0.1:{mock.port}" and line["model"] == "gpt-4o-mini"
    assert line["finish"] == "stop" and line["attempts"] == 1 and line["latency_ms"] > 0
    assert line["usage"]["output"] == 3
    assert "500: 500 saved, 0 failed" in done.stderr


def test_tls_and_two_endpoints_by_weight(certs, tmp_path):
    batch = lk.Batch(tmp_path, 400)
    with lk.Mock(tls=True) as one, lk.Mock(tls=True) as two:
        done = batch.run("--endpoint", one.url + ",weight=3,name=one,model=large",
                         "--endpoint", two.url + ",name=two", "--model", "small",
                         "--ca", f"{certs}/bundle.pem", "--max-requests-per-second", 4000)
        assert done.returncode == 0, done.stderr
        assert (one.counts()["requests"], two.counts()["requests"]) == (300, 100)
    saved, _ = batch.check(range(1, 401))
    batch.check_answers()
    assert {(line["endpoint"], line["model"]) for line in saved} == {("one", "large"),
                                                                     ("two", "small")}


def test_system_and_max_tokens_reach_the_model(tmp_path):
    with lk.Script(http(completion("fine"), "200 OK", "application/json",
                        "Connection: close")) as server:
        batch = lk.Batch(tmp_path, 1)
        done = batch.run("--endpoint", server.url, "--system", "Be brief.", "--max_tokens", 7,
                         "--model", "m1")
    assert done.returncode == 0, done.stderr
    request = json.loads(server.requests[0][1])
    assert request["model"] == "m1" and 7 in (request.get("max_tokens"),
                                              request.get("max_completion_tokens"))
    assert [m["role"] for m in request["messages"]] == ["system", "user"]


def test_the_asked_rate_is_kept(mock, tmp_path):
    batch = lk.Batch(tmp_path, 1000)
    start = time.monotonic()
    done = batch.run("--endpoint", mock.url, "--max_requests_per_second", 500)
    wall = time.monotonic() - start
    assert done.returncode == 0, done.stderr
    first = seconds_of(re.search(r"1,000 first attempts in ([\d.]+ m?s)", done.stderr)[1])
    assert 1.998 - 0.001 <= first <= wall  # never faster; slower only as the machine is
    assert first < 2.2 or wall > 2.5, done.stderr
    assert summary(done, "sent").endswith("intended 1.998 s")


def test_retries_keep_below_the_rate_too(tmp_path):
    batch = lk.Batch(tmp_path, 100)
    with lk.Mock("--fail_first", "100") as server:
        start = time.monotonic()
        done = batch.run("--endpoint", server.url, "--max_requests_per_second", 200,
                         "--max_attempts", 100, *FAST)
        wall = time.monotonic() - start
        assert done.returncode == 0, done.stderr
        assert server.counts()["requests"] == 200
    assert wall > 0.85  # 200 requests at 200 a second, less the burst of a tenth of a second
    batch.check(range(1, 101))


def test_no_more_are_in_flight_than_allowed(tmp_path):
    batch = lk.Batch(tmp_path, 60)
    with lk.Mock("--latency_ms", "20") as server:
        start = time.monotonic()
        done = batch.run("--endpoint", server.url, "--max_in_flight", 10)
        assert time.monotonic() - start >= 0.12  # six rounds of 20 ms
        assert done.returncode == 0, done.stderr
        assert server.counts()["connections"] <= 10


# ---- Faults of endpoints -------------------------------------------------------------------------

def test_errors_are_retried_and_the_rest_is_recorded(tmp_path):
    batch = lk.Batch(tmp_path, 600)
    with lk.Mock("--error_rate", "0.3") as server:
        done = batch.run("--endpoint", server.url, "--max_attempts", 2, *FAST)
        counts = server.counts()
    assert done.returncode == 2, done.stderr
    saved, failed = batch.check(range(1, 601))
    batch.check_answers()
    assert 10 < len(failed) < 110  # 54 +- 7 are expected
    assert sum(line["attempts"] for line in saved + failed) == counts["requests"]
    for line in failed:
        assert line["code"] == "E_SERVER" and line["status"] == 500 and line["attempts"] == 2
        assert line["input"] == f"question {line['line']}"
        assert line["request_id"].startswith("req_mock_") and "error" in line["error"]
    assert f"600: {len(saved)} saved, {len(failed)} failed" in done.stderr


def test_a_rate_limit_is_waited_for(tmp_path):
    batch = lk.Batch(tmp_path, 120)
    with lk.Mock("--rate_limit", "200", "--rate_burst", "20") as server:
        done = batch.run("--endpoint", server.url, "--max_attempts", 1000,
                         "--max_requests_per_second", 1000)
        counts = server.counts()
    assert done.returncode == 0, done.stderr
    assert counts["answered"] == 120 and counts["limited"] > 0
    batch.check(range(1, 121))
    batch.check_answers()
    assert "E_LIMITED" in done.stderr


def test_cut_replies_are_retried(tmp_path):
    batch = lk.Batch(tmp_path, 100)
    with lk.Mock("--cut_rate", "0.3") as server:
        done = batch.run("--endpoint", server.url, "--max_attempts", 20, *FAST)
    assert done.returncode == 0, done.stderr
    batch.check(range(1, 101))
    batch.check_answers()


def test_stalled_replies_meet_the_deadline(tmp_path):
    batch = lk.Batch(tmp_path, 5)
    with lk.Mock("--stall_rate", "1") as server:
        done = batch.run("--endpoint", server.url, "--max_attempts", 1, "--idle_ms", 100)
    assert done.returncode == 2, done.stderr
    _, failed = batch.check(range(1, 6))
    assert {line["code"] for line in failed} == {"E_TIMEOUT"}


def test_a_refused_request_is_not_retried(tmp_path):
    batch = lk.Batch(tmp_path, 3)
    with lk.Mock("--model", "other") as server:
        done = batch.run("--endpoint", server.url)
        assert server.counts()["requests"] == 3
    assert done.returncode == 2
    _, failed = batch.check(range(1, 4))
    assert {(line["code"], line["status"], line["attempts"]) for line in failed} == {
        ("E_REQUEST", 404, 1)}


@pytest.mark.parametrize("reply, code", [
    (http("{broken"), "E_JSON"), (http('{"object": "x"}'), "E_JSON"), (http("null"), "E_JSON"),
    (b"SSH-2.0-OpenSSH\r\n\r\n", "E_PROTOCOL"), (b"", "E_TRUNCATED"),
])
def test_a_malformed_reply_is_an_error(reply, code, tmp_path):
    with lk.Script(reply) as server:
        batch = lk.Batch(tmp_path, 1)
        done = batch.run("--endpoint", server.url, "--max_attempts", 1)
    assert done.returncode == 2
    _, failed = batch.check([1])
    assert failed[0]["code"] == code, failed


def test_all_endpoints_dead(tmp_path):
    batch = lk.Batch(tmp_path, 20)
    with lk.refused_url() as one, lk.refused_url() as two:
        done = batch.run("--endpoint", one, "--endpoint", two, "--max_attempts", 2, *FAST)
    assert done.returncode == 2
    saved, failed = batch.check(range(1, 21))
    assert saved == [] and {line["code"] for line in failed} == {"E_CONNECT"}
    assert {line["attempts"] for line in failed} == {2}


def test_one_endpoint_dead_of_two(mock, tmp_path):
    batch = lk.Batch(tmp_path, 100)
    with lk.refused_url() as dead:
        done = batch.run("--endpoint", dead, "--endpoint", mock.url, *FAST)
    assert done.returncode == 0, done.stderr
    batch.check(range(1, 101))
    batch.check_answers()
    assert re.search(r"E_CONNECT", done.stderr)


# ---- Lines that are no requests ------------------------------------------------------------------

def test_malformed_lines_go_to_errors_and_the_run_goes_on(mock, tmp_path):
    bad = [b"not json", b'{"inputs": "x"}', b'{"input": 7}', b'["input"]', b'{"input": "x"',
           b'{"input": "\xff\xfe"}', b'{"input": "a\0b"}', b'{"input": "x"} {"input": "y"}',
           b'{"input": "x",}', b'{"input": null}', b'"input"', b'{"input": "\\ud83d"']
    good = b'{"input": "good"}'
    content = b"".join(line + b"\n" + good + b"\n" for line in bad)
    batch = lk.Batch(tmp_path, content)
    done = batch.run("--endpoint", mock.url)
    assert done.returncode == 2, done.stderr
    saved, failed = batch.check(range(1, 2 * len(bad) + 1))
    assert [line["line"] for line in failed] == list(range(1, 2 * len(bad), 2))
    assert len(saved) == len(bad)
    for line in failed:
        assert line["code"] == "E_JSON" and line["attempts"] == 0 and line["input"] is None
        assert line["error"] and "raw" in line
    assert failed[0]["raw"] == "not json"
    assert f"({len(bad)} malformed)" in done.stderr


def test_bom_crlf_blank_lines_and_no_last_newline(mock, tmp_path):
    content = b'\xef\xbb\xbf{"input": "one"}\r\n\r\n  \n{"input": "two"}\n\n{"input": "three"}'
    batch = lk.Batch(tmp_path, content)
    done = batch.run("--endpoint", mock.url)
    assert done.returncode == 0, done.stderr
    saved, _ = batch.check([1, 4, 6])
    assert {line["line"]: line["response"] for line in saved} == {
        1: "echo: one", 4: "echo: two", 6: "echo: three"}


def test_all_of_unicode_comes_back_unchanged(mock, tmp_path):
    texts = ["", "\"\\/\b\f\n\r\t", "äöü \u2028\u2029 \U0001f600", "\x7f\u0080", "\x00\x01\x1f"]
    content = b"".join(json.dumps({"input": t}, ensure_ascii=escaped).encode() + b"\n"
                       for t in texts for escaped in (True, False))
    batch = lk.Batch(tmp_path, content)
    done = batch.run("--endpoint", mock.url)
    assert done.returncode == 0, done.stderr + open(batch.errors, encoding="utf-8").read()
    batch.check(range(1, 2 * len(texts) + 1))
    batch.check_answers()


def test_a_line_that_is_too_long(mock, tmp_path):
    long = b'{"input": "' + b"x" * 3000000 + b'"}'
    content = b'{"input": "a"}\n' + long + b'\n{"input": "b"}\n' + long
    batch = lk.Batch(tmp_path, content)
    done = batch.run("--endpoint", mock.url, "--max_line_bytes", 100000)
    assert done.returncode == 2, done.stderr
    saved, failed = batch.check(range(1, 5))
    assert [line["line"] for line in failed] == [2, 4] and len(saved) == 2
    assert os.path.getsize(batch.errors) < 10000


def test_a_line_of_a_megabyte(mock, tmp_path):
    batch = lk.Batch(tmp_path, json.dumps({"input": "x" * 1000000}).encode() + b"\n")
    assert batch.run("--endpoint", mock.url).returncode == 0
    batch.check_answers()


def test_an_empty_file(mock, tmp_path):
    batch = lk.Batch(tmp_path, b"")
    done = batch.run("--endpoint", mock.url, "--max_requests_per_second", 100)
    assert done.returncode == 0, done.stderr
    batch.check([])


# ---- Files ---------------------------------------------------------------------------------------

def check_could_not_run(done, *words):
    assert done.returncode == 1, done.stderr
    assert done.stdout == b"" and done.stderr.startswith("llmkit"), done.stderr
    for word in words:
        assert word in done.stderr


def test_a_results_file_that_is_there_already(mock, tmp_path):
    batch = lk.Batch(tmp_path, 3)
    with open(batch.save, "w", encoding="ascii") as out:
        out.write("precious\n")
    check_could_not_run(batch.run("--endpoint", mock.url), batch.save)
    with open(batch.save, encoding="ascii") as file:
        assert file.read() == "precious\n"


def test_append_adds_to_what_is_there(mock, tmp_path):
    batch = lk.Batch(tmp_path, 10)
    assert batch.run("--endpoint", mock.url).returncode == 0
    assert batch.run("--endpoint", mock.url, "--append", "--skip", 4).returncode == 0
    assert len(batch.saved()) == 16


def test_append_starts_a_new_line_after_a_torn_one(mock, tmp_path):
    batch = lk.Batch(tmp_path, 2)
    with open(batch.save, "wb") as out:
        out.write(b'{"line":1}\n{"line":2,"inp')
    assert batch.run("--endpoint", mock.url, "--append").returncode == 0
    with open(batch.save, "rb") as file:
        lines = file.read().split(b"\n")
    assert lines[:2] == [b'{"line":1}', b'{"line":2,"inp'] and lines[4:] == [b""]
    assert sorted(json.loads(line)["line"] for line in lines[2:4]) == [1, 2]


def test_files_of_the_users_choice(mock, tmp_path):
    batch = lk.Batch(tmp_path, b'{"input": "x"}\nbad\n')
    (tmp_path / "out").mkdir()
    done = batch.run("--endpoint", mock.url, "--save-filepath", tmp_path / "out/saved.jsonl")
    assert done.returncode == 2, done.stderr
    assert len(lk.lines_of(tmp_path / "out/saved.jsonl")) == 1
    assert len(lk.lines_of(tmp_path / "out/errors.jsonl")) == 1
    done = batch.run("--endpoint", mock.url, "--save_filepath", tmp_path / "a",
                     "--errors_filepath", tmp_path / "b")
    assert len(lk.lines_of(tmp_path / "a")) == len(lk.lines_of(tmp_path / "b")) == 1


def test_files_that_cannot_be_used(mock, tmp_path):
    batch = lk.Batch(tmp_path, 3)
    good = ("--endpoint", mock.url)
    run = [lk.LLMKIT, "batch", *good, "--requests_filepath"]
    check_could_not_run(lk.run([*run, tmp_path / "missing"]), "missing", "No such file")
    check_could_not_run(lk.run([*run, tmp_path]), "directory")
    unreadable = [*run, "/proc/self/mem", "--save_filepath", tmp_path / "s", "-q"]
    check_could_not_run(lk.run(unreadable), "cannot read /proc/self/mem at line 1")
    check_could_not_run(batch.run(*good, "--save_filepath", tmp_path), str(tmp_path))
    check_could_not_run(batch.run(*good, "--save_filepath", "/no/such/folder/x"), "/no/such/folder")
    check_could_not_run(batch.run(*good, "--save_filepath", batch.requests), "three files")
    check_could_not_run(batch.run(*good, "--save_filepath", batch.errors), "three files")
    link = tmp_path / "link.jsonl"
    link.symlink_to(batch.requests)
    for flags in (["--save_filepath", link], ["--save_filepath", link, "--append"],
                  ["--errors_filepath", link, "--append"]):
        check_could_not_run(batch.run(*good, *flags))
    with open(batch.requests, "rb") as file:
        assert file.read() == batch.content


def test_a_full_disk_stops_the_run(mock, tmp_path):
    batch = lk.Batch(tmp_path, 50)
    check_could_not_run(batch.run("--endpoint", mock.url, "--save_filepath", "/dev/full",
                                  "--errors_filepath", tmp_path / "e", "-q"), "No space left")


# ---- Flags and keys ------------------------------------------------------------------------------

@pytest.mark.parametrize("flags", [
    (), ("--endpoint", "nonsense"), ("--endpoint", "URL,weight=0"), ("--endpoint", "URL,weight=x"),
    ("--endpoint", "URL,what=1"), ("--endpoint", "URL,key_env=NOT_THERE"),
    ("--endpoint", "URL", "--max_attempts", 0), ("--endpoint", "URL", "--max_in_flight", 0),
    ("--endpoint", "URL", "--max_requests_per_second", "-1"), ("--endpoint", "URL", "--nonsense"),
    ("--endpoint", "URL", "--ca", "/no/such/file"), ("--endpoint", "URL", "operand"),
    ("--endpoint", "https://api.openai.com/v1,key_env="),
])
def test_bad_flags_start_nothing(flags, mock, tmp_path):
    batch = lk.Batch(tmp_path, 1)
    done = batch.run(*[str(f).replace("URL", mock.url) for f in flags])
    check_could_not_run(done)
    assert not os.path.exists(batch.save) and not os.path.exists(batch.errors)


def test_help_is_on_stdout():
    done = lk.run([lk.LLMKIT, "batch", "--help"])
    assert done.returncode == 0 and done.stderr == "" and b"--requests_filepath" in done.stdout


def test_dashes_are_as_good_as_underscores(mock, tmp_path):
    batch = lk.Batch(tmp_path, 2)
    done = lk.run([lk.LLMKIT, "batch", "--requests-filepath", batch.requests, "--max-attempts=2",
                   "--max-requests-per-second", "100", "--errors-filepath", tmp_path / "e.jsonl",
                   "--endpoint", mock.url, "--max-in-flight", 5])
    assert done.returncode == 0, done.stderr


def test_a_key_goes_only_where_it_was_meant_to_go(tmp_path):
    reply = http(completion("x"), "200 OK", "application/json", "Connection: close")
    with lk.Script(reply) as server:
        for name, flags in (("none", ""), ("own", ",key_env=MY_KEY")):
            (tmp_path / name).mkdir()
            batch = lk.Batch(tmp_path / name, 1)
            done = batch.run("--endpoint", server.url + flags, OPENAI_API_KEY="sk-openai",
                             MY_KEY="sk-mine")
            assert done.returncode == 0, done.stderr
            assert "sk-" not in done.stderr
    heads = [head.lower() for head, _ in server.requests]
    assert "authorization" not in heads[0] and "authorization: bearer sk-mine" in heads[1]


def test_a_wrong_key_is_recorded_and_not_shown(tmp_path):
    batch = lk.Batch(tmp_path, 2)
    with lk.Mock("--api_key", "right") as server:
        done = batch.run("--endpoint", server.url + ",key_env=MY_KEY", MY_KEY="sk-wrong")
    assert done.returncode == 2
    _, failed = batch.check([1, 2])
    assert {(line["code"], line["status"]) for line in failed} == {("E_AUTH", 401)}
    assert "sk-wrong" not in done.stderr + json.dumps(failed)


# ---- Interruptions -------------------------------------------------------------------------------

def wait_for_lines(batch, number):
    for _ in range(3000):
        if os.path.exists(batch.save) and open(batch.save, "rb").read().count(b"\n") >= number:
            return
        time.sleep(0.01)
    raise AssertionError("the batch writes nothing")


def interrupt(batch, process, *signals):
    for number in signals:
        process.send_signal(number)
        time.sleep(0.05)
    _, errors = process.communicate(timeout=lk.SECONDS)
    return process.returncode, errors.decode()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_what_is_in_flight(number, tmp_path):
    batch = lk.Batch(tmp_path, 2000)
    with lk.Mock("--latency_ms", "100", "--error_rate", "0.1") as server:
        flags = ("--endpoint", server.url, "--max_requests_per_second", 500, *FAST)
        process = batch.start(*flags)
        wait_for_lines(batch, 20)
        status, errors = interrupt(batch, process, number)
        assert status == 2, errors
        skip, = re.findall(r"--skip (\d+) --append", errors)
        started = int(skip)
        assert 20 < started < 2000
        _, failed = batch.check(range(1, started + 1))
        assert all(line["code"] == "E_SERVER" for line in failed)

        done = batch.run("--endpoint", server.url, "--skip", skip, "--append", *FAST)
        assert done.returncode in (0, 2), done.stderr
        counts = server.counts()
    saved, failed = batch.check(range(1, 2001))
    batch.check_answers()
    assert sum(line["attempts"] for line in saved + failed) == counts["requests"]


def test_a_second_signal_cancels_what_is_in_flight(tmp_path):
    batch = lk.Batch(tmp_path, 100)
    with lk.Mock("--stall_rate", "0.5") as server:
        process = batch.start("--endpoint", server.url, "--max_requests_per_second", 200)
        wait_for_lines(batch, 10)
        start = time.monotonic()
        status, errors = interrupt(batch, process, signal.SIGINT, signal.SIGINT)
        assert time.monotonic() - start < 10
    assert status == 2, errors
    started = int(re.findall(r"--skip (\d+) --append", errors)[0]) if "--skip" in errors else 100
    _, failed = batch.check(range(1, started + 1))
    assert failed and {line["code"] for line in failed} == {"E_CANCELLED"}


def test_a_kill_leaves_whole_lines_each_in_one_file(tmp_path):
    batch = lk.Batch(tmp_path, 20000)
    with lk.Mock("--error_rate", "0.2") as server:
        process = batch.start("--endpoint", server.url, "--max_attempts", 1)
        wait_for_lines(batch, 500)
        process.kill()
        process.communicate(timeout=lk.SECONDS)
    saved, failed = batch.saved(killed=True), batch.failed(killed=True)
    numbers = [line["line"] for line in saved + failed]
    assert len(numbers) == len(set(numbers)) and len(saved) >= 500 and failed
    batch.check_answers()


# ---- What people see -----------------------------------------------------------------------------

def test_the_summary_says_what_happened(tmp_path):
    batch = lk.Batch(tmp_path, 200)
    with lk.Mock("--error_rate", "0.1", "--latency_ms", "5") as server:
        done = batch.run("--endpoint", server.url + ",name=mine", "--max_requests_per_second", 1000,
                         *FAST)
    for label in ("lines", "sent", "late by", "time", "throughput", "latency", "service", "tokens",
                  "endpoints", "errors", "replies", "failures"):
        assert summary(done, label), label
    assert summary(done, "endpoints").startswith("mine")
    assert "E_SERVER" in summary(done, "errors") and batch.save in done.stderr
    assert "\r" not in done.stderr and "\033" not in done.stderr


def test_quiet_is_quiet(mock, tmp_path):
    done = lk.Batch(tmp_path, 5).run("--endpoint", mock.url, "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", "")


def test_a_terminal_gets_one_line_drawn_again(mock, tmp_path):
    batch = lk.Batch(tmp_path, 300)
    ours, theirs = os.openpty()
    process = lk.subprocess.Popen([str(w) for w in batch.command("--endpoint", mock.url,
                                                                 "--max_requests_per_second", 400)],
                                  stderr=theirs, env=lk.environment(), stdin=lk.subprocess.DEVNULL)
    os.close(theirs)
    seen = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # what Linux says at the end of a terminal
            piece = b""
        if not piece:
            break
        seen += piece
    os.close(ours)
    assert process.wait(lk.SECONDS) == 0
    progress, _, rest = seen.rpartition(b"\r\033[K")
    assert progress.count(b"\r[") >= 2 and b" left" in progress and b"in flight" in progress
    assert progress.count(b"\n") == 0 and b"300 saved" in rest
