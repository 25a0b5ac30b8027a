"""What the rules share: the checked settings and sample sheet, and where the files of a slide are."""

import gc
import hashlib
import inspect
import json
import math
import os
import sys
from functools import cache
from pathlib import Path

import yaml
from snakemake.exceptions import WorkflowError
from snakemake_interface_executor_plugins.settings import DeploymentMethod

from ki67.devices import gpu_names
from ki67.errors import ConfigError, Ki67Error
from ki67.preflight import check_dates, check_weights, check_writable, date_back
from ki67.provenance import code_digest
from ki67.report import MOST_SLIDES_IN_ONE_FILE, PAGES_FOLDER, template_digest
from ki67.sheet import (
    SlideRow,
    check_settings,
    decode_sheet,
    missing_file_sentence,
    read_rows,
    with_defaults,
)
from ki67.tumor_methods import MODELS as TUMOR_MODELS

# Everything that comes with the workflow is found from this file, so that it can run with --directory or as a module.
ROOT = Path(workflow.current_basedir.get_path_or_uri(secret_free=True)).resolve().parents[1]

# More threads on one slide wait for each other.
MOST_THREADS = 8

# Model of each way to find nuclei, as in ki67/detection.py, which takes seconds to import.
NUCLEI_MODELS = {
    "unet_resnet34": "nuclei",
    "unet_resnet50": "nuclei_resnet50",
    "color_threshold": None,
    "random_forest": "nuclei_forest",
    "stardist": "stardist",
}
EVALUATED_TUMOR_MODELS = ("tumor_he", "tumor_he_coarse", "tumor_ki67", "tumor_he_patches", "tumor_ki67_patches")
MODEL_FILES = {"nuclei_forest": "forest.safetensors", "stardist": "weights_best.h5"}
# What lies beside weights and decides on results. The last two are of StarDist, whose own folders have no digest of the weights.
BESIDE_WEIGHTS = ("int8.safetensors", "familiar.json", "review.json", "thresholds.json", "weights_best.h5")
# What the fields of each model show.
FIELD_KINDS = {
    "tumor_he": "tumor_he",
    "tumor_start": "tumor_he",
    "tumor_he_coarse": "tumor_he",
    "tumor_ki67": "tumor_ki67",
    "tumor_he_patches": "tumor_he",
    "tumor_ki67_patches": "tumor_ki67",
    "nuclei": "nuclei",
    "nuclei_teacher": "nuclei",
    "nuclei_resnet50": "nuclei",
    "nuclei_forest": "nuclei",
    "stardist": "nuclei",
}
# Ways to predict the index from H&E, those of them that are networks, and the fewest patients to learn from, as in
# ki67/prediction/methods.py and splits.py, which take seconds to import.
PREDICTION_METHODS = ("forest", "resnet18", "vit_b16", "cyclegan", "mean_pooling", "attention")
PREDICTION_NETWORKS = ("resnet18", "vit_b16", "cyclegan")
FEWEST_PATIENTS = 10
# Networks that give one answer a patch, and do not compute in 8-bit integers; and those that give one a pixel.
PATCH_NETWORKS = ("tumor_he_patches", "tumor_ki67_patches")
PIXEL_NETWORKS = tuple(name for name in FIELD_KINDS if name not in (*PATCH_NETWORKS, *MODEL_FILES))


def load_yaml(path: str) -> dict:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def load_settings() -> dict:
    """The settings with the defaults for what they lack; in the main process only, they are checked as well."""
    settings = with_defaults(config, load_yaml("config/config.yaml"))
    if workflow.is_main_process:
        check_settings(settings, load_yaml("workflow/schemas/config.schema.yaml"))
    return settings


def find_sheet(name: str) -> Path:
    """The sample sheet as seen from the working directory, else from the folder of the workflow."""
    for path in (Path(name), ROOT / name):
        if path.is_file():
            return path
    raise ConfigError(f"there is no sample sheet {name}; set slides to the path of one (--config slides=PATH)")


def load_slides() -> dict[str, SlideRow]:
    schema = load_yaml("workflow/schemas/slides.schema.yaml")
    text = decode_sheet(SHEET.read_bytes(), name=SHEET_NAME)
    rows = read_rows(text, schema, name=SHEET_NAME, check=workflow.is_main_process)
    return {row.slide: row for row in rows}


