rule index:
    input:
        check="results/{slide}/check.json",
        tumor="results/{slide}/tumor_he.json",
        register="results/{slide}/transform.json",
        transfer="results/{slide}/transfer.json",
        nuclei="results/{slide}/nuclei.json",
        second_opinion=asked_often(second_opinion_file),
        table="results/{slide}/nuclei.parquet",
        tumor_he="results/{slide}/tumor_he.ome.zarr",
        tumor_ki67="results/{slide}/tumor_ki67.ome.zarr",
    output:
        index="results/{slide}/ki67.json",
        # Its root stands for the whole store: Snakemake leaves a file of its own in folders that are outputs.
        store="results/{slide}/ki67.zarr/zarr.json",
        overlay=report(
            "results/{slide}/overlay.png",
            caption="../report/overlay.rst",
            category="Slides",
            subcategory="{slide}",
            labels={"picture": "tumour and nuclei"},
        ),
        fields=report(
            "results/{slide}/fields.png",
            caption="../report/fields.rst",
            category="Slides",
            subcategory="{slide}",
            labels={"picture": "counted nuclei"},
        ),
        local_index=report(
            "results/{slide}/local_index.png",
            caption="../report/local_index.rst",
            category="Slides",
            subcategory="{slide}",
            labels={"picture": "local index and hot spots"},
        ),
        hot_spots="results/{slide}/hot_spots.geojson",
    log:
        "logs/index/{slide}.log",
    benchmark:
        "logs/index/{slide}.tsv"
    conda:
        "../../envs/report.yaml"
    container:
        SETTINGS["containers"]["report"]
    threads: 1
    resources:
        mem_mb=by_size(3000, per_gb=2000),
        runtime=by_size(30, per_gb=20),
    params:
        he=slide_file("he"),
        ki67=slide_file("ki67"),
        patient=of_row("patient"),
        references=of_row("references"),
        marker=SETTINGS["marker"]["name"],
        settings=SETTINGS["index"],
        code=code("index.py"),
    script:
        "../scripts/index.py"
