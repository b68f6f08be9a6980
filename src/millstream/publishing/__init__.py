"""Publishing: the weights that answer, handed to others at fixed run positions, while they are good.

gate          whether a model is as good as it was when it was last published, as a pure function
publications  the folder that they lie in: written, read
publisher     when, what, and what is remembered of it
"""

from millstream.publishing.gate import Gate, GateState, Reading
from millstream.publishing.publications import Publication, newest
from millstream.publishing.publisher import Publisher

__all__ = ["Gate", "GateState", "Publication", "Publisher", "Reading", "newest"]