@cache
def located(path: str | None) -> str | None:
    """A file of the sheet: relative paths count from the sheet's folder, or else from the working directory."""
    candidates = (SHEET.parent / path, Path(path)) if path else ()
    for candidate in candidates:
        if candidate.is_file():
            return os.path.relpath(candidate) if not Path(path).is_absolute() else path
    return None


def check_all_present() -> None:
    """With ``on_missing: stop``, a file that is absent stops the run before any job."""
    for row in SLIDES.values():
        columns = row.files | {f"roi_{stain}": path for stain, path in row.regions.items()}
        for column, path in columns.items():
            if located(path) is None:
                raise ConfigError(missing_file_sentence(row, column, path, name=SHEET_NAME))


def check_images() -> None:
    """Where --sdm names apptainer alone, jobs without an image would run outside of any, and find no library there."""
    methods = {*SETTINGS["nuclei"].values(), *SETTINGS["evaluate"]["nuclei"]["methods"]}
    unused = set() if "stardist" in methods else {"tensorflow"}
    missing = [name for name, image in SETTINGS["containers"].items() if image is None and name not in unused]
    if workflow.deployment_settings.deployment_method == {DeploymentMethod.APPTAINER} and missing:
        raise ConfigError(
            f"--sdm apptainer needs an image of every software stack in use, and containers.{missing[0]} names none; set "
            "containers (see docs/deployment.md), or leave --sdm apptainer out"
        )


def slide_row(wildcards) -> SlideRow:
    if wildcards.slide not in SLIDES:
        raise WorkflowError(f"there is no slide {wildcards.slide} in {SHEET_NAME}")
    return SLIDES[wildcards.slide]


def asked_often(function):
    """A function of each slide that keeps its signature: Snakemake asks for it at every call, a tenth of a plan's time."""
    function.__signature__ = inspect.signature(function)
    return function


def of_row(name: str):
    """A field of the slide's row as a param."""
    return asked_often(lambda wildcards: getattr(slide_row(wildcards), name))


def slide_file(stain: str):
    """The slide's file where it exists. An absent one is no input, so that the slide becomes a flagged row.

    An input of ``check`` alone: what follows runs anew as the record of the check does, and has the file as a param. So
    a slide that goes during the run fails its own job, where as an input it would end the run.
    """
    return asked_often(lambda wildcards: located(slide_row(wildcards).files.get(stain)) or [])


@asked_often
def slide_paths(wildcards) -> dict[str, str]:
    """Path of every file that the row names, be it there or not."""
    return {stain: located(path) or path for stain, path in slide_row(wildcards).files.items()}


def region_file(stain: str):
    return asked_often(lambda wildcards: located(slide_row(wildcards).regions.get(stain)) or [])


def has_regions(stain: str):
    return asked_often(lambda wildcards: stain in slide_row(wildcards).regions)


@asked_often
def files_state(wildcards) -> str:
    """What tells that a slide was replaced by an older one: its size, and names, sizes and times of its further files.

    A newer one is told by its date; the content would take too long.
    """
    files = [file for file in map(located, slide_row(wildcards).files.values()) if file]
    sizes = [os.path.getsize(file) for file in files]
    several = [file for file in files if is_multi_file(file)]
    if not several:
        return " ".join(map(str, sizes))
    found = [companion for file in several for companion in companions(file)]
    states = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in found]
    return hashlib.sha256(repr((sizes, states)).encode()).hexdigest()[:16]


def same_for_all(function):
    """The value of an input function that is the same for every slide, so that thousands of jobs do not ask for it again.

    Where there is none (a network is still to be trained), the function itself, which says why if it is ever asked.
    """
    try:
        return function(None)
    except WorkflowError:
        return function


def code(script: str, **options):
    """The digest of a script's code as a param; the job of one rule asks for no other's."""
    return code_of(script, **options) if workflow.is_main_process else lambda wildcards: code_of(script, **options)


def is_multi_file(path: str) -> bool:
    return Path(path).suffix.lower() in {".mrxs", ".vms", ".vmu", ".dcm"}


@cache
def companions(path: str) -> list[Path]:
    from ki67.slides import companion_files  # slow to import, and few cohorts have such slides

    return companion_files(path)


