# A training that was stopped goes on from training/<network>/checkpoint.* (.pt or .npz), which is no output, so that it stays.


rule draw_fields:
    input:
        teacher=teacher_file,
    output:
        fields=directory("training/drawn/{network}"),
    log:
        "logs/draw_fields/{network}.log",
    benchmark:
        "logs/draw_fields/{network}.tsv"
    wildcard_constraints:
        network="|".join(FIELD_KINDS),
    conda:
        "../../envs/torch.yaml"
    container:
        SETTINGS["containers"]["torch"]
    threads: 8
    resources:
        mem_mb=8000,
        runtime=120,
    params:
        drawn=lambda wildcards: SETTINGS["train"][wildcards.network]["drawn"],
        kind=lambda wildcards: FIELD_KINDS[wildcards.network],
    script:
        "../scripts/draw_fields.py"


rule train:
    input:
        datasets=training_datasets,
        encoder=encoder_file,
        start=start_file,
    output:
        weights="training/{network}/weights.safetensors",
        ranges="training/{network}/int8.safetensors",
        model="training/{network}/model.json",
        card="training/{network}/card.md",
        scores="training/{network}/scores.json",
        curve="training/{network}/curve.png",
    log:
        "logs/train/{network}.log",
    benchmark:
        "logs/train/{network}.tsv"
    wildcard_constraints:
        network="|".join(PIXEL_NETWORKS),
    conda:
        "../../envs/torch.yaml"
    container:
        SETTINGS["containers"]["torch"]
    threads: 16
    resources:
        mem_mb=16000,
        runtime=1440,
        gpu=gpus_wanted(),
    params:
        settings=lambda wildcards: training_settings(wildcards.network),
        code=code("train.py"),
    script:
        "../scripts/train.py"


use rule train as train_patches with:
    output:
        weights="training/{network}/weights.safetensors",
        model="training/{network}/model.json",
        card="training/{network}/card.md",
        scores="training/{network}/scores.json",
        curve="training/{network}/curve.png",
    wildcard_constraints:
        network="|".join(PATCH_NETWORKS),


rule train_forest:
    input:
        datasets=training_datasets,
    output:
        forest="training/nuclei_forest/forest.safetensors",
        model="training/nuclei_forest/model.json",
        card="training/nuclei_forest/card.md",
    log:
        "logs/train/nuclei_forest.log",
    benchmark:
        "logs/train/nuclei_forest.tsv"
    conda:
        "../../envs/torch.yaml"
    container:
        SETTINGS["containers"]["torch"]
    threads: 8
    resources:
        mem_mb=8000,
        runtime=240,
    params:
        trees=SETTINGS["train"]["nuclei_forest"]["trees"],
        code=code("train_forest.py"),
    script:
        "../scripts/train_forest.py"


rule train_stardist:
    input:
        datasets=lambda wildcards: training_datasets({"network": "stardist"}),
    output:
        weights="training/stardist/weights_best.h5",
        config="training/stardist/config.json",
        thresholds="training/stardist/thresholds.json",
        model="training/stardist/model.json",
        card="training/stardist/card.md",
        scores="training/stardist/scores.json",
        curve="training/stardist/curve.png",
    log:
        "logs/train/stardist.log",
    benchmark:
        "logs/train/stardist.tsv"
    conda:
        "../../envs/tensorflow.yaml"
    container:
        SETTINGS["containers"]["tensorflow"]
    threads: 16
    resources:
        mem_mb=16000,
        runtime=1440,
        gpu=stardist_gpus(),
    params:
        settings=stardist_training_settings(),
        code=code("train_stardist.py"),
    script:
        "../scripts/train_stardist.py"


rule train_tumor_he:
    input:
        "training/tumor_he/weights.safetensors",


rule train_tumor_he_coarse:
    input:
        "training/tumor_he_coarse/weights.safetensors",


rule train_tumor_ki67:
    input:
        "training/tumor_ki67/weights.safetensors",


rule train_tumor:
    input:
        rules.train_tumor_he.input,
        rules.train_tumor_he_coarse.input,
        rules.train_tumor_ki67.input,


rule train_tumor_he_patches:
    input:
        "training/tumor_he_patches/weights.safetensors",


rule train_tumor_ki67_patches:
    input:
        "training/tumor_ki67_patches/weights.safetensors",


rule train_nuclei:
    input:
        "training/nuclei/weights.safetensors",


rule train_nuclei_resnet50:
    input:
        "training/nuclei_resnet50/weights.safetensors",


rule train_nuclei_forest:
    input:
        "training/nuclei_forest/forest.safetensors",
