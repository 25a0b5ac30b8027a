# The index from H&E alone: patches of registered pairs of slides, models that learn from them, and what they say.


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


rule predict_train_model:
    input:
        **prediction_inputs(),
        pairs=learned_pairs,
    output:
        folds=expand("prediction/{{method}}/fold_{fold}.safetensors", fold=range(1, SETTINGS["predict"]["folds"] + 1)),
        training="prediction/{method}/training.safetensors",
        slides="prediction/{method}/out_of_fold.csv",
        patches="prediction/{method}/out_of_fold_patches.parquet",
        model="prediction/{method}/model.json",
    log:
        "logs/predict/train_{method}.log",
    benchmark:
        "logs/predict/train_{method}.tsv"
    wildcard_constraints:
        method="|".join(PREDICTION_METHODS),
    conda:
        "../../envs/torch.yaml"
    container:
        SETTINGS["containers"]["torch"]
    threads: 8
    resources:
        mem_mb=lambda wildcards, threads, attempt: round(
            (4000 + 2 * pixels_of_pairs_mb() + 1500 * min(threads, SETTINGS["predict"]["folds"])) * attempt
        ),
        runtime=lambda wildcards, attempt: (1440 if wildcards.method in PREDICTION_NETWORKS else 240) * attempt,
        gpu=lambda wildcards: gpus_wanted() if wildcards.method in PREDICTION_NETWORKS else 0,
    params:
        settings=lambda wildcards: prediction_settings(wildcards.method),
        code=code("predict_train.py"),
    script:
        "../scripts/predict_train.py"


rule predict_evaluate_model:
    input:
        model=prediction_model,
    output:
        record="prediction/{method}/evaluation.json",
        table="prediction/{method}/evaluation.md",
        slides=report(
            "prediction/{method}/evaluation_slides.png",
            caption="../report/prediction.rst",
            category="Predicted from H&E alone",
            labels={"picture": "slides, {method}"},
        ),
        patches="prediction/{method}/evaluation_patches.png",
        correlations="prediction/{method}/evaluation_correlations.png",
    log:
        "logs/predict/evaluate_{method}.log",
    benchmark:
        "logs/predict/evaluate_{method}.tsv"
    wildcard_constraints:
        method="|".join(PREDICTION_METHODS),
    conda:
        "../../envs/torch.yaml"
    container:
        SETTINGS["containers"]["torch"]
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: (3000 + len(SLIDES) // 2) * attempt,
        runtime=60,
    params:
        settings=SETTINGS["index"],
        code=code("predict_evaluate.py"),
    script:
        "../scripts/predict_evaluate.py"


rule predict:
    input:
        **prediction_inputs(),
        model=prediction_model,
        pairs="results/{slide}/pairs.zarr",
    output:
        prediction="results/{slide}/prediction.json",
    log:
        "logs/predict/{slide}.log",
    benchmark:
        "logs/predict/{slide}.tsv"
    conda:
        "../../envs/torch.yaml"
    container:
        SETTINGS["containers"]["torch"]
    threads: 1
    resources:
        mem_mb=by_size(4000, per_gb=0),
        runtime=by_size(30, per_gb=0),
    params:
        settings=lambda wildcards: prediction_settings(prediction_method()),
        code=code("predict.py"),
    script:
        "../scripts/predict.py"


# The models of predict.method, to type `snakemake predict_train`, and how good they are, to type `snakemake predict_evaluate`.
rule predict_train:
    input:
        lambda wildcards: f"prediction/{prediction_method()}/model.json",


rule predict_evaluate:
    input:
        lambda wildcards: f"prediction/{prediction_method()}/evaluation.json",
