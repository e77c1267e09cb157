"""Replies to large corpora: in numbered parts, by any number of processes, any of which may be killed and run again."""

from blenderbot_jax.offline.answers import answer_rows as answer_rows
from blenderbot_jax.offline.answers import conversation as conversation
from blenderbot_jax.offline.answers import prepared as prepared
from blenderbot_jax.offline.corpus import Report as Report
from blenderbot_jax.offline.corpus import generate_corpus as generate_corpus
from blenderbot_jax.offline.corpus import merge as merge
from blenderbot_jax.offline.manifest import fingerprint as fingerprint
from blenderbot_jax.offline.ray_replies import RayReplies as RayReplies
from blenderbot_jax.offline.rows import Corpus as Corpus
from blenderbot_jax.offline.rows import Part as Part
from blenderbot_jax.offline.rows import survey as survey
