"""The review page as a folder: HTML, values and plots, written by a program that gets the page and nothing else."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from appliance.client.releases.evidence import ReviewMaterial
from appliance.client.support.program import new_folder, run_report_program


def write_review_report(evidence: ReviewMaterial, folder: Path) -> None:
    """A new folder: review.html, page.json, and each plot as SVG and PNG. Conflict where it is there already."""
    new_folder(folder, "report")
    checked = {"log": f"{evidence.log_size} entries", "log vouched for by": evidence.said_by}
    given = {"page": evidence.page.model_dump(mode="json"), "checked": checked}
    run_report_program(sys.executable, "review.report", [str(folder.absolute())], json.dumps(given).encode())
