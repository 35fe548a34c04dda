"""`snakemake --lint`, failing on everything but what this workflow does on purpose."""

import json
import subprocess
import sys

ON_PURPOSE = (
    "Specify a conda environment",  # one pip environment for all rules, made by the Makefile
    "directly uses variable sys",  # the interpreter: the same as Snakemake's, wherever that is
    "directly uses variable SCRIPTS",  # where the scripts lie must not re-run anything
    "directly uses variable RUNTIME",  # device, threads and log level must not re-run anything
)

answer = subprocess.run([sys.executable, "-m", "snakemake", "--lint", "json"], capture_output=True, text=True)
try:
    found = json.loads(answer.stdout)
except ValueError:
    sys.exit(answer.stdout + answer.stderr)
problems = [(rule["for"], lint) for rule in found for lint in rule["lints"] if not any(known in lint["title"] for known in ON_PURPOSE)]
for where, lint in problems:
    print(f"{where}: {lint['title']}\n  {lint['body']}")
sys.exit(bool(problems))
