# The built-in capture, written in the capture format and then read like any other; named by what determines its content.


rule synthetic_capture:
    output:
        f"{RESULTS}/synthetic-{{digest}}/transforms.json",
    log:
        f"{RESULTS}/logs/synthetic-{{digest}}.log",
    benchmark:
        f"{RESULTS}/logs/synthetic-{{digest}}.tsv"
    resources:
        mem_mb=1000,
        runtime=20,
    params:
        config=lambda wildcards: json.dumps(schema.beyond_defaults(layout.stage_values(SYNTHETIC[wildcards.digest], "synthetic"))),
        version=layout.STAGE_VERSION["synthetic"],
        sequence=lambda wildcards: SYNTHETIC[wildcards.digest].sequence,
    shell:
        "exec {sys.executable:q} {SCRIPTS:q}/synthetic.py --sequence {params.sequence} --threads {threads}"
        " --config {params.config:q} --runtime {RUNTIME:q} > {log:q} 2>&1"
