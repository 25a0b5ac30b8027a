rule register:
    input:
        check="results/{slide}/check.json",
        tissue_he="results/{slide}/tissue_he.png",
        tissue_ki67="results/{slide}/tissue_ki67.png",
    output:
        transform="results/{slide}/transform.json",
        itk="results/{slide}/transform.tfm",
        itk_volume="results/{slide}/transform_3d.tfm",
        picture=report(
            "results/{slide}/registration.png",
            caption="../report/registration.rst",
            category="Slides",
            subcategory="{slide}",
            labels={"picture": "registration"},
        ),
    log:
        "logs/register/{slide}.log",
    benchmark:
        "logs/register/{slide}.tsv"
    conda:
        "../../envs/registration.yaml"
    container:
        SETTINGS["containers"]["registration"]
    threads: 2
    resources:
        mem_mb=by_size(3000, per_gb=1000),
        runtime=by_size(30, per_gb=20),
    params:
        he=slide_file("he"),
        ki67=slide_file("ki67"),
        settings=SETTINGS["register"],
        code=code("register.py"),
    script:
        "../scripts/register.py"
