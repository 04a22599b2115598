"""All that the scoreboard asks, by name: attention, encoders, models and loops of other libraries; beside them, ours.

`python -m core.testing benchmarks.peers:NAME` checks one, `python -m benchmarks.scoreboard` all. What a library's own
documentation does not promise is not claimed; a failure that is expected says why.
"""

from core.testing import Subject

from .loop_peers import LOOPS
from .zoo.attentions import ATTENTIONS
from .zoo.encoders import ENCODERS
from .zoo.images import IMAGE_MODELS
from .zoo.sounds import SOUNDS
from .zoo.texts import TEXTS

KINDS = {
    "Attention": ATTENTIONS,
    "Encoders": ENCODERS,
    "Models of texts": TEXTS,
    "Models of images": IMAGE_MODELS,
    "Models of sound": SOUNDS,
    "Training loops": LOOPS,
}
PEERS = {name: subject for subjects in KINDS.values() for name, subject in subjects.items()}


def __getattr__(name: str) -> Subject:
    """Each by its name, for `python -m core.testing`."""
    if name not in PEERS:
        raise AttributeError(name)
    return PEERS[name]
