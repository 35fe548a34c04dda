# Stage 3: the nodes of the deformation graph, and how they hold the canonical mesh.


rule graph:
    input:
        every_sequence(AT.graph),


rule graph_sequence:
    input:
        manifest=AT.manifest,
        mesh=AT.canonical_mesh,
        nodes=given_nodes,
    output:
        AT.graph,
    log:
        f"{LOGS}/3_graph.log",
    benchmark:
        f"{LOGS}/3_graph.tsv"
    resources:
        mem_mb=memory_mb(3000),
        runtime=minutes(30),
    params:
        reads=reads("graph"),
        config=command("graph"),
        version=layout.STAGE_VERSION["graph"],
    shell:
        "exec {sys.executable:q} {SCRIPTS:q}/graph.py --sequence {wildcards.sequence} --threads {threads}"
        " --config {params.config:q} --runtime {RUNTIME:q} > {log:q} 2>&1"
