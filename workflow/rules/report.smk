rule page:
    input:
        check="results/{slide}/check.json",
        transform="results/{slide}/transform.json",
        thumbnail_he="results/{slide}/thumbnail_he.jpg",
        thumbnail_ki67="results/{slide}/thumbnail_ki67.jpg",
        tumor_he="results/{slide}/tumor_he.geojson",
        tumor_ki67="results/{slide}/tumor_ki67.geojson",
        tumor_mask="results/{slide}/tumor_ki67.ome.zarr",
        nuclei="results/{slide}/nuclei.parquet",
        hot_spots="results/{slide}/hot_spots.geojson",
        ki67=slide_file("ki67"),
    output:
        page="results/{slide}/page.json",
    log:
        "logs/page/{slide}.log",
    benchmark:
        "logs/page/{slide}.tsv"
    conda:
        "../../envs/report.yaml"
    container:
        SETTINGS["containers"]["report"]
    threads: 1
    resources:
        mem_mb=by_size(2000, per_gb=1000),
        runtime=by_size(20, per_gb=10),
    params:
        code=code("page.py"),
    script:
        "../scripts/page.py"


rule report:
    input:
        indices=expand("results/{slide}/ki67.json", slide=SLIDES),
        pages=expand("results/{slide}/page.json", slide=SLIDES),
        agreement="results/cohort/agreement.json",
        evaluation=prediction_evaluation,
        predictions=predictions,
    output:
        **slide_pages_folder(),
        report=report(
            "results/cohort/report.html",
            caption="../report/report.rst",
            category="Cohort",
            labels={"table": "interactive report"},
        ),
    log:
        "logs/report/report.log",
    benchmark:
        "logs/report/report.tsv"
    conda:
        "../../envs/report.yaml"
    container:
        SETTINGS["containers"]["report"]
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: (2000 + len(SLIDES) // 2) * attempt,
        runtime=60,
    params:
        marker=SETTINGS["marker"]["name"],
        settings=SETTINGS["index"],
        template=template_digest(),
        code=code("report.py"),
    script:
        "../scripts/report.py"
