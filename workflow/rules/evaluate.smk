# Accuracy on annotated images: a folder a dataset and method, and one table of all.


rule evaluate_nuclei:
    input:
        description=lambda wildcards: f"{evaluation_folder(wildcards.dataset)}/dataset.yaml",
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
        method="|".join(NUCLEI_MODELS),
    conda:
        "../../envs/torch.yaml"
    threads: 8
    resources:
        mem_mb=8000,
        runtime=120,
        gpu=gpus_wanted(),
    params:
        settings=lambda wildcards: SETTINGS["network"] | {"changes": SETTINGS["evaluate"]["nuclei"]["changes"]},
        code=lambda wildcards: code_of("evaluate_nuclei.py"),
    script:
        "../scripts/evaluate_nuclei.py"


rule evaluate:
    input:
        records=evaluation_records,
    output:
        table="evaluation/nuclei/accuracy.md",
    log:
        "logs/evaluate.log",
    conda:
        "../../envs/torch.yaml"
    params:
        code=lambda wildcards: code_of("evaluate.py"),
    script:
        "../scripts/evaluate.py"
