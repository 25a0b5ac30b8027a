"""Ki-67 index of whole slides: from a sample sheet of H&E and Ki-67 slides to one trustworthy number a slide."""

from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version

min_version("9.27")

# Not workflow.source_path: that is a temporary copy, which jobs on other nodes do not see.
FOLDER = workflow.current_basedir.get_path_or_uri(secret_free=True)
if not Path(FOLDER).is_dir():
    raise WorkflowError(
        f"{FOLDER or 'the Snakefile'} is no folder of this machine, and the rules import a package that lies beside them; "
        "clone the repository and name the Snakefile of the clone (see docs/quick_start.md)"
    )


configfile: f"{FOLDER}/config/config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/check.smk"
include: "workflow/rules/tumor.smk"
include: "workflow/rules/register.smk"
include: "workflow/rules/transfer.smk"
include: "workflow/rules/nuclei.smk"
include: "workflow/rules/index.smk"
include: "workflow/rules/cohort.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/predict.smk"


rule all:
    default_target: True
    input:
        cohort_files,


include: "workflow/rules/targets.smk"
