"""Look over the slide files of a row: resolution, tissue, stain and focus."""

from ki67.errors import empty_cell_finding
from ki67.geometry import Mask
from ki67.provenance import stage_log
from ki67.slides import slide_checksum, unchanging
from ki67.storage import write_image_jpeg, write_json, write_mask_png
from ki67.tissue import StainCheck, check_slide_file, without_control_tissue

SLIDE, INPUT, OUTPUT, PARAMS = snakemake.wildcards.slide, snakemake.input, snakemake.output, snakemake.params
TISSUE_MPP = PARAMS.settings["tissue_mpp"]
DISTRIBUTIONS = ("numpy", "opencv-python-headless", "openslide-bin", "openslide-python", "tifffile", "pillow")


def check(stain: str) -> tuple[StainCheck, dict | None]:
    """The check of one file, and its checksum; one that cannot be opened has a finding instead of tissue."""
    path, names = PARAMS.files[stain], {"slide_id": SLIDE, "stain": stain}
    with unchanging(INPUT[stain] or None, **names):
        checked = check_slide_file(path, **names, mpp=PARAMS.mpp.get(stain), tissue_mpp=TISSUE_MPP)
        return checked, slide_checksum(path)


with stage_log(snakemake.log[0], stage="check", name=SLIDE) as log:
    findings, records = [], {}
    found = {stain: check(stain) for stain in ("he", "ki67") if stain in PARAMS.files}
    checks = {stain: checked for stain, (checked, _) in found.items()}
    if "ki67" in checks:
        checks["ki67"] = without_control_tissue(checks["ki67"], checks.get("he"), slide_id=SLIDE)
    for stain in ("he", "ki67"):
        checked = checks.get(stain)
        findings.extend(checked.findings if checked else [empty_cell_finding(SLIDE, stain)])
        records[stain] = checked and checked.to_json() | {"file": found[stain][1]}
        tissue = checked.tissue if checked and checked.usable else Mask.empty(stain, TISSUE_MPP)
        write_mask_png(OUTPUT[f"tissue_{stain}"], tissue)
        empty = StainCheck.failed(empty_cell_finding(SLIDE, stain), stain)
        write_image_jpeg(OUTPUT[f"thumbnail_{stain}"], (checked or empty).thumbnail)
        log.note(f"{stain} {tissue.area_mm2:.1f} mm² of tissue")
    record = {"slide": SLIDE, "stains": records, "findings": [finding.to_json() for finding in findings]}
    log.note(", ".join(finding.flag for finding in findings) or "no findings")
    write_json(OUTPUT.check, record | log.record(PARAMS, DISTRIBUTIONS))
