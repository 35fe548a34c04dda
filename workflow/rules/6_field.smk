# Stage 6: the residual field of a window; windows are independent and may run side by side.


rule field:
    input:
        [done for sequence in SEQUENCES for done in every_field(sequence)],


rule field_window:
    input:
        manifest=AT.manifest,
        canonical=AT.canonical_field,
        mesh=AT.canonical_mesh,
        graph=AT.graph,
        motion=AT.motion,
    output:
        AT.field("{window}"),
    log:
        f"{LOGS}/6_field.{{window}}.log",
    benchmark:
        f"{LOGS}/6_field.{{window}}.tsv"
    resources:
        gpu=gpus,
        mem_mb=memory_mb(4000, images_of=lambda settings: settings.field.window_frames),
        runtime=minutes(240),
    params:
        reads=reads("field"),
        config=command("field"),
        version=layout.STAGE_VERSION["field"],
    shell:
        "exec {sys.executable:q} {SCRIPTS:q}/field.py --sequence {wildcards.sequence} --part {wildcards.window} --threads {threads}"
        " --config {params.config:q} --runtime {RUNTIME:q} > {log:q} 2>&1"


rule field_windows:  # a long capture: several windows per job, so that it does not spend its time starting processes
    input:
        manifest=AT.manifest,
        canonical=AT.canonical_field,
        mesh=AT.canonical_mesh,
        graph=AT.graph,
        motion=AT.motion,
    output:
        AT.field_span("{span}"),
    log:
        f"{LOGS}/6_field.{{span}}.log",
    benchmark:
        f"{LOGS}/6_field.{{span}}.tsv"
    resources:
        gpu=gpus,
        mem_mb=memory_mb(4000, images_of=lambda settings: settings.field.window_frames),
        runtime=span_minutes(60),
    params:
        reads=reads("field"),
        config=command("field"),
        version=layout.STAGE_VERSION["field"],
        windows=windows_in,
    shell:
        "exec {sys.executable:q} {SCRIPTS:q}/field.py --sequence {wildcards.sequence} --threads {threads}"
        " --part {params.windows} --done {output:q} --made-from {input:q}"
        " --config {params.config:q} --runtime {RUNTIME:q} > {log:q} 2>&1"
