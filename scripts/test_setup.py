"""Tests of the set-up scripts: run with `python3 -m unittest discover -s scripts -p 'test_*.py'`."""

import importlib.machinery
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent


def load(name):
    """A script without suffix, as a module."""
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(SCRIPTS))
    loader = importlib.machinery.SourceFileLoader(name.replace("-", "_"), str(SCRIPTS / name))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


def run(*command, **settings):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, **settings)


class TestSummary(unittest.TestCase):
    def last_line(self, *arguments):
        result = run(SCRIPTS / "test-summary", *arguments)
        return result.stdout.rstrip("\n").split("\n")[-1], result.returncode

    def count(self, output):
        counter = load("test-summary").Counter()
        for line in output.splitlines():
            counter.read(line)
        return counter.passed, counter.failed

    def test_every_runner_is_counted(self):
        cargo = "test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.0s"
        failing_cargo = "test result: FAILED. 4 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out"
        for output, expected in [
            (cargo, (5, 0)),
            (f"{cargo}\n{failing_cargo}", (9, 2)),
            ("\x1b[2m      Tests \x1b[22m \x1b[1m\x1b[31m1 failed\x1b[39m\x1b[22m | \x1b[32m11 passed\x1b[39m (12)", (11, 1)),
            (" Test Files  3 passed (3)\n      Tests  12 passed (12)", (12, 0)),
            ("ℹ tests 4\nℹ pass 3\nℹ fail 1", (3, 1)),
            ("# pass 3\n# fail 0", (3, 0)),
            ("Ran 7 tests in 0.1s\n\nOK", (7, 0)),
            ("Ran 7 tests in 0.1s\n\nFAILED (failures=1, errors=2, skipped=1)", (3, 3)),
            ("===== 1 failed, 3 passed, 1 error in 0.12s =====", (3, 2)),
            ("6 passed, 1 failed", (6, 1)),
            ("we passed 3 stations, 1 failed us", (0, 0)),
        ]:
            self.assertEqual(self.count(output), expected, output)

    def test_sums_over_runners_and_fails_if_one_test_did(self):
        line, status = self.last_line("--run", "a", "echo 2 passed, 0 failed", "--run", "b", "echo 3 passed, 1 failed; exit 1")
        self.assertEqual((line, status), ("5 passed, 1 failed", 1))

    def test_a_runner_that_breaks_without_a_failed_test_counts_as_one(self):
        line, status = self.last_line("--run", "a", "echo 2 passed, 0 failed; exit 101")
        self.assertEqual((line, status), ("2 passed, 1 failed", 1))

    def test_a_runner_without_tests_counts_as_one_failure(self):
        self.assertEqual(self.last_line("--run", "a", "true"), ("0 passed, 1 failed", 1))

    def test_nothing_runs_after_a_failed_build(self):
        line, status = self.last_line("--do", "build", "false", "--run", "a", "echo 2 passed, 0 failed")
        self.assertEqual((line, status), ("0 passed, 1 failed", 1))

    def test_an_interrupted_runner_is_waited_for(self):
        with tempfile.TemporaryDirectory() as folder:
            mark = Path(folder) / "cleaned"
            runner = f"exec sh -c 'trap \"sleep 0.3; touch {mark}; exit\" INT; echo ready; while :; do sleep 0.05; done'"
            command = [str(SCRIPTS / "test-summary"), "--run", "a", runner]
            # A shell lets what it runs in the background ignore interrupts, and that is inherited.
            with subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            ) as process:
                while process.stdout.readline().strip() != "ready":
                    pass
                os.killpg(process.pid, signal.SIGINT)
                process.communicate(timeout=30)
            self.assertEqual(process.returncode, 130)
            self.assertTrue(mark.exists())

    def test_all_well_is_status_zero(self):
        self.assertEqual(self.last_line("--do", "b", "true", "--run", "a", "echo 2 passed, 0 failed"), ("2 passed, 0 failed", 0))