@cache
def code_of(script: str, without: tuple[str, ...] = ()) -> str:
    """Digest of a script and all modules of ki67/ it can import: a change in one of them is a reason to run again."""
    return code_digest(ROOT / "workflow" / "scripts" / script, ROOT, without=without)


def model_file(network: str) -> str | list:
    """model.json of a network; it holds the digest of the weights, so that its content stands for both. Where StarDist itself
    wrote a folder, config.json.

    None is no file. A bare name is a folder of resources/models, anything with a slash a folder seen from the working directory. The
    latter is made absolute, as a relative one would tie scoring to the rules that train.
    """
    name = SETTINGS["models"][network]
    if name is None:
        return []
    shipped = ROOT / "resources" / "models" / name
    folder = os.path.relpath(shipped) if Path(name).name == name else os.path.abspath(name)
    # A folder that StarDist itself wrote says what it is in another file.
    foreign = network == "stardist" and not os.path.isfile(f"{folder}/model.json")
    described = "config.json" if foreign else "model.json"
    for file in (described, MODEL_FILES.get(network, "weights.safetensors")):
        if not os.path.isfile(f"{folder}/{file}"):
            raise WorkflowError(
                f"models.{network} is {name}, but {folder} holds no {file}; name a folder of resources/models or train "
                f"one with: snakemake train_{network}"
            )
    return f"{folder}/{described}"


def nuclei_model() -> str | None:
    """The key in ``models`` of what the method of finding nuclei needs; None is nothing."""
    return NUCLEI_MODELS[SETTINGS["nuclei"]["method"]]


def nuclei_model_file(wildcards) -> str | list:
    return model_file(nuclei_model()) if nuclei_model() else []


def tumor_model(stain: str) -> str | None:
    """The key in ``models`` of what the method of finding tumour needs; None is nothing. ``stain``: as in ``TumorModels``."""
    return getattr(TUMOR_MODELS[SETTINGS["tumor"]["method"]], stain)


def tumor_model_file(stain: str):
    return lambda wildcards: model_file(tumor_model(stain)) if tumor_model(stain) else []


def beside_weights(*networks: str | None):
    """Digest of what lies beside the weights of networks and decides on their answers: the ranges of activations, which
    decide in 8-bit integers, what a network was trained on, how its nuclei are reviewed, and thresholds.

    No input files, of which each would be asked for by thousands of jobs.
    """

    def digest(wildcards) -> str:
        found = hashlib.sha256()
        for folder in (os.path.dirname(model_file(network)) for network in networks if network and model_file(network)):
            for name in BESIDE_WEIGHTS:
                path = Path(folder, name)
                found.update(path.read_bytes() if path.is_file() else b"none")
        return found.hexdigest()[:16]

    return same_for_all(digest)


def tumor_zarr(path: str):
    """A tumour mask on disk; with ``keep: tables`` it goes when the last stage has read it."""
    return temp(directory(path)) if SETTINGS["keep"] == "tables" else directory(path)


def kept_probabilities() -> dict:
    """With ``keep: probabilities``, where those of the nuclei go."""
    kept = SETTINGS["keep"] == "probabilities"
    return {"probabilities": directory("results/{slide}/nuclei_probabilities.ome.zarr")} if kept else {}


def check_before_jobs() -> None:
    """What would fail in every slide is found before the first job."""
    check_writable(Path("results"))
    check_dates({slide: filter(None, map(located, row.files.values())) for slide, row in SLIDES.items()})
    opinion = NUCLEI_MODELS.get(SETTINGS["nuclei"]["second_opinion"])
    scoring = [nuclei_model(), opinion, *(tumor_model(stain) for stain in ("he", "he_coarse", "ki67", "ki67_nuclei"))]
    for network in filter(None, scoring):
        try:
            model = model_file(network)
        except WorkflowError:  # it is still to be trained; if not, the rule that needs it says so
            continue
        if network == "stardist":
            from ki67.stardist_model import read_star_spec  # NumPy takes longer to import than most plans need

            read_star_spec(Path(model).parent)
        elif model:
            check_weights(Path(model), MODEL_FILES.get(network, "weights.safetensors"))


def network_settings(section: str) -> dict:
    return SETTINGS[section] | SETTINGS["network"]


