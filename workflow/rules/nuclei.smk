rule nuclei:
    input:
        check="results/{slide}/check.json",
        tumor="results/{slide}/tumor_ki67.ome.zarr",
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
    threads: network_threads()
    resources:
        mem_mb=by_size(3000, per_gb=2000, per_thread=700),
        runtime=by_size(60, per_gb=120),
        gpu=gpus_wanted(),
        copy_slide=int(SETTINGS["copy_slides"]),
    params:
        ki67=slide_file("ki67"),
        settings=network_settings("nuclei"),
        beside_weights=beside_weights(nuclei_model()),
        code=code("nuclei.py"),
    script:
        "../scripts/nuclei.py"
