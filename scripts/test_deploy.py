"""Tests of deploy/: run with `python3 -m unittest discover -s scripts -p 'test_*.py'`.

That the programs know every flag and variable named there is tested beside their command lines.
"""

import re
import subprocess
import unittest
from pathlib import Path

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"

# What the batch script asks of Slurm: options of sbatch(1) with the form of their values.
SBATCH = {
    "job-name": r"[\w-]+",
    "nodes": r"\d+",
    "ntasks-per-node": r"\d+",
    "gpus-per-task": r"\d+",
    "cpus-per-task": r"\d+",
    "mem-per-gpu": r"\d+[KMGT]",
    "time": r"(\d+-)?\d+:\d\d:\d\d",
    "signal": r"([BR]+:)?[A-Z0-9]+@\d+",
    "requeue": None,
    "open-mode": r"append|truncate",
    "output": r"\S*%j\S*",
}


class Slurm(unittest.TestCase):
    script = DEPLOY / "slurm" / "worker.sbatch"

    def test_the_shell_reads_it_and_what_it_runs(self):
        text = self.script.read_text()
        subprocess.run(["bash", "-n", self.script], check=True)
        inner = re.search(r"bash -c '\n(.*)\n'", text, re.DOTALL).group(1)
        subprocess.run(["bash", "-n", "-c", inner], check=True)

    def test_every_line_for_slurm_is_one_and_stands_before_the_first_command(self):
        lines = self.script.read_text().splitlines()
        self.assertEqual(lines[0], "#!/bin/bash")
        first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
        asked = [(i, line) for i, line in enumerate(lines) if line.startswith("#SBATCH")]
        self.assertTrue(asked)
        for at, line in asked:
            self.assertLess(at, first, f"{line}: Slurm reads no further than the first command")
            found = re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line)
            self.assertIsNotNone(found, line)
            name, value = found.groups()
            self.assertIn(name, SBATCH, line)
            form = SBATCH[name]
            self.assertTrue(value is None if form is None else re.fullmatch(form, value or ""), line)

    def test_without_an_address_or_a_token_it_says_so(self):
        for settings, missing in [({}, "TEMPONAS_SERVER"), ({"TEMPONAS_SERVER": "http://x"}, "TEMPONAS_TOKEN_FILE")]:
            result = subprocess.run(
                ["bash", self.script], env={"PATH": "/nowhere", **settings}, executable="/bin/bash", capture_output=True, text=True
            )
            self.assertNotEqual(result.returncode, 0)
            self.assertIn(missing, result.stderr)


class Kubernetes(unittest.TestCase):
    def test_what_is_referred_to_is_there(self):
        text = "\n".join(file.read_text() for file in sorted((DEPLOY / "kubernetes").glob("*.yaml")))
        names = set(re.findall(r"^  name: (\S+)$", text, re.MULTILINE))
        self.assertIn("temponas-coordinator", names)
        hosts = set(re.findall(r"(?:http://|@)(temponas-[a-z]+):", text))
        self.assertEqual(hosts, {"temponas-coordinator", "temponas-postgres"})
        self.assertLessEqual(hosts, names)
        secrets = set(re.findall(r"secretKeyRef: \{name: (\S+),", text))
        # This one is made by hand, as coordinator.yaml says.
        self.assertIn("secret generic temponas-tokens", text)
        self.assertEqual(secrets - names, {"temponas-tokens"})


if __name__ == "__main__":
    unittest.main()