def nuclei_settings(role: str = "method") -> dict:
    """What the nuclei depend on, by ``nuclei.method`` or ``nuclei.second_opinion``: the other is no reason to look again."""
    return {role: SETTINGS["nuclei"][role]} | SETTINGS["network"]


def stardist_settings(role: str) -> dict:
    """TensorFlow from PyPI computes on a processor, so only device: cuda asks for a GPU that it must then be able to use."""
    wanted = SETTINGS["network"]["device"]
    return nuclei_settings(role) | {"device": "cpu" if wanted == "auto" else wanted}


def stardist_gpus() -> int:
    return int(SETTINGS["network"]["device"].startswith("cuda"))


def second_opinion_file(wildcards) -> str | list:
    """The record of a second opinion, where there is to be one."""
    asked = SETTINGS["nuclei"]["second_opinion"] != "none"
    return f"results/{wildcards.slide}/second_opinion.json" if asked else []


def check_second_opinion() -> None:
    """Another method than that of the index is asked, or none."""
    method = SETTINGS["nuclei"]["method"]
    if SETTINGS["nuclei"]["second_opinion"] == method:
        raise ConfigError(
            f"nuclei.second_opinion is {method}, and so is nuclei.method; set one of them to another method, or "
            "nuclei.second_opinion to none"
        )


def gpus_wanted() -> int:
    """How many GPUs a job with a network asks for, one where the settings or this machine have any."""
    if SETTINGS["network"]["device"] == "auto":
        return int(bool(gpu_names()))
    return int(SETTINGS["network"]["device"] != "cpu")


def network_threads() -> int:
    """Threads of a job with a network: the cores are shared among the jobs that can run beside each other.

    These are as many as there are GPUs, and without a GPU as there are slides, up to four: a core does more for another
    slide than as a further thread on the same one. On a cluster a job has the threads that the profile sets.
    """
    cores = workflow.resource_settings.cores or MOST_THREADS
    if gpus_wanted():
        share = cores // max(1, len(gpu_names()))
    else:
        share = math.ceil(cores / max(1, min(len(SLIDES), 4)))
    return max(1, min(MOST_THREADS, share))


@cache
def slide_gb(slide: str) -> float:
    """Size of the files of a slide in GB, with all parts of those that consist of many; 0 for what is not there."""
    files = [file for path in SLIDES[slide].files.values() if (file := located(path))]
    parts = [companion for file in files if is_multi_file(file) for companion in companions(file)]
    return sum(os.stat(file).st_size for file in (*files, *parts)) / 1e9


def by_size(least: int, per_gb: int, per_thread: int = 0):
    """A resource that grows with the slide and with the attempt: memory in MB or time in minutes.

    Compressed slides at 40x have 200 to 300 mm² a GB. The figures in the rules are several times what docs/benchmarks.md
    measured, as nothing is gained by asking for little and failing.
    """
    return asked_often(
        lambda wildcards, threads, attempt: round(
            (least + per_gb * slide_gb(wildcards.slide) + per_thread * threads) * attempt
        )
    )


def training_datasets(wildcards) -> list[str]:
    """Folders a network learns from: those of the settings, and the fields the project draws."""
    network = wildcards.get("network", "nuclei_forest")
    settings = SETTINGS["train"][network]
    for folder in settings["datasets"]:
        if not os.path.isfile(f"{folder}/dataset.yaml"):
            raise WorkflowError(f"train.{network}.datasets names {folder}, which holds no dataset.yaml")
    drawn = [f"training/drawn/{network}"] if settings["drawn"]["count"] else []
    return [*settings["datasets"], *drawn]


def training_settings(network: str) -> dict:
    settings = SETTINGS["train"][network]
    keys = ("encoder_weights", "steps", "batch_size", "learning_rate", "patches_per_slide", "mixed_share", "threshold")
    return {key: settings[key] for key in keys if key in settings} | {
        "dataset_shares": settings["shares"],
        "start_from": settings["start_from"] or "",
        "device": SETTINGS["network"]["device"],
    }


def stardist_training_settings() -> dict:
    settings = SETTINGS["train"]["stardist"]
    device = {"device": stardist_settings("method")["device"]}
    return {key: settings[key] for key in ("steps", "batch_size", "learning_rate")} | device


