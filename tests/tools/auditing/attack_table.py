"""The attacks of docs/audit-attacks.md: what is done to a copy of an honest root, and where that has to be found."""

from __future__ import annotations

from tests.tools.auditing.attack_beside import BESIDE, SOUND
from tests.tools.auditing.attack_bundles import BUNDLES
from tests.tools.auditing.attack_events import EVENTS
from tests.tools.auditing.attack_logs import CHECKPOINTS, LOGS

ATTACKS = (*EVENTS, *LOGS, *CHECKPOINTS, *BESIDE, *BUNDLES, *SOUND)
