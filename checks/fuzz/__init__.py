"""Feeds damaged, hostile and random input to all that superpose reads, and counts what comes of it.

An input is a number: it seeds all that is drawn. It is either accepted or refused in one sentence. Anything else is a
finding: another exception, a sentence that is none, a file left behind, one written or read outside the input's
folder, code out of the input that ran, memory beyond the limit, or a hang.

    valid sample -> copy in a folder of its own -> damage -> what reads it -> accepted | refused | finding
    samples.py                                    damage.py  targets.py      judging.py
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