def encoder_file(wildcards) -> list[str]:
    """The file the encoder starts from, which another training may have to write first."""
    source = SETTINGS["train"][wildcards.network]["encoder_weights"]
    return [] if source in ("imagenet", "none") else [source]


def start_file(wildcards) -> list[str]:
    """The network that a training goes on from, which another training may have to write first."""
    folder = SETTINGS["train"][wildcards.network]["start_from"]
    return [f"{folder}/weights.safetensors"] if folder else []


def teacher_file(wildcards) -> list[str]:
    """The network that finds the nuclei of re-stained tissue, which another training may have to write first."""
    folder = SETTINGS["train"][wildcards.network]["drawn"]["teacher"]
    return [f"{folder}/weights.safetensors"] if folder else []


def evaluation_folder(dataset: str, kind: str) -> str:
    """Folder of a dataset to evaluate nuclei or tumour on, by its name."""
    for folder in SETTINGS["evaluate"][kind]["datasets"]:
        if Path(folder).name == dataset:
            return folder
    raise WorkflowError(f"evaluate.{kind}.datasets names no folder called {dataset}")


def evaluation_tables(wildcards) -> list[str]:
    kinds = [kind for kind in ("nuclei", "tumor") if SETTINGS["evaluate"][kind]["datasets"]]
    if not kinds:
        raise WorkflowError(
            "evaluate.nuclei.datasets names no dataset yet; add a folder with a dataset.yaml, or one of tumour to "
            "evaluate.tumor.datasets"
        )
    return [f"evaluation/{kind}/accuracy.md" for kind in kinds]


def evaluation_records(kind: str) -> list[str]:
    chosen = SETTINGS["evaluate"][kind]
    pairs = (
        [(method, folder) for method in chosen["methods"] for folder in chosen["datasets"]]
        if kind == "nuclei"
        else [(model, folder) for folder in chosen["datasets"] for model in tumor_models(folder)]
    )
    return [f"evaluation/{kind}/{source}/{Path(folder).name}.json" for source, folder in pairs]


def tumor_models(folder: str) -> list[str]:
    """The networks of ``evaluate.tumor.models`` that are of the stain of a dataset."""
    try:
        stain = yaml.safe_load(Path(folder, "dataset.yaml").read_text(encoding="utf-8"))["stain"]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        stain = None
    if stain not in ("he", "ki67"):
        raise WorkflowError(
            f"evaluate.tumor.datasets names {folder}, which holds no dataset.yaml with a stain; write stain: he or "
            "stain: ki67 into it"
        )
    wanted = [name for name in SETTINGS["evaluate"]["tumor"]["models"] if SETTINGS["models"][name]]
    models = [name for name in wanted if json.loads(Path(model_file(name)).read_text())["stain"] == stain]
    if not models:
        raise WorkflowError(
            f"evaluate.tumor.models names no network for the stain {stain} of {folder}; add one or leave it out"
        )
    return models


def check_any_slides() -> None:
    if not SLIDES:
        raise WorkflowError(f"{SHEET_NAME} lists no slide yet; add a row for each (see config/README.md)")


def pair_records(wildcards) -> list[str]:
    check_any_slides()
    return [f"results/{slide}/pairs.json" for slide in SLIDES]


def prediction_method() -> str:
    """The method of predicting the index from H&E, where one was asked for."""
    method = SETTINGS["predict"]["method"]
    if method is None:
        raise WorkflowError(
            "predict.method is null, so nothing is predicted from H&E; name a method such as forest: --config "
            "predict='{method: forest}'"
        )
    return method


def learned_pairs(wildcards) -> list[str]:
    """Pairs of the slides with both stains, which are as many patients as a training needs."""
    rows = [row for row in SLIDES.values() if len(row.files) == 2]
    patients, needed = len({row.patient for row in rows}), max(FEWEST_PATIENTS, 2 * SETTINGS["predict"]["folds"])
    if patients < needed:
        raise WorkflowError(
            f"predict.method {wildcards.method} learns from slides with both stains of at least {needed} patients for "
            f"{SETTINGS['predict']['folds']} folds, and {SHEET_NAME} has {patients}; add some, name a trained model in "
            "predict.model, or set predict.method: null"
        )
    return [f"results/{row.slide}/pairs.zarr" for row in rows]


