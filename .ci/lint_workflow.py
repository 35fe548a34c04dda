"""`snakemake --lint`, failing on everything but what this workflow does on purpose."""

import re
import subprocess
import sys

ON_PURPOSE = (
    "Specify a conda environment",  # one pip environment for all rules, made by the Makefile
    "directly uses variable sys ",  # the interpreter: the same as Snakemake's, wherever that is
    "directly uses variable SCRIPTS ",  # where the scripts lie must not re-run anything
    "directly uses variable RUNTIME ",  # device, threads and log level must not re-run anything
)

answer = subprocess.run([sys.executable, "-m", "snakemake", "--lint", "text"], capture_output=True, text=True)
text = answer.stdout + answer.stderr
titles = re.findall(r"^    \* (.*):$", text, re.MULTILINE)
if not titles:  # it always finds at least the first of the above
    sys.exit(f"snakemake --lint did not run:\n{text}")
problems = [title for title in titles if not any(known in title for known in ON_PURPOSE)]
if problems:
    sys.exit("\n".join(problems))
