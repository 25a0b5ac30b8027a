rule tumor:
    input:
        check="results/{slide}/check.json",
        tissue="results/{slide}/tissue_he.png",
        thumbnail="results/{slide}/thumbnail_he.jpg",
        roi=region_file("he"),
        model=same_for_all(tumor_model_file("he")),
        coarse_model=same_for_all(tumor_model_file("he_coarse")),
    output:
        tumor=tumor_zarr("results/{slide}/tumor_he.ome.zarr"),
        outlines="results/{slide}/tumor_he.geojson",
        picture=report(
            "results/{slide}/tumor_he.png",
            caption="../report/tumor.rst",
            category="Slides",
            subcategory="{slide}",
            labels={"picture": "tumour on the H&E"},
        ),
        record="results/{slide}/tumor_he.json",
    log:
        "logs/tumor/{slide}.log",
    benchmark:
        "logs/tumor/{slide}.tsv"
    conda:
        "../../envs/torch.yaml"
    container:
        SETTINGS["containers"]["torch"]
    threads: network_threads()
    resources:
        mem_mb=by_size(3000, per_gb=1000, per_thread=600),
        runtime=by_size(60, per_gb=60),
        gpu=gpus_wanted(),
        copy_slide=int(SETTINGS["copy_slides"]),
    params:
        he=slide_file("he"),
        regions=has_regions("he"),
        settings=network_settings("tumor"),
        beside_weights=beside_weights(tumor_model("he"), tumor_model("he_coarse")),
        keep_probability=SETTINGS["keep"] == "probabilities",
        # Another way to draw pictures is no reason to run a network again.
        code=code("tumor.py", without=("figures",)),
    script:
        "../scripts/tumor.py"
