# Stage 5: the nodes' motion over the sequence; one resumable job.


rule registration:
    input:
        every_sequence(AT.motion),


rule registration_sequence:
    input:
        manifest=AT.manifest,
        mesh=AT.canonical_mesh,
        graph=AT.graph,
        observations=registration_evidence,
        motion=given_motion,
    output:
        AT.motion,
    log:
        f"{LOGS}/5_registration.log",
    benchmark:
        f"{LOGS}/5_registration.tsv"
    threads: 2
    resources:
        gpu=gpus,
        mem_mb=memory_mb(4000, images_of=lambda settings: 1),
        runtime=minutes(60, per_frame=1),
    params:
        reads=reads("registration"),
        config=command("registration"),
        version=layout.STAGE_VERSION["registration"],
    shell:
        "exec {sys.executable:q} {SCRIPTS:q}/registration.py --sequence {wildcards.sequence} --threads {threads}"
        " --config {params.config:q} --runtime {RUNTIME:q} > {log:q} 2>&1"
