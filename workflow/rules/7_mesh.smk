# Stage 7: the canonical vertices at every frame: a job per window, then one that joins the windows and exports.


rule mesh:
    input:
        [mesh_of(sequence) for sequence in SEQUENCES],


rule mesh_window:
    input:
        manifest=AT.manifest,
        canonical=AT.canonical_field,
        mesh=AT.canonical_mesh,
        graph=AT.graph,
        motion=AT.motion,
        field=AT.field("{window}"),
    output:
        AT.mesh_window("{window}"),
    log:
        f"{LOGS}/7_mesh.{{window}}.log",
    benchmark:
        f"{LOGS}/7_mesh.{{window}}.tsv"
    resources:
        gpu=gpus,
        mem_mb=memory_mb(4000),
        runtime=minutes(60),
    params:
        reads=reads("mesh"),
        config=command("mesh"),
        version=layout.STAGE_VERSION["mesh"],
    shell:
        "exec {sys.executable:q} {SCRIPTS:q}/mesh.py --sequence {wildcards.sequence} --part {wildcards.window} --threads {threads}"
        " --config {params.config:q} --runtime {RUNTIME:q} > {log:q} 2>&1"


rule mesh_windows:  # a long capture: several windows per job
    input:
        manifest=AT.manifest,
        canonical=AT.canonical_field,
        mesh=AT.canonical_mesh,
        graph=AT.graph,
        motion=AT.motion,
        fields=AT.field_span("{span}"),
    output:
        AT.mesh_span("{span}"),
    log:
        f"{LOGS}/7_mesh.{{span}}.log",
    benchmark:
        f"{LOGS}/7_mesh.{{span}}.tsv"
    resources:
        gpu=gpus,
        mem_mb=memory_mb(4000),
        runtime=span_minutes(15),
    params:
        reads=reads("mesh"),
        config=command("mesh"),
        version=layout.STAGE_VERSION["mesh"],
        windows=windows_in,
    shell:
        "exec {sys.executable:q} {SCRIPTS:q}/mesh.py --sequence {wildcards.sequence} --threads {threads}"
        " --part {params.windows} --done {output:q} --made-from {input:q}"
        " --config {params.config:q} --runtime {RUNTIME:q} > {log:q} 2>&1"


rule mesh_join:
    input:
        manifest=AT.manifest,
        mesh=AT.canonical_mesh,
        motion=AT.motion,
        windows=lambda wildcards: every_carried(wildcards.sequence),
    output:
        AT.animation,
    log:
        f"{LOGS}/7_mesh.log",
    benchmark:
        f"{LOGS}/7_mesh.tsv"
    resources:
        gpu=lambda wildcards: 0 if config_of(wildcards).mesh.texture == "vertex" else gpus(wildcards),  # the texture is baked on it
        mem_mb=joining_mb,
        runtime=baking_minutes,
    params:
        reads=reads("mesh"),
        config=command("mesh"),
        version=layout.STAGE_VERSION["mesh"],
    shell:
        "exec {sys.executable:q} {SCRIPTS:q}/mesh.py --sequence {wildcards.sequence} --threads {threads}"
        " --config {params.config:q} --runtime {RUNTIME:q} > {log:q} 2>&1"


use rule mesh_join as mesh_surfaces with:  # in modes of field.dyna_mode that do not track: a surface per frame and no animation
    output:
        AT.surfaces,
    resources:  # nothing is baked, and one window is held at a time
        mem_mb=memory_mb(3000),
        runtime=minutes(30, per_frame=0.1),
