# Instant-NK: calibrated multi-view video in, one tracked animated mesh out.
#   snakemake --cores 2                                          the built-in capture
#   snakemake --cores 2 --config capture=PATH sequence=NAME      your own
#   snakemake --cores 2 field                                    up to one stage
from snakemake.utils import min_version

min_version("9.3")


configfile: f"{workflow.basedir}/config/config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/0_synthetic.smk"
include: "workflow/rules/1_dataset.smk"
include: "workflow/rules/2_canonical.smk"
include: "workflow/rules/3_graph.smk"
include: "workflow/rules/4_observation.smk"
include: "workflow/rules/5_registration.smk"
include: "workflow/rules/6_field.smk"
include: "workflow/rules/7_mesh.smk"
include: "workflow/rules/8_report.smk"


rule all:
    default_target: True
    input:
        rules.report.input,


onstart:
    or_stop(take_results)


onsuccess:
    say_what_changed_meanwhile()


onerror:
    say_what_failed()
    say_what_changed_meanwhile()
