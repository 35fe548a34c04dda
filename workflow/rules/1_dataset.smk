# Stage 1: validate a capture; cameras, masks, box, undistorted images, visual hulls.


rule dataset:
    input:
        every_sequence(AT.manifest),


rule dataset_sequence:
    input:
        capture_files,
    output:
        AT.manifest,
    log:
        f"{LOGS}/1_dataset.log",
    benchmark:
        f"{LOGS}/1_dataset.tsv"
    threads: 2
    resources:
        mem_mb=memory_mb(3000, images_of=lambda settings: 1),
        runtime=minutes(20, per_image=0.005),
    params:
        reads=reads("dataset"),
        config=command("dataset"),
        version=layout.STAGE_VERSION["dataset"],
        listing=capture_digest,
    shell:
        "exec {sys.executable:q} {SCRIPTS:q}/dataset.py --sequence {wildcards.sequence} --threads {threads}"
        " --config {params.config:q} --runtime {RUNTIME:q} > {log:q} 2>&1"
