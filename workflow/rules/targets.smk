# One target for each slide, to type `snakemake slide_S01`. Jobs do not need them, and parsing thousands of rules takes long.
if workflow.is_main_process:
    for slide in SLIDES:

        rule:
            name:
                f"slide_{slide}"
            input:
                f"results/{slide}/ki67.json",
