# Nuclei by the method of the settings. StarDist is of TensorFlow, which needs a software stack of its own; it looks for the
# nuclei of the index, or beside another method as a second opinion.


rule second_opinion:
    input:
        check="results/{slide}/check.json",
        tumor="results/{slide}/tumor_ki67.ome.zarr",
        model=same_for_all(lambda wildcards: model_file("stardist")),
    output:
        nuclei="results/{slide}/second_opinion.parquet",
        geojson="results/{slide}/second_opinion.geojson.gz",
        record="results/{slide}/second_opinion.json",
    log:
        "logs/second_opinion/{slide}.log",
    benchmark:
        "logs/second_opinion/{slide}.tsv"
    conda:
        "../../envs/tensorflow.yaml"
    container:
        SETTINGS["containers"]["tensorflow"]
    threads: network_threads()
    resources:
        mem_mb=by_size(4000, per_gb=2000, per_thread=1200),
        runtime=by_size(60, per_gb=240),
        gpu=stardist_gpus(),
        copy_slide=int(SETTINGS["copy_slides"]),
    params:
        ki67=slide_file("ki67"),
        settings=stardist_settings("second_opinion"),
        beside_weights=beside_weights("stardist"),
        code=code("stardist.py"),
    script:
        "../scripts/stardist.py"


if SETTINGS["nuclei"]["method"] == "stardist":

    use rule second_opinion as nuclei with:
        output:
            **kept_probabilities(),
            nuclei="results/{slide}/nuclei.parquet",
            geojson="results/{slide}/nuclei.geojson.gz",
            record="results/{slide}/nuclei.json",
        log:
            "logs/nuclei/{slide}.log",
        benchmark:
            "logs/nuclei/{slide}.tsv"
        params:
            ki67=slide_file("ki67"),
            settings=stardist_settings("method"),
            beside_weights=beside_weights("stardist"),
            code=code("stardist.py"),

else:

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
            settings=nuclei_settings(),
            beside_weights=beside_weights(nuclei_model()),
            code=code("nuclei.py"),
        script:
            "../scripts/nuclei.py"
