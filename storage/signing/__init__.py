"""Signatures, and what carries them: C2SP notes and DSSE envelopes."""
