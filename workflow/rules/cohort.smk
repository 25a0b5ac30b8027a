rule cohort:
    input:
        indices=expand("results/{slide}/ki67.json", slide=SLIDES),
        predictions=predictions,
    output:
        cohort=report(
            "results/cohort/cohort.csv",
            caption="../report/cohort.rst",
            category="Cohort",
            labels={"table": "slides"},
        ),
        patients=report(
            "results/cohort/patients.csv",
            caption="../report/patients.rst",
            category="Cohort",
            labels={"table": "patients"},
        ),
        store=directory("results/cohort/cohort.zarr"),
        overview=report(
            "results/cohort/overview.png",
            caption="../report/overview.rst",
            category="Cohort",
            labels={"table": "overview"},
        ),
        agreement=report(
            "results/cohort/agreement.csv",
            caption="../report/agreement.rst",
            category="Cohort",
            labels={"table": "agreement with readers"},
        ),
        agreement_record="results/cohort/agreement.json",
        agreement_picture=report(
            "results/cohort/agreement.png",
            caption="../report/agreement_picture.rst",
            category="Cohort",
            labels={"table": "agreement, picture"},
        ),
    log:
        "logs/cohort/cohort.log",
    benchmark:
        "logs/cohort/cohort.tsv"
    conda:
        "../../envs/report.yaml"
    container:
        SETTINGS["containers"]["report"]
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: (2000 + len(SLIDES) // 2) * attempt,
        runtime=60,
    params:
        slides=list(SLIDES),
        marker=SETTINGS["marker"]["name"],
        settings=SETTINGS["index"],
        code=code("cohort.py"),
    script:
        "../scripts/cohort.py"
