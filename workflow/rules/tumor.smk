rule tumor:
    input:
        check="results/{slide}/check.json",
        tissue="results/{slide}/tissue_he.png",
        thumbnail="results/{slide}/thumbnail_he.jpg",
        he=slide_file("he"),
        roi=region_file("he"),
        model=tumor_model_file("he"),
        coarse_model=tumor_model_file("he_coarse"),
        ranges=tumor_ranges_file("he", "he_coarse"),
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
    threads: network_threads()
    resources:
        mem_mb=by_size(3000, per_gb=1000, per_thread=600),
        runtime=by_size(60, per_gb=60),
        gpu=gpus_wanted(),
        copy_slide=int(SETTINGS["copy_slides"]),
    params:
        regions=lambda wildcards: "he" in slide_row(wildcards).regions,
        settings=network_settings("tumor"),
        keep_probability=SETTINGS["keep"] == "probabilities",
        # Another way to draw pictures is no reason to run a network again.
        code=lambda wildcards: code_of("tumor.py", without=("figures",)),
    script:
        "../scripts/tumor.py"
