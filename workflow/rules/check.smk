rule check:
    input:
        he=slide_file("he"),
        ki67=slide_file("ki67"),
    output:
        check="results/{slide}/check.json",
        tissue_he="results/{slide}/tissue_he.png",
        tissue_ki67="results/{slide}/tissue_ki67.png",
        thumbnail_he="results/{slide}/thumbnail_he.jpg",
        thumbnail_ki67="results/{slide}/thumbnail_ki67.jpg",
    log:
        "logs/check/{slide}.log",
    benchmark:
        "logs/check/{slide}.tsv"
    conda:
        "../../envs/registration.yaml"
    container:
        SETTINGS["containers"]["registration"]
    threads: 1
    resources:
        mem_mb=by_size(2000, per_gb=1000),
        runtime=by_size(20, per_gb=10),
    params:
        files=slide_paths,
        mpp=of_row("mpp"),
        state=files_state,
        settings=SETTINGS["check"],
        code=code("check.py"),
    script:
        "../scripts/check.py"
