"""The whole report, from what is known of a checkpoint."""

from spqlm.report import sections
from spqlm.report.evidence import Evidence
from spqlm.report.frontier import size_against_loss
from spqlm.report.layer_map import what_was_done
from spqlm.report.page import Document
from spqlm.report.reproduce import reproduce
from spqlm.report.samples import Written


def document(evidence: Evidence, written: Written | None) -> Document:
    """Headline figures, then a section for each question that a reader has.

    Args:
        evidence: of the checkpoint.
        written: sample texts; None for none.

    Raises:
        SpqError: matplotlib is not installed, and there is a chart to draw.
        CheckpointError: the checkpoint is damaged.
    """
    source = evidence.manifest.source
    parts = [
        size_against_loss(evidence),
        sections.quality(evidence),
        sections.sizes(evidence),
        sections.speed(evidence.timed),
        what_was_done(evidence),
        sections.samples(written) if written else None,
        sections.loading(evidence.name),
        reproduce(evidence),
    ]
    return Document(
        evidence.name,
        f"{source.name}, compressed with SPQ" + (f"; {source.note}." if source.note else "."),
        sections.facts(evidence),
        [part for part in parts if part is not None],
    )