class WithPostgres(unittest.TestCase):
    def test_gives_a_database_and_the_status_of_the_command(self):
        script = 'test -S "${DATABASE_URL#*host=}/.s.PGSQL.5432" && echo "$DATABASE_URL"; exit 7'
        result = run(SCRIPTS / "with-postgres", "sh", "-c", script)
        self.assertEqual(result.returncode, 7, result.stderr)
        self.assertRegex(result.stdout, r"^postgres://temponas@localhost/postgres\?host=/")
        self.assertFalse(Path(result.stdout.strip().partition("host=")[2]).exists())

    def test_leaves_nothing_when_it_is_ended(self):
        command = [str(SCRIPTS / "with-postgres"), "sh", "-c", 'echo "${DATABASE_URL#*host=}"; exec sleep 60']
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            folder = Path(process.stdout.readline().strip())
            server = int((folder / "data" / "postmaster.pid").read_text().split("\n")[0])
            process.send_signal(signal.SIGTERM)
            self.assertEqual(process.wait(timeout=30), 128 + signal.SIGTERM)
        self.assertFalse(folder.exists())
        with self.assertRaises(ProcessLookupError):
            os.kill(server, 0)

    @unittest.skipUnless(sys.platform == "linux", "the server follows a killed parent on Linux only")
    def test_the_server_dies_with_a_killed_script(self):
        command = [str(SCRIPTS / "with-postgres"), "sh", "-c", 'echo "${DATABASE_URL#*host=} $$"; exec sleep 60']
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            folder, child = process.stdout.readline().split()
            server = int((Path(folder) / "data" / "postmaster.pid").read_text().split("\n")[0])
            process.kill()
            os.kill(int(child), signal.SIGKILL)
        deadline = time.monotonic() + 20
        while is_running(server) and time.monotonic() < deadline:
            time.sleep(0.05)
        self.assertFalse(is_running(server))
        run(SCRIPTS / "with-postgres", "true")
        self.assertFalse(Path(folder).exists(), "the next run clears what the killed one left")


# A server that answers as a coordinator does to the question whether it is there.
STAND_IN = """#!/usr/bin/env python3
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/healthz" else 404)
        self.end_headers()
host, port = sys.argv[sys.argv.index("--listen") + 1].split(":")
http.server.HTTPServer((host, int(port)), Handler).serve_forever()
"""


class WithCoordinator(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.program = Path(folder.name) / "temponas"

    def write_program(self, text):
        self.program.write_text(text)
        self.program.chmod(0o755)

    def test_gives_an_address_and_the_status_of_the_command(self):
        self.write_program(STAND_IN)
        result = run(SCRIPTS / "with-coordinator", self.program, "sh", "-c", 'echo "$TEMPONAS_URL"; exit 7')
        self.assertEqual(result.returncode, 7, result.stderr)
        self.assertRegex(result.stdout, r"^http://127\.0\.0\.1:\d+\n$")
        port = int(result.stdout.strip().rpartition(":")[2])
        with self.assertRaises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)

    def test_leaves_nothing_when_it_is_ended(self):
        self.write_program(STAND_IN)
        command = [str(SCRIPTS / "with-coordinator"), str(self.program), "sh", "-c", 'echo "$TEMPONAS_URL"; exec sleep 60']
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            port = int(process.stdout.readline().strip().rpartition(":")[2])
            process.send_signal(signal.SIGTERM)
            self.assertEqual(process.wait(timeout=30), 128 + signal.SIGTERM)
        with self.assertRaises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)

    def test_a_coordinator_that_does_not_start_is_told_with_its_log(self):
        self.write_program("#!/bin/sh\necho no disk left; exit 1\n")
        result = run(SCRIPTS / "with-coordinator", self.program, "true")
        self.assertEqual(result.returncode, 1)
        self.assertIn("no disk left", result.stderr)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Setup(unittest.TestCase):
    def test_a_browser_that_does_not_run_or_is_a_snap_is_passed_over(self):
        browser = load("browser")
        with tempfile.TemporaryDirectory() as folder:
            program = Path(folder) / "chromium-browser"
            for script, usable in [
                ("echo Chromium 153.0.1 built on Debian", True),
                ("echo Chromium 153.0.1 snap", False),
                ("echo it has moved >&2; exit 1", False),
            ]:
                program.write_text(f"#!/bin/sh\n{script}\n")
                program.chmod(0o755)
                self.assertEqual(browser.is_usable(str(program)), usable, script)

    def test_an_unusable_postgres_folder_is_named(self):
        result = run(SCRIPTS / "postgres", env=dict(os.environ, TEMPONAS_POSTGRES_BIN="/nowhere"))
        self.assertEqual(result.returncode, 1)
        self.assertIn("TEMPONAS_POSTGRES_BIN is /nowhere", result.stderr)

    def test_a_libtorch_of_another_version_is_named(self):
        with tempfile.TemporaryDirectory() as folder:
            for part in ("lib", "include"):
                Path(folder, part).mkdir()
            Path(folder, "build-version").write_text("1.13.0\n")
            result = run(SCRIPTS / "libtorch", env=dict(os.environ, LIBTORCH=folder))
        self.assertEqual(result.returncode, 1)
        self.assertIn("version 1.13.0; 2.11.0 is needed", result.stderr)

    def test_the_layout_is_of_the_version_that_tch_binds(self):
        manifest = (SCRIPTS.parent / "Cargo.toml").read_text()
        self.assertIn('tch = "0.24', manifest)
        self.assertEqual(load("libtorch").VERSION, "2.11.0")
        image = (SCRIPTS.parent / "deploy" / "Dockerfile.worker").read_text()
        self.assertEqual(set(re.findall(r"(?:libtorch-|torch==)([\d.]+\d)", image)), {"2.11.0"})

    def test_a_library_that_is_no_onnx_runtime_is_named(self):
        result = run(SCRIPTS / "onnxruntime", env=dict(os.environ, ORT_DYLIB_PATH="/nowhere/lib.so"))
        self.assertEqual(result.returncode, 1)
        self.assertIn("/nowhere/lib.so is no ONNX Runtime", result.stderr)

    def test_the_image_has_the_onnx_runtime_of_the_script(self):
        image = (SCRIPTS.parent / "deploy" / "Dockerfile.worker").read_text()
        found = set(re.findall(r"onnxruntime-([\d.]+\d)", image))
        self.assertEqual(found, {load("onnxruntime").VERSION})

    def test_an_environment_without_coremltools_is_named(self):
        result = run(SCRIPTS / "coreml-env", env=dict(os.environ, TEMPONAS_COREML_PYTHON="/nowhere/python"))
        self.assertEqual(result.returncode, 1)
        self.assertIn("TEMPONAS_COREML_PYTHON is /nowhere/python, which cannot import coremltools", result.stderr)

    def test_an_environment_without_vbench_is_named(self):
        result = run(SCRIPTS / "vbench-env", env=dict(os.environ, TEMPONAS_VBENCH_PYTHON="/nowhere/python"))
        self.assertEqual(result.returncode, 1)
        self.assertIn("TEMPONAS_VBENCH_PYTHON is /nowhere/python, which cannot import vbench", result.stderr)

    def test_what_images_copy_is_there(self):
        root = SCRIPTS.parent
        ignored = (root / ".dockerignore").read_text().split()
        for file in sorted((root / "deploy").glob("Dockerfile.*")):
            copied = re.findall(r"^COPY (?!--from)(.+) \S+$", file.read_text(), re.MULTILINE)
            self.assertNotEqual(copied, [])
            for path in " ".join(copied).split():
                self.assertTrue((root / path).exists(), f"{file.name} copies {path}, which is not there")
                self.assertNotIn(path, ignored)

    def test_missing_prerequisites_are_named_with_a_command(self):
        with tempfile.TemporaryDirectory() as folder:
            for tool in ("sed", "cut", "dirname", "id"):
                Path(folder, tool).symlink_to(shutil.which(tool))
            result = run("/bin/sh", SCRIPTS / "prerequisites", env={"PATH": folder})
        self.assertEqual(result.returncode, 1)
        for what in ("Rust", "Python 3 with pip", "Node", "a C++ compiler", "make"):
            self.assertIn(f"missing: {what}", result.stderr)
        self.assertEqual(result.stderr.count("install it with: "), 5)

    def test_a_layout_appears_whole_or_not_at_all(self):
        cache = load("cache.py")
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / "thing-1"
            with self.assertRaises(ValueError), cache.appearing(folder) as (_, layout):
                (layout / "half").write_text("")
                raise ValueError
            self.assertEqual(list(Path(parent).iterdir()), [])
            with cache.appearing(folder) as (_, layout):
                (layout / "whole").write_text("")
            self.assertEqual([path.name for path in Path(parent).iterdir()], ["thing-1"])


