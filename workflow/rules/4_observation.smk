# Stage 4: evidence of the live surface, a batch of frames per job; batches are independent.


rule observation:
    input:
        [batch for sequence in SEQUENCES for batch in every_batch(sequence)],


rule observation_batch:
    input:
        manifest=AT.manifest,
        meshes=given_meshes,
    output:
        AT.observation_batch("{batch}"),
    log:
        f"{LOGS}/4_observation.{{batch}}.log",
    benchmark:
        f"{LOGS}/4_observation.{{batch}}.tsv"
    resources:
        gpu=gpus,
        mem_mb=memory_mb(3000, images_of=lambda settings: 1),
        runtime=minutes(120),
    params:
        reads=reads("observation"),
        config=command("observation"),
        version=layout.STAGE_VERSION["observation"],
    shell:
        "exec {sys.executable:q} {SCRIPTS:q}/observation.py --sequence {wildcards.sequence} --part {wildcards.batch} --threads {threads}"
        " --config {params.config:q} --runtime {RUNTIME:q} > {log:q} 2>&1"
