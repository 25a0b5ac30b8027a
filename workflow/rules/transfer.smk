rule transfer:
    input:
        check="results/{slide}/check.json",
        tissue="results/{slide}/tissue_ki67.png",
        thumbnail="results/{slide}/thumbnail_ki67.jpg",
        transform="results/{slide}/transform.json",
        tumor_he="results/{slide}/tumor_he.ome.zarr",
        tumor_he_record="results/{slide}/tumor_he.json",
        roi=region_file("ki67"),
        model=same_for_all(tumor_model_file("ki67")),
        nuclei_model=same_for_all(tumor_model_file("ki67_nuclei")),
    output:
        tumor=tumor_zarr("results/{slide}/tumor_ki67.ome.zarr"),
        outlines="results/{slide}/tumor_ki67.geojson",
        picture=report(
            "results/{slide}/tumor_ki67.png",
            caption="../report/tumor.rst",
            category="Slides",
            subcategory="{slide}",
            labels={"picture": "tumour on the Ki-67 slide"},
        ),
        record="results/{slide}/transfer.json",
    log:
        "logs/transfer/{slide}.log",
    benchmark:
        "logs/transfer/{slide}.tsv"
    conda:
        "../../envs/torch.yaml"
    container:
        SETTINGS["containers"]["torch"]
    threads: network_threads()
    resources:
        # Without an H&E that fits, two networks look at the Ki-67 slide.
        mem_mb=by_size(3000, per_gb=2000, per_thread=700),
        runtime=by_size(60, per_gb=120),
        gpu=gpus_wanted(),
        copy_slide=int(SETTINGS["copy_slides"]),
    params:
        ki67=slide_file("ki67"),
        regions=has_regions("ki67"),
        settings=network_settings("tumor"),
        beside_weights=beside_weights(tumor_model("ki67"), tumor_model("ki67_nuclei")),
        keep_probability=SETTINGS["keep"] == "probabilities",
        # Another way to draw pictures is no reason to run a network again.
        code=code("transfer.py", without=("figures",)),
    script:
        "../scripts/transfer.py"
