# One target for each slide, to type `snakemake slide_S01`; only where one is typed, as thousands of rules take memory.
if workflow.is_main_process and any("slide_" in argument for argument in sys.argv):
    for slide in SLIDES:

        rule:
            name:
                f"slide_{slide}"
            input:
                f"results/{slide}/ki67.json",


# All slides without the cohort, to type `snakemake slides`, in parts where they are very many: --batch slides=1/10.
rule slides:
    input:
        lambda wildcards: expand("results/{slide}/page.json", slide=SLIDES),