def prediction_model(wildcards) -> str:
    """model.json of the models that predict: those of ``predict.model``, or those that learn from this sheet."""
    method, named = wildcards.get("method", SETTINGS["predict"]["method"]), SETTINGS["predict"]["model"]
    if named is None or method != SETTINGS["predict"]["method"]:
        return f"prediction/{method}/model.json"
    # Made absolute, as a relative one would tie predicting to the rule that trains.
    path = Path(os.path.abspath(named), "model.json")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["method"]
    except (OSError, ValueError, KeyError, TypeError):
        raise WorkflowError(
            f"predict.model is {named}, but {path.parent} holds no model.json of a prediction; name a folder that "
            "predict_train wrote, or set predict.model: null to learn from this sheet"
        ) from None
    if found != method:
        raise WorkflowError(
            f"predict.method is {method}, but the model {named} is of the method {found}; set one to fit the other"
        )
    return str(path)


def prediction_inputs() -> dict:
    """What models read beside slides: the file of first weights, and what counts nuclei on what cyclegan draws."""

    def counting_model(wildcards) -> str | list:
        method = wildcards.get("method", SETTINGS["predict"]["method"])
        return nuclei_model_file(wildcards) if method == "cyclegan" else []

    return {"weights": SETTINGS["predict"]["weights"] or [], "nuclei_model": counting_model}


def prediction_settings(method: str) -> dict:
    """What decides on a model and its answers, without paths, and the device."""
    settings = {key: value for key, value in SETTINGS["predict"].items() if key not in ("pairs", "model", "weights")}
    counted = {"nuclei_method": SETTINGS["nuclei"]["method"], "device": SETTINGS["network"]["device"]}
    return settings | counted | {"method": method}


def predictions(wildcards) -> list[str]:
    """With ``predict.method``, the predictions of the slides that have an H&E alone."""
    asked = SETTINGS["predict"]["method"] is not None
    return [f"results/{row.slide}/prediction.json" for row in SLIDES.values() if asked and set(row.files) == {"he"}]


def prediction_evaluation(name: str):
    """With ``predict.method``, a file that says how good its predictions are."""
    method = SETTINGS["predict"]["method"]
    return [] if method is None else f"prediction/{method}/{name}"


def pixels_of_pairs_mb() -> float:
    """Most memory that the pixels of all pairs take."""
    pairs = SETTINGS["predict"]["pairs"]
    return len(SLIDES) * pairs["patches_per_slide"] * 3 * pairs["size_px"] ** 2 / 1e6


def cohort_files(wildcards) -> list[str]:
    check_any_slides()
    tables = ("cohort.csv", "patients.csv", "cohort.zarr", "overview.png", "report.html")
    agreement = ("agreement.csv", "agreement.json", "agreement.png")
    return [f"results/cohort/{name}" for name in (*tables, *agreement)]


def slide_pages_folder() -> dict:
    """Where the pages of the slides go, if there are too many for one file."""
    paged = len(SLIDES) > MOST_SLIDES_IN_ONE_FILE
    return {"pages": directory(f"results/cohort/{PAGES_FOLDER}")} if paged else {}


wildcard_constraints:
    slide=r"[A-Za-z0-9][A-Za-z0-9._-]*",
    network="|".join((*PIXEL_NETWORKS, *PATCH_NETWORKS)),


# A mistake of the sheet or the settings is one sentence for a person, without a traceback.
try:
    SETTINGS = load_settings()
    SHEET_NAME = SETTINGS["slides"]
    SHEET = find_sheet(SHEET_NAME)
    SLIDES = load_slides()
    if workflow.is_main_process:
        check_images()
        check_second_opinion()
        if SETTINGS["on_missing"] == "stop":
            check_all_present()
except ConfigError as error:
    raise WorkflowError(str(error)) from None

if workflow.is_main_process:
    gc.freeze()
    gc.set_threshold(100_000, 50, 1000)  # a plan only grows; looking for cycles in it takes a fifth of the time
    if not workflow.dryrun:
        date_back(Path("results"))


onstart:
    try:
        check_before_jobs()
    except Ki67Error as error:
        raise WorkflowError(str(error)) from None
