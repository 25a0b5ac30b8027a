rule nuclei:
    input:
        check="results/{slide}/check.json",
        tumor="results/{slide}/tumor_ki67.ome.zarr",
        ki67=slide_file("ki67"),
        model=same_for_all(nuclei_model_file),
    output:
        **kept_probabilities(),
        nuclei="results/{slide}/nuclei.parquet",
        geojson="results/{slide}/nuclei.geojson.gz",
        record="results/{slide}/nuclei.json",
    log:
        "logs/nuclei/{slide}.log",
    benchmark:
        "logs/nuclei/{slide}.tsv"
    conda:
        "../../envs/torch.yaml"
    container:
        SETTINGS["containers"]["torch"]
    threads: 8
    resources:
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=480,
        gpu=gpus_wanted(),
    params:
        settings=network_settings("nuclei"),
        beside_weights=beside_weights(nuclei_model()),
        code=code("nuclei.py"),
    script:
        "../scripts/nuclei.py"
