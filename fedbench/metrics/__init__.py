"""The metrics. Importing this package registers every one of them in `METRICS`."""

from fedbench.metrics import bleu as bleu
from fedbench.metrics import calibration as calibration
from fedbench.metrics import classification as classification
from fedbench.metrics import clients as clients
from fedbench.metrics import code as code
from fedbench.metrics import edits as edits
from fedbench.metrics import form as form
from fedbench.metrics import items as items
from fedbench.metrics import judged as judged
from fedbench.metrics import labels as labels
from fedbench.metrics import likelihood as likelihood
from fedbench.metrics import numeric as numeric
from fedbench.metrics import overlap as overlap
from fedbench.metrics import preference as preference
from fedbench.metrics import privacy as privacy
from fedbench.metrics import safety as safety
from fedbench.metrics import subsets as subsets
from fedbench.metrics import text as text
from fedbench.metrics import tuples as tuples
from fedbench.metrics import voting as voting
from fedbench.metrics.metric import METRICS, Metric, Sample, find_metric, get_metric

__all__ = ["METRICS", "Metric", "Sample", "find_metric", "get_metric"]
