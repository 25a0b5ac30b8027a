# The index from H&E alone: patches of registered pairs of slides.


rule pairs:
    input:
        check="results/{slide}/check.json",
        tumor="results/{slide}/tumor_he.ome.zarr",
        transform="results/{slide}/transform.json",
        nuclei="results/{slide}/nuclei.parquet",
        index="results/{slide}/ki67.json",
        he=slide_file("he"),
        ki67=slide_file("ki67"),
    output:
        pairs=directory("results/{slide}/pairs.zarr"),
        record="results/{slide}/pairs.json",
        picture=report(
            "results/{slide}/pairs.png",
            caption="../report/pairs.rst",
            category="Slides",
            subcategory="{slide}",
            labels={"picture": "patch pairs"},
        ),
    log:
        "logs/pairs/{slide}.log",
    benchmark:
        "logs/pairs/{slide}.tsv"
    conda:
        "../../envs/report.yaml"
    container:
        SETTINGS["containers"]["report"]
    threads: 1
    resources:
        mem_mb=by_size(2000, per_gb=1000),
        runtime=by_size(30, per_gb=20),
    params:
        patient=of_row("patient"),
        marker=SETTINGS["marker"]["name"],
        settings=SETTINGS["predict"]["pairs"],
        code=code("pairs.py"),
    script:
        "../scripts/pairs.py"


# The pairs of all slides, to type `snakemake predict_pairs`.
rule predict_pairs:
    input:
        pair_records,
