"""Every way of selecting latents, in the order of help and reports: one line each."""

from sae_forge.features.methods.attribution import ATTRIBUTION
from sae_forge.features.methods.conditional import CONDITIONAL
from sae_forge.features.methods.crisp import CRISP
from sae_forge.features.methods.dsg_ratio import DSG_RATIO
from sae_forge.features.methods.frequency import FREQUENCY
from sae_forge.features.methods.inlp import INLP
from sae_forge.features.methods.method import SelectionMethod
from sae_forge.features.methods.random import RANDOM
from sae_forge.features.methods.random_matched import RANDOM_MATCHED
from sae_forge.features.methods.top_mean import TOP_MEAN

SELECTIONS: tuple[SelectionMethod, ...] = (
    INLP, FREQUENCY, DSG_RATIO, CONDITIONAL, CRISP, TOP_MEAN, RANDOM_MATCHED, RANDOM, ATTRIBUTION,
)  # fmt: skip