class Ffmpeg(unittest.TestCase):
    def program(self, folder, said):
        program = Path(folder) / "ffmpeg"
        program.write_text(f"#!/bin/sh\necho '{said}'\n")
        program.chmod(0o755)
        return program

    def find(self, folder, **settings):
        environment = {"PATH": str(folder), "TEMPONAS_CACHE": str(folder), **settings}
        return run(sys.executable, SCRIPTS / "ffmpeg", env=environment)

    def test_a_program_is_usable_from_5_1_on(self):
        ffmpeg = load("ffmpeg")
        with tempfile.TemporaryDirectory() as folder:
            for said, usable in [
                ("ffmpeg version 5.1.6-0+deb12u1 Copyright", True),
                ("ffmpeg version n9.0.2-17-g2a571b6068-20260930 Copyright", True),
                ("ffmpeg version N-109542-g1bf1715 Copyright", True),
                ("ffmpeg version 4.4.2 Copyright", False),
                ("something else", False),
            ]:
                self.assertEqual(ffmpeg.is_usable(str(self.program(folder, said))), usable, said)
            self.assertFalse(ffmpeg.is_usable(str(Path(folder) / "missing")))

    def test_the_named_one_comes_before_the_one_on_path(self):
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
            on_path, named = (self.program(folder, "ffmpeg version 7.1") for folder in (one, other))
            self.assertEqual(self.find(one).stdout.strip(), str(on_path))
            self.assertEqual(self.find(one, TEMPONAS_FFMPEG=str(named)).stdout.strip(), str(named))
            result = self.find(one, TEMPONAS_FFMPEG="/nowhere")
        self.assertEqual(result.returncode, 1)
        self.assertIn("TEMPONAS_FFMPEG is /nowhere", result.stderr)

    def test_only_the_program_and_its_licence_have_a_place(self):
        place = load("ffmpeg").place
        self.assertEqual(place("imageio_ffmpeg/binaries/ffmpeg-linux-x86_64-v9.0.2"), "ffmpeg")
        self.assertEqual(place("imageio_ffmpeg-0.8.1.dist-info/licenses/LICENSE"), "LICENSE")
        self.assertIsNone(place("imageio_ffmpeg/binaries/README.md"))


