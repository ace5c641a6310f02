"""examples/demo.sh, as `make demo` runs it: what it shows and checks, and that it tidies up."""
import os
import re
import shutil
import signal
import subprocess
import time

import pytest

import lk

DEMO = os.path.join(lk.ROOT, "examples", "demo.sh")


def demo(folder, shell="sh", **env):
    return subprocess.run([shell, DEMO], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, timeout=90, check=False,
                          env=lk.environment(LLMKIT=os.path.abspath(lk.LLMKIT),
                                             DEMO_DIR=str(folder), **env))


def processes_with(text):
    """Ids of the processes that have it in their command line."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if text.encode() in file.read():
                    found.append(pid)
        except OSError:
            pass
    return found


@pytest.mark.parametrize("shell, key", [("dash", None), ("bash", "sk-secret")])
def test_the_whole_demo(shell, key, tmp_path):
    if not shutil.which(shell):
        pytest.skip(f"there is no {shell}")
    done = demo(tmp_path, shell, OPENAI_API_KEY=key)
    text = done.stdout
    assert done.returncode == 0, text
    assert re.search(r"all 10000 lines are there exactly once: \d+ in results.jsonl", text), text
    assert "10,000 first attempts in" in text and "intended 1.000 s" in text
    assert "E_LIMITED" in text and "E_SERVER" in text
    assert "echo: this reply comes in word by word" in text
    assert text.count('{"line":') in (3, 4)
    assert ("Put your key into OPENAI_API_KEY" in text) == (key is None)
    assert "sk-secret" not in text and "\033" not in text and text.isascii()
    # By weight three to one; retries go to the other endpoint.
    share = float(re.search(r"large +([\d.]+)%", text)[1])
    assert 74 <= share <= 80, text
    assert processes_with(str(tmp_path)) == []


def test_a_demo_that_fails_leaves_nothing_running(tmp_path):
    done = demo(tmp_path, PATH=fake_path(tmp_path, "cmp", "exit 1"))
    assert done.returncode == 1 and "demo: a line is lost" in done.stdout, done.stdout
    assert processes_with(str(tmp_path)) == []


def fake_path(folder, command, body):
    """A PATH in which one command is another."""
    tools = folder / "tools"
    tools.mkdir()
    (tools / command).write_text(f"#!/bin/sh\n{body}\n", encoding="ascii")
    (tools / command).chmod(0o755)
    shutil.move(str(tools), str(folder) + "-tools")  # the demo empties its folder
    return f"{folder}-tools:{os.environ['PATH']}"


def test_an_interrupted_demo_leaves_nothing_running(tmp_path):
    process = subprocess.Popen(["sh", DEMO], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                               env=lk.environment(LLMKIT=os.path.abspath(lk.LLMKIT),
                                                  DEMO_DIR=str(tmp_path)),
                               start_new_session=True)
    while b"10,000 requests" not in process.stdout.readline():
        pass
    os.killpg(process.pid, signal.SIGINT)
    process.stdout.read()
    assert process.wait(lk.SECONDS) != 0
    for _ in range(100):
        if not processes_with(str(tmp_path)):
            break
        time.sleep(0.02)
    assert processes_with(str(tmp_path)) == []
