# Accuracy on annotated images: files a dataset and a method or network, and a table of all.


rule evaluate_nuclei:
    input:
        description=lambda wildcards: f"{evaluation_folder(wildcards.dataset, 'nuclei')}/dataset.yaml",
        model=lambda wildcards: model_file(NUCLEI_MODELS[wildcards.method]) if NUCLEI_MODELS[wildcards.method] else [],
    output:
        record="evaluation/nuclei/{method}/{dataset}.json",
        best="evaluation/nuclei/{method}/{dataset}_best.png",
        median="evaluation/nuclei/{method}/{dataset}_median.png",
        worst="evaluation/nuclei/{method}/{dataset}_worst.png",
    log:
        "logs/evaluate_nuclei/{method}_{dataset}.log",
    benchmark:
        "logs/evaluate_nuclei/{method}_{dataset}.tsv"
    wildcard_constraints:
        method="|".join(method for method in NUCLEI_MODELS if method != "stardist"),
    conda:
        "../../envs/torch.yaml"
    container:
        SETTINGS["containers"]["torch"]
    threads: 8
    resources:
        mem_mb=8000,
        runtime=120,
        gpu=gpus_wanted(),
    params:
        settings=lambda wildcards: SETTINGS["network"] | {"changes": SETTINGS["evaluate"]["nuclei"]["changes"]},
        code=code("evaluate_nuclei.py"),
    script:
        "../scripts/evaluate_nuclei.py"


rule evaluate_stardist:
    input:
        description=lambda wildcards: f"{evaluation_folder(wildcards.dataset, 'nuclei')}/dataset.yaml",
        model=lambda wildcards: model_file("stardist"),
    output:
        record="evaluation/nuclei/stardist/{dataset}.json",
        best="evaluation/nuclei/stardist/{dataset}_best.png",
        median="evaluation/nuclei/stardist/{dataset}_median.png",
        worst="evaluation/nuclei/stardist/{dataset}_worst.png",
    log:
        "logs/evaluate_nuclei/stardist_{dataset}.log",
    benchmark:
        "logs/evaluate_nuclei/stardist_{dataset}.tsv"
    conda:
        "../../envs/tensorflow.yaml"
    container:
        SETTINGS["containers"]["tensorflow"]
    threads: 8
    resources:
        mem_mb=8000,
        runtime=120,
        gpu=stardist_gpus(),
    params:
        settings=lambda wildcards: stardist_settings("method") | {"changes": SETTINGS["evaluate"]["nuclei"]["changes"]},
        code=code("evaluate_stardist.py"),
    script:
        "../scripts/evaluate_stardist.py"


rule evaluate_tumor:
    input:
        description=lambda wildcards: f"{evaluation_folder(wildcards.dataset, 'tumor')}/dataset.yaml",
        model=lambda wildcards: model_file(wildcards.model),
        # Networks answer as in the workflow: that for H&E with the coarser one, that for Ki-67 with the one for nuclei.
        coarse_model=lambda wildcards: (
            tumor_model_file("he_coarse")(wildcards) if wildcards.model == tumor_model("he") else []
        ),
        nuclei_model=lambda wildcards: (
            tumor_model_file("ki67_nuclei")(wildcards) if wildcards.model == tumor_model("ki67") else []
        ),
    output:
        record="evaluation/tumor/{model}/{dataset}.json",
        roc="evaluation/tumor/{model}/{dataset}_roc.png",
        best="evaluation/tumor/{model}/{dataset}_best.png",
        median="evaluation/tumor/{model}/{dataset}_median.png",
        worst="evaluation/tumor/{model}/{dataset}_worst.png",
    log:
        "logs/evaluate_tumor/{model}_{dataset}.log",
    benchmark:
        "logs/evaluate_tumor/{model}_{dataset}.tsv"
    wildcard_constraints:
        model="|".join(EVALUATED_TUMOR_MODELS),
    conda:
        "../../envs/torch.yaml"
    container:
        SETTINGS["containers"]["torch"]
    threads: 8
    resources:
        mem_mb=8000,
        runtime=120,
        gpu=gpus_wanted(),
    params:
        settings=lambda wildcards: network_settings("tumor"),
        code=code("evaluate_tumor.py"),
    script:
        "../scripts/evaluate_tumor.py"


rule accuracy_table:
    input:
        records=lambda wildcards: evaluation_records(wildcards.kind),
    output:
        table="evaluation/{kind}/accuracy.md",
    log:
        "logs/evaluate_{kind}.log",
    wildcard_constraints:
        kind="nuclei|tumor",
    conda:
        "../../envs/torch.yaml"
    container:
        SETTINGS["containers"]["torch"]
    params:
        code=code("evaluate.py"),
    script:
        "../scripts/evaluate.py"


rule evaluate:
    input:
        evaluation_tables,
