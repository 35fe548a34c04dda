# Stage 2: the neural SDF and colour of the canonical frame, and its surface.


rule canonical:
    input:
        every_sequence(AT.canonical_mesh),


rule canonical_sequence:
    input:
        manifest=AT.manifest,
        mesh=given_mesh,
    output:
        field=AT.canonical_field,
        mesh=AT.canonical_mesh,
    log:
        f"{LOGS}/2_canonical.log",
    benchmark:
        f"{LOGS}/2_canonical.tsv"
    threads: CORES
    resources:
        gpu=gpus,
        mem_mb=memory_mb(6000, images_of=lambda settings: 1),
        runtime=minutes(120),
    params:
        reads=reads("canonical"),
        config=command("canonical"),
        version=layout.STAGE_VERSION["canonical"],
    shell:
        "exec {sys.executable:q} {SCRIPTS:q}/canonical.py --sequence {wildcards.sequence} --threads {threads}"
        " --config {params.config:q} --runtime {RUNTIME:q} > {log:q} 2>&1"
