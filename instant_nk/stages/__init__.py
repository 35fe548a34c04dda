"""One module per stage, `run(job)`, and the other commands; files in, files out (docs/contracts.md)."""
