"""A suite for implementations of token superposition, whoever wrote them: which of the twelve errors do they make?

Of a step of your own:

    from superpose.conform import Implementation, conform

    for finding in conform(Implementation(step=my_step)):
        print(finding.error, finding.verdict, finding.evidence)
"""

from superpose.conform.implementation import Implementation
from superpose.conform.suite import Finding, conform

__all__ = ["Finding", "Implementation", "conform"]