class ClipVocabulary(unittest.TestCase):
    def test_only_the_published_file_is_taken_as_there(self):
        script = load("clip-vocabulary")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / script.NAME
            self.assertFalse(script.is_whole(file))
            file.write_bytes(b"cut")
            self.assertFalse(script.is_whole(file))

    def test_an_argument_is_refused(self):
        result = run(SCRIPTS / "clip-vocabulary", "somewhere")
        self.assertEqual(result.returncode, 1)
        self.assertIn("takes no arguments", result.stderr)


class Parity(unittest.TestCase):
    def test_packages_are_pinned(self):
        parity = load("parity")
        for package in [*parity.PACKAGES, parity.TORCH]:
            self.assertRegex(package, r"^[a-z0-9-]+==[\d.]+$")

    def test_a_program_is_asked_for(self):
        result = run(SCRIPTS / "parity")
        self.assertEqual(result.returncode, 1)
        self.assertIn("takes the path of temponas-worker", result.stderr)

    def test_peers_that_are_there_are_not_fetched_again(self):
        parity = load("parity")
        with tempfile.TemporaryDirectory() as cache:
            python = Path(cache) / f"parity-peers-{parity.LAYOUT}" / "bin" / "python"
            python.parent.mkdir(parents=True)
            # It has the peers, and shows what it is asked to run.
            python.write_text('#!/bin/sh\n[ "$1" = -c ] || echo "$@" offline=$HF_HUB_OFFLINE scratch=$TMPDIR\n')
            python.chmod(0o755)
            environment = {k: v for k, v in os.environ.items() if k != "TMPDIR"}
            result = run(SCRIPTS / "parity", "worker", "--only", "vae", env=dict(environment, TEMPONAS_CACHE=cache))
        script = SCRIPTS / "parity_compare.py"
        self.assertEqual(result.stdout, f"-B {script} worker --only vae offline=1 scratch={cache}\n", result.stderr)


class DataEmoji(unittest.TestCase):
    def run_with(self, cache, npm):
        """The script with an `npm` of our own and nothing else on PATH."""
        tools = Path(cache) / "tools"
        tools.mkdir(exist_ok=True)
        if npm:
            (tools / "npm").write_text("#!/bin/sh\n" + npm)
            (tools / "npm").chmod(0o755)
        environment = dict(os.environ, TEMPONAS_CACHE=str(cache), PATH=str(tools))
        return run(sys.executable, SCRIPTS / "data-emoji", env=environment)

    def test_only_clips_and_names_have_a_place(self):
        place = load("data-emoji").place
        self.assertEqual(place("package/assets/1f44b.webp"), "clips/1f44b.webp")
        self.assertEqual(place("package/en/data.json"), "names.json")
        for other in ("package/assets/../../evil.webp", "package/assets/.gitkeep", "package/de/data.json"):
            self.assertIsNone(place(other), other)

    def test_another_package_than_the_pinned_one_is_refused(self):
        with tempfile.TemporaryDirectory() as cache:
            # npm pack --loglevel=error --pack-destination FOLDER PACKAGE
            result = self.run_with(cache, 'echo altered > "$4/package.tgz"')
            self.assertEqual(result.returncode, 1)
            self.assertRegex(result.stderr, r"fluent-emoji-anim-1@1.0.0 has digest sha512-\S+, expected is sha512-/4m31v")
            self.assertFalse((Path(cache) / "emoji-1.0.0").exists())

    def test_missing_npm_is_named(self):
        with tempfile.TemporaryDirectory() as cache:
            self.assertIn("npm is missing", self.run_with(cache, None).stderr)

    def test_what_is_there_is_not_fetched_again(self):
        with tempfile.TemporaryDirectory() as cache:
            folder = Path(cache) / "emoji-1.0.0"
            (folder / "clips").mkdir(parents=True)
            for name in ("NOTICE", "names.json"):
                (folder / name).write_text("")
            result = self.run_with(cache, "exit 1")
            self.assertEqual((result.returncode, result.stdout.strip()), (0, str(folder)), result.stderr)


if __name__ == "__main__":
    unittest.main()
