# Stage 8: metrics, pictures, videos and the page that shows them.


rule report:
    input:
        every_sequence(AT.report_page),


rule report_sequence:
    input:
        manifest=AT.manifest,
        canonical=AT.canonical_field,
        mesh=AT.canonical_mesh,
        graph=AT.graph,
        motion=AT.motion,
        fields=lambda wildcards: every_field(wildcards.sequence),
        animation=lambda wildcards: mesh_of(wildcards.sequence),
    output:
        page=AT.report_page,
        metrics=AT.metrics,
    log:
        f"{LOGS}/8_report.log",
    benchmark:
        f"{LOGS}/8_report.tsv"
    threads: CORES
    resources:
        gpu=gpus,
        mem_mb=memory_mb(4000, images_of=lambda settings: 1, per_frame=animation_mb),
        runtime=minutes(60, per_frame=1),
    params:
        reads=reads("report"),
        config=command("report"),
        version=layout.STAGE_VERSION["report"],
    shell:
        "exec {sys.executable:q} {SCRIPTS:q}/report.py --sequence {wildcards.sequence} --threads {threads}"
        " --config {params.config:q} --runtime {RUNTIME:q} > {log:q} 2>&1"
